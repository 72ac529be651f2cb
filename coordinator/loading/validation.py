"""Looking at numbers before they are loaded: what was given is checked, small factors are divided out, the rest tested.

Pure computation, done in processes of its own for long lists. Batches of numbers go in; what comes out is what
PostgreSQL copies into the staging tables of coordinator/loading/staging.py, so that a process in the middle has little to do.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from gmpy2 import mpz
from pydantic import ValidationError

from coordinator import effort
from coordinator.composites import eligibility
from coordinator.composites.registry import sha256
from coordinator.loading.list_formats import InputRow
from coordinator.numbers.arithmetic import digit_count, multiplicity
from coordinator.numbers.expressions import ExpressionError, decimal, evaluate, evaluate_number, shorten
from coordinator.numbers.factor_tree import KNOWN, SPLIT, FactorNode, Tree, new_tree, refine, resolve
from coordinator.numbers.trial_division import small_primes_of
from models.limits import MAX_CURVES
from models.wire.loading import GivenComposite


class InvalidLine(NamedTuple):
    """A number that is not loaded, shortened, and why."""

    line: int
    number: str
    reason: str
    message: str


class InvalidRowError(ValueError):
    """What was given of a number is not true of it; `reason` is a word for programs."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass
class ValidatedBatch:
    """A batch looked at: rows for the staging tables as COPY text, how many numbers they are, and the bad lines."""

    numbers: str = ""
    nodes: str = ""
    runs: str = ""
    count: int = 0
    bad: list[InvalidLine] = field(default_factory=list)


class _Readable(NamedTuple):
    line: int
    written: str
    value: mpz
    more: GivenComposite | None
    divisors: list[mpz]
    runs: list[tuple[int, int, int, int]]


def validate_batch(batch: Sequence[InputRow], max_digits: int) -> ValidatedBatch:
    """Look at a batch of numbers, each on its own but for the trial division."""
    screened = ValidatedBatch(count=len(batch))
    readable: list[_Readable] = []
    for given in batch:
        try:
            if given.fault is not None:
                raise InvalidRowError(*given.fault)
            readable.append(_read(given, max_digits))
        except (InvalidRowError, ExpressionError) as error:
            screened.bad.append(_invalid_line(given.line, given.number, error))
    numbers: list[tuple[Any, ...]] = []
    nodes: list[tuple[Any, ...]] = []
    runs: list[tuple[Any, ...]] = []
    for one, small in zip(readable, small_primes_of([one.value for one in readable]), strict=True):
        try:
            tree = divide_known(one.value, small, one.divisors)
            _check_claims(one, tree)
        except InvalidRowError as error:
            screened.bad.append(_invalid_line(one.line, one.written, error))
            continue
        plain = all(leaf.is_prime is True for leaf in tree.leaves())
        numbers.append(_number_row(one, tree if plain else new_tree(one.value), plain))
        nodes += _tree_rows(one.line, tree) if plain else _divisor_rows(one.line, small, one.divisors)
        runs += [(one.line, *run) for run in one.runs]
    screened.bad.sort()
    screened.numbers, screened.nodes, screened.runs = _copy_text(numbers), _copy_text(nodes), _copy_text(runs)
    return screened


def _invalid_line(line: int, number: Any, error: Exception) -> InvalidLine:
    text = number if isinstance(number, str) else str(type(number).__name__)
    return InvalidLine(line, shorten(text), getattr(error, "reason", "invalid"), str(error))


# What was given ------------------------------------------------------------------------------------------------------


def _read(given: InputRow, max_digits: int) -> _Readable:
    """What was given of a number, as far as it can be believed without factoring it. Raises Unfit, ExpressionError."""
    more = None
    written = given.number
    if given.fields is not None or not isinstance(written, str):
        more = _validated(given)
        written = more.number
    if not written:
        raise InvalidRowError("malformed_number", "There is no number on this line")
    value = evaluate_number(written, max_digits)
    if more is None:
        return _Readable(given.line, written, value, None, [], [])
    divisors = [divisor for divisor in _divisors(written, value, more, max_digits) if 1 < divisor < value]
    return _Readable(given.line, written, value, more, divisors, _runs(more.prior_work))


def _validated(given: InputRow) -> GivenComposite:
    fields = given.fields or {}
    is_table = all(isinstance(value, str) for value in fields.values()) and isinstance(given.number, str)
    try:
        if is_table and not isinstance(given.fields, JsonFields):
            return GivenComposite.model_validate_strings(fields | {"number": given.number})
        return GivenComposite.model_validate({**fields, "number": given.number})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"])) or "number"
        said = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
        raise InvalidRowError("invalid", f"{name} {said}") from error


class JsonFields(dict[str, Any]):
    """Fields that were JSON: texts in it are no numbers."""


def _divisors(written: str, value: mpz, more: GivenComposite, max_digits: int) -> Iterator[mpz]:
    """The factors given, and what current_composite leaves over, each proved to divide the number."""
    for text in more.factors or []:
        divisor = evaluate(text, max_digits)
        if divisor < 1 or value % divisor:
            detail = f"{shorten(text)} does not divide {shorten(written)}; check that the factor belongs to this number"
            raise InvalidRowError("factor_does_not_divide", detail)
        yield divisor
    if more.current_composite is not None:
        left = evaluate(more.current_composite, max_digits)
        if left < 1 or value % left:
            detail = f"current_composite {shorten(more.current_composite)} does not divide {shorten(written)}"
            raise InvalidRowError("factor_does_not_divide", detail)
        if left > 1:
            yield value // left


def _runs(prior_work: str | None) -> list[tuple[int, int, int, int]]:
    """(B1, B2, parametrization, curves) of work done elsewhere, each bounds once, none without curves."""
    if prior_work is None or not prior_work.strip():
        return []
    return list(_parsed_runs(prior_work.strip()))


@lru_cache(1000)
def _parsed_runs(prior_work: str) -> tuple[tuple[int, int, int, int], ...]:
    t_level = None
    with contextlib.suppress(ValueError):
        t_level = float(prior_work.lstrip("tT"))
    try:
        if t_level is not None and not math.isfinite(t_level):
            raise ValueError(f"the t-level is {prior_work[:40]}: it must be a number")
        runs = effort.parse_curves(prior_work) if t_level is None else [effort.curves_of_t_level(t_level)]
        totals: dict[tuple[int, int, int], int] = {}
        for b1, b2, parametrization, curves in runs:
            totals[b1, b2, parametrization] = totals.get((b1, b2, parametrization), 0) + curves
        if any(curves > MAX_CURVES for curves in totals.values()):
            raise ValueError(f"there are more than {MAX_CURVES:,} curves at the same bounds")
    except ValueError as error:
        raise InvalidRowError("invalid", f"prior_work: {error}; or a t-level, such as 35") from error
    return tuple((*bounds, curves) for bounds, curves in sorted(totals.items()) if curves)


def _check_claims(one: _Readable, tree: Tree) -> None:
    """What was said to be finished must be, as far as it is known."""
    if one.more is None or not (one.more.is_prime or one.more.is_fully_factored):
        return
    left = [leaf.value for leaf in tree.leaves() if leaf.is_prime is False]
    if tree.cofactor > 1 and tree.cofactor_is_prime is False:
        left.append(tree.cofactor)
    if left:
        said = "is_fully_factored" if one.more.is_fully_factored else "is_prime"
        detail = f"{said} is given, but a composite part of {digit_count(left[0])} digits is left; give its factors"
        raise InvalidRowError("not_finished", detail)


# What is in it -------------------------------------------------------------------------------------------------------


def divide_known(number: mpz, small: Iterable[mpz], divisors: Iterable[mpz]) -> Tree:
    """The tree that using these small primes and divisors of a new number gives, with all that is small finished."""
    tree = new_tree(number)
    for prime in small:
        # As `refine` would, but for the work it does on every other part: there can be thousands of small primes.
        count, rest = multiplicity(tree.cofactor, prime)
        if rest < tree.cofactor and tree.cofactor != prime:
            tree.cofactor, tree.cofactor_is_prime = rest, None if rest > 1 else False
            tree.children.append(FactorNode(prime, count, True, origin=SPLIT, tested=True))
    pending = [(divisor, KNOWN) for divisor in divisors]
    while True:
        while pending:
            pending += [(value, SPLIT) for value in refine(tree, *pending.pop(0))]
        pending = [(value, SPLIT) for value in resolve(tree)]
        if not pending:
            return tree


# Rows for COPY -------------------------------------------------------------------------------------------------------

NUMBER_COLUMNS = (
    "line",
    "written",
    "written_sha256",
    "value_sha256",
    "cofactor",
    "cofactor_sha256",
    "plain",
    "digit_length",
    "is_prime",
    "finished",
    "priority",
    "has_snfs_form",
    "snfs_difficulty",
    "explicit_target",
    "target",
    "project",
    "t_level",
    "effort",
    *eligibility.Eligibility._fields,
)
NODE_COLUMNS = ("line", "place", "above", "factor", "factor_sha256", "digits", "multiplicity", "is_prime", "origin")
RUN_COLUMNS = ("line", "b1", "b2", "parametrization", "curves")


def _number_row(one: _Readable, tree: Tree, plain: bool) -> tuple[Any, ...]:
    text = decimal(one.value)
    value_sha256 = sha256(text)
    divided = tree.cofactor != one.value
    cofactor = decimal(tree.cofactor) if divided else text
    digits = digit_count(one.value if tree.finished or not divided else tree.cofactor)
    # A number with divisors is composite, whatever is known of them.
    is_prime = tree.cofactor_is_prime if plain else False
    more = one.more
    snfs = more and more.snfs_difficulty
    explicit = more and more.target_t_level
    wishes = _row_settings(digits, is_prime, tree.finished, snfs=snfs, explicit=explicit, runs=tuple(one.runs))
    return (
        one.line,
        one.written,
        sha256(one.written) if one.written != text else None,
        value_sha256,
        cofactor if cofactor != one.written else None,
        sha256(cofactor) if divided and tree.cofactor > 1 else None,
        plain,
        digits,
        is_prime,
        tree.finished,
        more and more.priority,
        more and more.has_snfs_form,
        snfs,
        explicit,
        wishes.target,
        more and more.project,
        wishes.t_level,
        wishes.vector,
        *wishes.columns,
    )


class _RowSettings(NamedTuple):
    """What numbers that are alike want: their target, t-level, vector (None: no effort) and demand columns."""

    target: float
    t_level: float
    vector: bytes | None
    columns: tuple[Any, ...]


@lru_cache(10_000)
def _row_settings(
    digits: int,
    is_prime: bool | None,
    finished: bool,
    *,
    snfs: int | None,
    explicit: float | None,
    runs: tuple[tuple[int, int, int, int], ...],
) -> _RowSettings:
    vector: np.ndarray = effort.effort_of(runs)
    target = effort.target_t_level(digits, snfs) if explicit is None else explicit
    inputs = eligibility.EligibilityInputs(vector, digits, is_prime, finished, target)
    columns = tuple(eligibility.compute_eligibility(inputs, []).values())
    stored = np.asarray(vector, dtype="<f8").tobytes() if runs else None
    return _RowSettings(target, effort.t_level(vector), stored, columns)


def _tree_rows(line: int, tree: Tree) -> Iterator[tuple[Any, ...]]:
    places: dict[int, int] = {}
    for place, (node, above) in enumerate(tree.all_nodes()):
        places[id(node)] = place
        yield _node_row(line, place, None if above is None else places[id(above)], node)


def _divisor_rows(line: int, small: list[mpz], divisors: list[mpz]) -> Iterator[tuple[Any, ...]]:
    """What a number is divided by once it stands in its table, as its parts need work of their own."""
    used = [FactorNode(value, origin=SPLIT) for value in small] + [
        FactorNode(value, origin=KNOWN) for value in divisors
    ]
    for place, node in enumerate(used):
        yield _node_row(line, place, None, node)


def _node_row(line: int, place: int, above: int | None, node: FactorNode) -> tuple[Any, ...]:
    text = decimal(node.value)
    digits = digit_count(node.value)
    return line, place, above, text, sha256(text), digits, node.multiplicity, node.is_prime, node.origin


def _copy_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows in PostgreSQL's text format of COPY."""
    return "".join("\t".join(map(_copy_value, row)) + "\n" for row in rows)


def _copy_value(value: Any) -> str:
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("\t", "\\t") if "\\" in value or "\t" in value else value
    if value is None:
        return "\\N"
    if isinstance(value, bytes):
        return "\\\\x" + value.hex()
    return str(value)
