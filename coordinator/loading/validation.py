"""Validates numbers before they are loaded: checks their fields, divides by small primes, tests the rest.

Pure computation, which processes of its own do for long lists. A batch of numbers goes in, and text comes out that
PostgreSQL copies into the staging tables (coordinator/loading/staging.py): the process in between only passes it on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gmpy2 import mpz

from coordinator.base.many_rows import copy_text
from coordinator.loading.copy_rows import divisor_rows, number_row, tree_rows
from coordinator.loading.list_formats import InputRow
from coordinator.loading.row_parsing import InvalidRowError, ParsedRow, parse_row
from coordinator.numbers.arithmetic import digit_count, multiplicity
from coordinator.numbers.expressions import ExpressionError, shorten
from coordinator.numbers.factor_tree import KNOWN, SPLIT, FactorNode, Tree, new_tree, refine, resolve
from coordinator.numbers.trial_division import small_primes_of


class InvalidLine(NamedTuple):
    """A line that is not loaded: its number, shortened, and why."""

    line: int
    number: str
    reason: str
    message: str


@dataclass
class ValidatedBatch:
    """A validated batch: COPY text for the staging tables, the number of lines, and the invalid ones."""

    numbers: str = ""
    nodes: str = ""
    runs: str = ""
    count: int = 0
    bad: list[InvalidLine] = field(default_factory=list)


def validate_batch(batch: Sequence[InputRow], max_digits: int) -> ValidatedBatch:
    """Validate a batch of numbers, each by itself; only the trial division takes all of them together."""
    validated = ValidatedBatch(count=len(batch))
    parsed: list[ParsedRow] = []
    for row in batch:
        try:
            if row.error is not None:
                raise InvalidRowError(*row.error)
            parsed.append(parse_row(row, max_digits))
        except (InvalidRowError, ExpressionError) as error:
            validated.bad.append(_invalid_line(row.line, row.number, error))
    numbers: list[tuple[Any, ...]] = []
    nodes: list[tuple[Any, ...]] = []
    runs: list[tuple[Any, ...]] = []
    for one, small in zip(parsed, small_primes_of([one.value for one in parsed]), strict=True):
        try:
            tree = divide_known(one.value, small, one.divisors)
            _check_claims(one, tree)
        except InvalidRowError as error:
            validated.bad.append(_invalid_line(one.line, one.written, error))
            continue
        plain = all(leaf.is_prime is True for leaf in tree.leaves())
        first_tree = divide_by_primes(one.value, small) if one.divisors or not plain else None
        if plain:
            numbers.append(number_row(one, tree, plain, first_tree and first_tree.cofactor))
            nodes += tree_rows(one.line, tree)
        elif first_tree is not None:
            numbers.append(number_row(one, first_tree, plain))
            nodes += tree_rows(one.line, first_tree)
            # Without a given factor the number is a multiple of a power of a large composite.
            powers = [leaf.value for leaf in tree.leaves() if leaf.is_prime is not True]
            given = (one.divisors, KNOWN) if one.divisors else (powers, SPLIT)
            nodes += divisor_rows(one.line, *given)
        runs += [(one.line, *run) for run in one.runs]
    validated.bad.sort()
    validated.numbers, validated.nodes, validated.runs = copy_text(numbers), copy_text(nodes), copy_text(runs)
    return validated


def _invalid_line(line: int, number: Any, error: Exception) -> InvalidLine:
    text = number if isinstance(number, str) else str(type(number).__name__)
    return InvalidLine(line, shorten(text), getattr(error, "reason", "invalid"), str(error))


def _check_claims(row: ParsedRow, tree: Tree) -> None:
    """Raise InvalidRowError if the list calls a number fully factored and a composite part is left."""
    fields = row.fields
    if fields is None or not (fields.is_prime or fields.is_fully_factored):
        return
    left = [leaf.value for leaf in tree.leaves() if leaf.is_prime is False]
    if tree.cofactor > 1 and tree.cofactor_is_prime is False:
        left.append(tree.cofactor)
    if left:
        claim = "is_fully_factored" if fields.is_fully_factored else "is_prime"
        detail = f"{claim} is given, but a composite part of {digit_count(left[0])} digits is left; give its factors"
        raise InvalidRowError("not_finished", detail)


# Factors -------------------------------------------------------------------------------------------------------------


def divide_by_primes(number: mpz, small: Iterable[mpz]) -> Tree:
    """Return the factorization of a new number by the primes that the trial division has found."""
    tree = new_tree(number)
    for prime in small:
        # `refine` would do the same, but it tries every prime on every part, and there can be thousands of primes.
        count, rest = multiplicity(tree.cofactor, prime)
        if rest < tree.cofactor and tree.cofactor != prime:
            tree.cofactor, tree.cofactor_is_prime = rest, None if rest > 1 else False
            tree.children.append(FactorNode(prime, count, True, origin=SPLIT, tested=True))
    return tree


def divide_known(number: mpz, small: Iterable[mpz], divisors: Iterable[mpz]) -> Tree:
    """Return the factorization of a new number by these primes and divisors; small parts are factored completely."""
    tree = divide_by_primes(number, small)
    pending = [(divisor, KNOWN) for divisor in divisors]
    while True:
        while pending:
            pending += [(value, SPLIT) for value in refine(tree, *pending.pop(0))]
        pending = [(value, SPLIT) for value in resolve(tree)]
        if not pending:
            return tree
