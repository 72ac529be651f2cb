"""Clients that send results until the server acknowledges them, as real ones do, and know the expected outcomes.

Every result must be applied or rejected exactly once: the tests compare the states and the sums of curves.
"""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import requests
from gmpy2 import mpz, next_prime
from stacks import Stack, wait_until

SETTLED_WITHIN = 60.0  # seconds, without an operator


def prime(digits: int) -> mpz:
    """Return a random prime of that many digits."""
    return next_prime(random.randrange(10 ** (digits - 1), 10**digits))


@dataclass(frozen=True)
class Number:
    """A number to work on, and factors of it that can be claimed: a prime, and a composite that a job must split."""

    value: str
    small: str
    to_split: str


def random_number() -> Number:
    """Return a number of about 160 digits that its two claims do not factor completely."""
    small, parts = prime(12), (prime(15), prime(36))
    return Number(str(small * parts[0] * parts[1] * prime(48) * prime(50)), str(small), str(parts[0] * parts[1]))


@dataclass
class Traffic:
    """The results that were sent to a stack, the answers, and their times."""

    stack: Stack
    numbers: list[Number] = field(default_factory=lambda: [random_number() for _ in range(3)])
    sent: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    disconnections: int = 0
    seconds: list[float] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return a result without a factor."""
        return {
            "client_id": f"client-{random.randrange(5)}",
            "composite": random.choice(self.numbers).value,
            "parameters": {"b1": random.choice([11_000, 50_000]), "sigma": f"1:{random.randrange(10**18)}"},
            "results": {"curves_completed": random.randrange(1, 1000)},
        }

    def mixed(self) -> dict[str, Any]:
        """Return a random result: mostly without a factor, else with a true or a false one."""
        body, chosen = self.plain(), random.choice(self.numbers)
        claims = [None, chosen.small, str(mpz(chosen.small) + 2), chosen.to_split]
        body["composite"] = chosen.value
        body["results"]["factor_found"] = random.choices(claims, [80, 8, 8, 4])[0]
        if random.random() < 0.3:
            del body["parameters"]["sigma"]
        return body

    def send(self, body: dict[str, Any], session: requests.Session, prefer: str = "respond-async") -> int:
        """Send until the server acknowledges it: stored (200, 202) or rejected by the worker (400)."""
        claim = body["results"].get("factor_found")
        divides = claim is None or mpz(body["composite"]) % mpz(claim) == 0
        self.sent.append((body, "applied" if divides else "rejected"))
        headers = {"Idempotency-Key": f"{random.randrange(2**64):x}", "Prefer": prefer}
        deadline = time.monotonic() + SETTLED_WITHIN
        while True:
            began = time.monotonic()
            try:
                answer = session.post(f"{self.stack.api}/submit_result", json=body, headers=headers, timeout=40)
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                self.disconnections += 1
            else:
                self.seconds.append(time.monotonic() - began)
                if answer.status_code in (200, 202, 400):
                    return answer.status_code
                self.refusals.append(f"{answer.status_code} {answer.headers} {answer.text[:300]}")
            assert time.monotonic() < deadline, f"not acknowledged within {SETTLED_WITHIN:.0f} s"
            time.sleep(0.1)

    def send_batch(self, count: int) -> None:
        """Send `count` plain results in one body."""
        bodies = [self.plain() for _ in range(count)]
        answer = self.stack.http.post(f"{self.stack.api}/submit_results", json=bodies, timeout=60).json()
        assert (answer["accepted"], answer["refused"]) == (count, 0)
        self.sent += [(body, "applied") for body in bodies]

    def assert_settled_once(self) -> float:
        """Check that every result gets its expected state once, within SETTLED_WITHIN; returns the seconds taken."""
        began = time.monotonic()
        wait_until(lambda: _call_unless_away(self.stack.unsettled) == 0, SETTLED_WITHIN, pause=0.1)
        took = time.monotonic() - began
        values = [number.value for number in self.numbers]
        states = self.stack.rows(
            "SELECT state, count(*) FROM submissions WHERE payload->>'composite' = ANY(:values) GROUP BY state",
            values=values,
        )
        found, expected = Counter(dict(map(tuple, states))), Counter(state for _, state in self.sent)
        assert found == expected, (found, expected)
        curves: Counter[tuple[str, int]] = Counter()
        for body, state in self.sent:
            if state == "applied":
                curves[body["composite"], body["parameters"]["b1"]] += body["results"]["curves_completed"]
        sums = self.stack.rows(
            "SELECT number, b1, sum(curves) FROM value_effort JOIN target_sources USING (value_id)"
            " JOIN composites USING (target_id) WHERE number = ANY(:values) GROUP BY number, b1",
            values=values,
        )
        assert Counter({(value, b1): int(count) for value, b1, count in sums}) == curves
        self.stack.assert_sound()
        return took

    def flowing(self, threads: int = 3, pause: float = 0.01, prefer: str = "respond-async") -> "Flowing":
        """Return a context in which that many clients send mixed results, with `pause` seconds between requests."""
        return Flowing(self, threads, pause, prefer)


def _call_unless_away(ask: Any) -> Any:
    """Return the result of `ask`, or None while the database is away."""
    from sqlalchemy.exc import OperationalError

    try:
        return ask()
    except OperationalError:
        return None


class Flowing:
    """Clients that send in their own threads; an error in one of them fails the test."""

    def __init__(self, traffic: Traffic, threads: int, pause: float, prefer: str) -> None:
        self._traffic, self._pause, self._prefer = traffic, pause, prefer
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._send) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        before = len(self._traffic.seconds)
        wait_until(lambda: len(self._traffic.seconds) > before + 10 or self._errors)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors and error is None:
            raise self._errors[0]

    def more(self, count: int, timeout: float = 60.0) -> None:
        """Wait until the clients have received `count` more answers."""
        goal = len(self._traffic.seconds) + count
        wait_until(lambda: len(self._traffic.seconds) >= goal or self._errors, timeout)

    def _send(self) -> None:
        try:
            with requests.Session() as session:
                while not self._stop.wait(self._pause):
                    self._traffic.send(self._traffic.mixed(), session, self._prefer)
        except BaseException as error:
            self._errors.append(error)
