"""The processor time of splits and primality tests by size: the source of the table in coordinator/numbers/costs.py.

    python -m bench.arithmetic [--largest-split 65] [--largest-prime 20000]

Splits are of products of two primes of the same size, the hardest numbers of their length; primality tests are of
primes, because a composite mostly fails the first step, which takes half the time.
"""

import argparse
import random
from time import process_time

import gmpy2
from flint import fmpz
from gmpy2 import mpz

from coordinator.numbers.arithmetic import MILLER_RABIN_ROUNDS

SPLITS = (25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75)
PRIMES = (100, 200, 500, 1000, 2000, 3000, 5000, 10_000, 20_000, 50_000)
REPEATS = 20


def semiprime(digits: int, chance: random.Random) -> mpz:
    """Return a product of two primes of half as many digits, with `digits` digits."""
    while True:
        low = 10 ** (digits // 2 - 1)
        first = gmpy2.next_prime(mpz(chance.randrange(3 * low, 10 * low)))
        second = gmpy2.next_prime(mpz(10) ** (digits - 1) // first + chance.randrange(low))
        if (first * second).num_digits(10) == digits:
            return first * second


def main() -> None:
    """Print the seconds of each size: the mean and the largest of several numbers."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--largest-split", type=int, default=65)
    arguments.add_argument("--largest-prime", type=int, default=10_000)
    chosen = arguments.parse_args()
    chance = random.Random(1)
    for digits in (size for size in SPLITS if size <= chosen.largest_split):
        seconds = []
        for _ in range(REPEATS if digits <= 55 else 2):
            number = fmpz(int(semiprime(digits, chance)))
            started = process_time()
            number.factor()
            seconds.append(process_time() - started)
        print(
            f"split {digits:6} digits: mean {sum(seconds) / len(seconds):9.4f} s, most {max(seconds):9.4f} s",
            flush=True,
        )
    for digits in (size for size in PRIMES if size <= chosen.largest_prime):
        # The cost does not depend on the number: the strong tests of a composite that passes trial division are one
        # modular power each. A prime needs all of them.
        modulus = mpz(chance.randrange(10 ** (digits - 1), 10**digits)) | 1
        started = process_time()
        gmpy2.powmod(3, modulus - 1, modulus)
        power = process_time() - started
        prime = gmpy2.next_prime(modulus) if digits <= 1000 else None
        test = 0.0
        if prime is not None:
            started = process_time()
            gmpy2.is_prime(prime, MILLER_RABIN_ROUNDS)
            test = process_time() - started
        print(f"prime {digits:6} digits: one power {power:9.4f} s, whole test {test:9.4f} s", flush=True)


if __name__ == "__main__":
    main()
