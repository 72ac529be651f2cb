"""Numbers whose factors are known, because they were made from primes."""

import gmpy2


def prime(digits: int, which: int = 0) -> int:
    """The prime number `which` above 10**(digits-1): `digits` digits for any `which` that tests use."""
    value = gmpy2.mpz(10) ** (digits - 1)
    for _ in range(which + 1):
        value = gmpy2.next_prime(value)
    return int(value)


def product(*numbers: int) -> int:
    """Their product."""
    result = 1
    for number in numbers:
        result *= number
    return result
