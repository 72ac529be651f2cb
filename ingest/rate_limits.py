"""Rate limits of clients and addresses: counted in each process, and settled with Redis now and then, in fixed windows.

A request counts for its address before its key is looked up, and for a client once the client is known, so that nobody
uses up the limit of another. A batch counts as many times as it has results.

No request waits for Redis until a limit comes near. Each process counts by itself; every SETTLE_SECONDS a thread adds
what was counted to the totals of all processes in Redis, in one round trip, and reads these totals back. A process that
has counted more than its share of what was left, a tenth divided by the number of processes, settles at once. So near a
limit every request is counted in Redis, and beyond it none is. All processes together exceed a limit by less than a
tenth, by what the others count within SETTLE_SECONDS; limits below ten times the number of processes are exact.

While the broker is away, each process holds the limits by itself, and adds what it has counted when the broker is back.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from threading import Event, Lock, Thread
from time import sleep, time
from typing import NamedTuple

import redis
import structlog
from flask import Response, current_app, g, request
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.settings import Settings
from ingest import client_authentication
from ingest.openapi import API
from ingest.problems import ProblemError
from tasks import broker_circuit

log = structlog.get_logger("limits")

PREFIX = "ecm:limit:"
TIMEOUT = 0.5
SETTLE_SECONDS = 0.5
SHARES = 10
# Names that a process counts at a time. When there are more, it forgets the half that has counted least: what they had
# counted is in Redis, but for the last SETTLE_SECONDS.
MOST_NAMES = 20_000
LONGEST_NAME = 200
NAMES_AT_A_TIME = 500
PAGES = ("pages", "admin_pages")
WINDOWS = {"second": 1, "minute": 60, "hour": 3600}


class Limit(NamedTuple):
    """At most `most` requests in each window of `seconds`."""

    most: int
    seconds: int


class LimitState(NamedTuple):
    """The state of one counter: the limit, what is left of it, and the seconds until the next window.

    `left` is negative if what was to be counted is refused.
    """

    most: int
    left: int
    reset: int


def read_limit(text: str) -> Limit | None:
    """Return the limit that a setting such as 6000/minute means; None for off."""
    if text == "off":
        return None
    most, _, window = text.partition("/")
    return Limit(int(most), WINDOWS[window])


# Attempts to log in from one address: enough for mistyping, too few for guessing.
LOGINS = Limit(10, WINDOWS["minute"])


@dataclass(slots=True)
class _Counted:
    """What was counted for one name in one window."""

    limit: Limit
    window: int
    settled: int = 0  # by all processes, when this one last settled
    sending: int = 0  # by this process, on the way to Redis
    pending: int = 0  # by this process since then
    share: int = 0  # what this process may count before it settles

    @property
    def unsettled(self) -> int:
        return self.sending + self.pending

    @property
    def used(self) -> int:
        return self.settled + self.unsettled


class Counters:
    """The counters of all clients and addresses, as this process knows them."""

    def __init__(self, settings: Settings) -> None:
        self.limits = {
            "client": read_limit(settings.rate_limit_per_client),
            "address": read_limit(settings.rate_limit_per_address),
            "login": LOGINS,
        }
        # By default redis-py retries three times, each with its own timeout.
        self._redis: redis.Redis = redis.Redis.from_url(
            settings.redis_url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
        )
        self._shares = SHARES * settings.web_processes
        self._counted: dict[tuple[str, str], _Counted] = {}
        self._lock = Lock()  # for all that was counted
        self._settling = Lock()  # for talking to Redis
        self._is_pending = Event()
        self._thread: Thread | None = None

    def count(self, kind: str, name: str, times: int = 1) -> LimitState | None:
        """Count `times` requests for a `client` or an `address`, or attempts to log in (`login`); return the new state.

        What the limit has no room for is not counted. Returns None if there is no limit.
        """
        limit = self.limits[kind]
        if limit is None:
            return None
        now = time()
        key = kind, name[:LONGEST_NAME]
        with self._lock:
            counted = self._of_window(key, limit, int(now // limit.seconds))
            left = limit.most - counted.used - times
            if left >= 0:
                counted.pending += times
            must_settle = left >= 0 and counted.unsettled > counted.share
        if must_settle and not broker_circuit.is_open():
            self.settle([key])
            left = limit.most - counted.used
        if not self._is_pending.is_set():
            self._start_settling()
        return LimitState(limit.most, left, math.ceil(limit.seconds - now % limit.seconds))

    def settle(self, keys: Iterable[tuple[str, str]] | None = None) -> None:
        """Add what was counted to the totals in Redis and read these back, for all names or for those of `keys`.

        While the broker is away, what was counted is kept for the next time.
        """
        with self._settling:
            chosen = self._take(keys)
            for start in range(0, len(chosen), NAMES_AT_A_TIME):
                if not self._send(chosen[start : start + NAMES_AT_A_TIME]):
                    break
            with self._lock:
                for _, counted in chosen:  # of those that were not sent
                    counted.pending, counted.sending = counted.pending + counted.sending, 0

    def _of_window(self, key: tuple[str, str], limit: Limit, window: int) -> _Counted:
        """Return what was counted for a name in this window. The caller holds the lock."""
        counted = self._counted.get(key)
        if counted is None or counted.window != window:
            if counted is None and len(self._counted) >= MOST_NAMES:
                for least in nsmallest(MOST_NAMES // 2, self._counted, key=lambda other: self._counted[other].used):
                    del self._counted[least]
            # Attempts to log in are few, and each of them is counted in Redis.
            share = 0 if key[0] == "login" else limit.most // self._shares
            counted = self._counted[key] = _Counted(limit, window, share=share)
        return counted

    def _take(self, keys: Iterable[tuple[str, str]] | None) -> list[tuple[str, _Counted]]:
        """Return the keys in Redis of names with something to send, and forget ended windows."""
        now = time()
        chosen = []
        with self._lock:
            for key in list(self._counted) if keys is None else keys:
                counted = self._counted.get(key)
                if counted is None or counted.window != int(now // counted.limit.seconds):
                    self._counted.pop(key, None)
                elif counted.pending:
                    counted.sending, counted.pending = counted.pending, 0
                    chosen.append((f"{PREFIX}{key[0]}:{counted.window}:{key[1]}", counted))
        return chosen

    def _send(self, chosen: list[tuple[str, _Counted]]) -> bool:
        """Settle these names; returns whether the broker has answered."""
        pipeline = self._redis.pipeline(transaction=False)
        for name, counted in chosen:
            pipeline.incrby(name, counted.sending)
            pipeline.expire(name, counted.limit.seconds + 1)
        try:
            totals = pipeline.execute()[::2]
        except (redis.RedisError, OSError) as error:
            broker_circuit.open_circuit()
            log.warning("The broker does not answer; each process limits requests by itself", error=str(error)[:200])
            return False
        with self._lock:
            for (_, counted), total in zip(chosen, totals, strict=True):
                # A broker that was restarted has forgotten what it had.
                counted.settled = max(total, counted.settled + counted.sending)
                counted.sending = 0
                if counted.share:
                    counted.share = max(0, counted.limit.most - counted.settled) // self._shares
        return True

    def _start_settling(self) -> None:
        with self._lock:
            self._is_pending.set()
            if self._thread is None:
                self._thread = Thread(target=self._settle_regularly, name="limits", daemon=True)
                self._thread.start()

    def _settle_regularly(self) -> None:
        while True:
            self._is_pending.wait()
            sleep(SETTLE_SECONDS)
            if broker_circuit.is_open():
                continue
            self._is_pending.clear()
            try:
                self.settle()
            except Exception:
                # Without this thread, limits would hold in each process by itself only.
                log.exception("Settling the limits failed; it is tried again", seconds=SETTLE_SECONDS)
            if broker_circuit.is_open():
                self._is_pending.set()


def limit_request() -> None:
    """Count this request for its address; raises a 429 problem beyond the limit.

    Requests for the health of the server and for the static files of pages do not count.
    """
    is_page = request.blueprint in PAGES and request.endpoint != "pages.static"
    if is_page or (request.path.startswith(f"{API}/") and request.path != f"{API}/health"):
        _count("address", request.remote_addr or "")


def limit_named() -> None:
    """Count this request for the client that it is made as, if its key, address or headers say so.

    Results are counted by their views, for the clients that the results themselves name.
    """
    if request.endpoint in client_authentication.ENDPOINTS or not request.path.startswith(f"{API}/"):
        return
    client = client_authentication.client_of_key() or client_authentication.acting_client()
    if client:
        limit_client(client)


def limit_client(client_id: str, times: int = 1) -> None:
    """Count this request, or `times` results of it, for a client; raises a 429 problem beyond the limit."""
    _count("client", client_id, times)


def limit_batch(results: int, by_client: Mapping[str, int]) -> None:
    """Count the results of a batch for the address and for their clients; raises a 429 problem beyond a limit.

    The request has counted as one for its address already. If one client has no room, nothing else is counted.
    """
    address = request.remote_addr or ""
    if results > 1:
        _count("address", address, results - 1)
    counted: dict[str, int] = {}
    for client_id, times in by_client.items():
        try:
            limit_client(client_id, times)
        except ProblemError:
            for other, back in counted.items():
                current_app.config["LIMITS"].count("client", other, -back)
            if results > 1:
                current_app.config["LIMITS"].count("address", address, 1 - results)
            raise
        counted[client_id] = times


def limit_login() -> None:
    """Count an attempt to log in for its address; raises a 429 problem."""
    _count("login", request.remote_addr or "")


def _count(kind: str, name: str, times: int = 1) -> None:
    state = current_app.config["LIMITS"].count(kind, name, times)
    if state is None:
        return
    if "limit" not in g or state.left * g.limit.most < g.limit.left * state.most:
        g.limit = state  # the answer shows the limit that is closest to its end
    if state.left < 0:
        most, left, reset = state
        detail = f"More than {most:,} requests; ask again in {reset} seconds."
        if times > 1:
            detail = (
                f"{times:,} results count as {times:,} requests, and {max(0, left + times):,} of {most:,} are left; "
                f"send fewer at a time, or again in {reset} seconds."
            )
        raise ProblemError(429, "too_many_requests", detail, headers={"Retry-After": str(reset)})


def set_limit_headers(response: Response) -> Response:
    """Set the RateLimit headers of an answer (IETF draft-ietf-httpapi-ratelimit-headers)."""
    if "limit" in g:
        response.headers["RateLimit-Limit"] = str(g.limit.most)
        response.headers["RateLimit-Remaining"] = str(max(0, g.limit.left))
        response.headers["RateLimit-Reset"] = str(g.limit.reset)
    return response
