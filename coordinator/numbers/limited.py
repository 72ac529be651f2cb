"""Primality tests and splits with a limit on their time, in a process that is killed when the limit is reached.

GMP and FLINT cannot be interrupted from Python: no signal handler runs before they return. So what may take long runs
in a process of its own. That process also limits itself, in case that its caller dies first.
"""

import math
import resource
import subprocess
import sys
from pathlib import Path

from gmpy2 import mpz

from coordinator.numbers.arithmetic import digit_count, factorize, is_probable_prime
from coordinator.numbers.budget import primality_seconds, split_seconds
from coordinator.numbers.expressions import decimal

PRIMALITY, SPLIT = "primality", "split"
# Starting a process takes a tenth of a second; computations that surely take less than this run in the caller.
AT_ONCE_SECONDS = 0.5
# On a loaded machine a process gets its processor time later than on an idle one.
WAIT_SECONDS, WAIT_SHARE = 60, 1.05
MEMORY_BYTES = 4 * 2**30
PROGRAM_DIRECTORY = Path(__file__).resolve().parents[2]


class OutOfTimeError(Exception):
    """A computation has used up its processor time, or its process died; what it was to find out stays unknown."""


def is_prime_within(n: mpz, seconds: float) -> bool:
    """Return whether `n` is a probable prime. Raises OutOfTimeError after `seconds` of processor time."""
    if primality_seconds(digit_count(n)) <= AT_ONCE_SECONDS:
        return is_probable_prime(n)
    return _compute(PRIMALITY, n, seconds) == "True"


def factorize_within(n: mpz, seconds: float) -> dict[mpz, int]:
    """Return the primes of `n` with multiplicities, as `factorize` does.

    Raises OutOfTimeError after `seconds` of processor time, and ValueError for a number of more than 75 digits.
    """
    expected = split_seconds(digit_count(n))
    if expected <= AT_ONCE_SECONDS or expected == math.inf:
        return factorize(n)
    primes = _compute(SPLIT, n, seconds).split()
    return {mpz(prime): int(count) for prime, count in zip(primes[::2], primes[1::2], strict=True)}


def _compute(task: str, n: mpz, seconds: float) -> str:
    limit = math.ceil(seconds)
    most_wait = WAIT_SECONDS + WAIT_SHARE * limit
    try:
        process = subprocess.run(
            [sys.executable, "-m", __name__, task, str(limit)],
            cwd=PROGRAM_DIRECTORY,
            input=decimal(n),
            capture_output=True,
            text=True,
            timeout=most_wait,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OutOfTimeError(f"the {task} of {digit_count(n)} digits took more than {most_wait:.0f} s") from None
    if process.returncode < 0:  # killed by the kernel: its processor time or the machine's memory was used up
        raise OutOfTimeError(f"the {task} of {digit_count(n)} digits did not end within {limit} s of processor time")
    if process.returncode:
        reason = process.stderr.strip().rpartition("\n")[2]
        raise ArithmeticError(f"the {task} of {digit_count(n)} digits failed: {reason}")
    return str(process.stdout).strip()


def _main() -> None:
    task, limit = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    n = mpz(sys.stdin.read())
    if task == PRIMALITY:
        print(is_probable_prime(n))
    else:
        print(" ".join(f"{prime:d} {count}" for prime, count in factorize(n).items()))


if __name__ == "__main__":
    _main()
