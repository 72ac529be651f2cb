"""Arithmetic on integers with GMP and FLINT: primality, powers, multiplicity, and factoring of small numbers."""

import gmpy2
from flint import fmpz
from gmpy2 import mpz

# Baillie-PSW with Miller-Rabin rounds takes 0.5 s at 5,000 digits and 14 s at 20,000; a job tests larger numbers.
PRIMALITY_AT_ONCE_DIGITS = 2000
# FLINT splits 45 digits in a few hundredths of a second and 75 in minutes; larger composites need curves.
SPLIT_AT_ONCE_DIGITS = 45
SPLIT_AS_JOB_DIGITS = 75

# GMP counts its Baillie-PSW test, which no known composite passes, as 24 rounds; round 25 is a Miller-Rabin test.
MILLER_RABIN_ROUNDS = 25


def digit_count(n: mpz) -> int:
    """Return the number of decimal digits of `n` > 0."""
    # GMP's estimate is exact or one too many.
    estimate = mpz(n).num_digits(10)
    return int(estimate - 1 if n < mpz(10) ** (estimate - 1) else estimate)


def is_probable_prime(n: mpz) -> bool:
    """Return whether `n` passes GMP's Baillie-PSW and Miller-Rabin tests; 0, 1 and negative numbers do not."""
    return bool(n > 1 and gmpy2.is_prime(n, MILLER_RABIN_ROUNDS))


def perfect_power(n: mpz) -> tuple[mpz, int] | None:
    """Return (base, exponent): base**exponent = n, the largest exponent > 1; None if `n` > 1 is no perfect power."""
    base, exponent, candidate = mpz(n), 1, 2
    while base > 1 and gmpy2.is_power(base):
        while not (_may_be_power(base, candidate) and gmpy2.iroot(base, candidate)[1]):
            candidate = int(gmpy2.next_prime(candidate))
        base, exponent = gmpy2.iroot(base, candidate)[0], exponent * candidate
    return (base, exponent) if exponent > 1 else None


def _may_be_power(n: mpz, q: int) -> bool:
    """Return whether `n` is a q-th power modulo the first prime p = 1 (mod q), as one residue in q is.

    This saves `perfect_power` most of its root extractions, one for each prime exponent; a root costs many times what
    this test costs.
    """
    p = q + 1
    while not gmpy2.is_prime(p):
        p += q
    return n % p == 0 or pow(int(n % p), (p - 1) // q, p) == 1


def multiplicity(n: mpz, factor: mpz) -> tuple[int, mpz]:
    """Return how often `factor` > 1 divides `n` > 0, and the quotient after that."""
    rest, count = gmpy2.remove(n, factor)
    return int(count), rest


def factorize(n: mpz) -> dict[mpz, int]:
    """Return the primes of `n` > 0 with multiplicities, by FLINT: 50 digits take 0.3 s, 65 take 7 s, 75 take minutes.

    Raises ValueError for numbers of more than 75 digits, which could take for ever, and ArithmeticError if the product
    of FLINT's factors is not `n` or one of them is not prime.
    """
    if n < 1 or n >= mpz(10) ** SPLIT_AS_JOB_DIGITS:
        raise ValueError(f"{mpz(n).num_digits(10)} digits are not factored here; at most {SPLIT_AS_JOB_DIGITS} are")
    factors: dict[mpz, int] = {}
    # FLINT may return a prime twice instead of raising its exponent: 65537 * 999983 * 1000003^2.
    for prime, count in fmpz(int(n)).factor():
        factors[mpz(int(prime))] = factors.get(mpz(int(prime)), 0) + int(count)
    product = mpz(1)
    for prime, count in factors.items():
        product *= prime**count
    if product != n or not all(map(is_probable_prime, factors)):
        raise ArithmeticError(f"FLINT's factorization of {n:d} does not multiply back to it with prime factors")
    return factors
