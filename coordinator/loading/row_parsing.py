"""Reading one line of a list: its number, and the fields that come with it.

Pure computation. A factor of the list is trusted only because it divides the number.
"""

import contextlib
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from gmpy2 import mpz
from pydantic import ValidationError

from coordinator import effort
from coordinator.loading.list_formats import InputRow, JsonFields
from coordinator.numbers.expressions import evaluate, evaluate_number, shorten
from models.limits import MAX_CURVES
from models.wire.loading import GivenComposite


class InvalidRowError(ValueError):
    """A line of the list is invalid; `reason` is a word for programs, the message a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ParsedRow(NamedTuple):
    """A line with a number: as it is written, its value, its fields, divisors of it, and its prior work.

    `runs` are (B1, B2, parametrization, curves).
    """

    line: int
    written: str
    value: mpz
    fields: GivenComposite | None
    divisors: list[mpz]
    runs: list[tuple[int, int, int, int]]


def parse_row(row: InputRow, max_digits: int) -> ParsedRow:
    """Compute a line's number and check what can be checked without factoring it.

    Raises InvalidRowError, ExpressionError.
    """
    fields = None
    written = row.number
    if row.fields is not None or not isinstance(written, str):
        fields = _parse_fields(row)
        written = fields.number
    if not written:
        raise InvalidRowError("malformed_number", "There is no number on this line")
    value = evaluate_number(written, max_digits)
    if fields is None:
        return ParsedRow(row.line, written, value, None, [], [])
    divisors = [divisor for divisor in _divisors(written, value, fields, max_digits) if 1 < divisor < value]
    return ParsedRow(row.line, written, value, fields, divisors, _runs(fields.prior_work))


def _parse_fields(row: InputRow) -> GivenComposite:
    fields = row.fields or {}
    is_table = all(isinstance(value, str) for value in fields.values()) and isinstance(row.number, str)
    try:
        if is_table and not isinstance(row.fields, JsonFields):
            return GivenComposite.model_validate_strings(fields | {"number": row.number})
        return GivenComposite.model_validate({**fields, "number": row.number})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"])) or "number"
        message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
        raise InvalidRowError("invalid", f"{name} {message}") from error


def _divisors(written: str, value: mpz, fields: GivenComposite, max_digits: int) -> Iterator[mpz]:
    """Yield the given factors, and the number divided by current_composite.

    Raises InvalidRowError if one of them does not divide the number.
    """
    for text in fields.factors or []:
        divisor = evaluate(text, max_digits)
        if divisor < 1 or value % divisor:
            detail = f"{shorten(text)} does not divide {shorten(written)}; check that the factor belongs to this number"
            raise InvalidRowError("factor_does_not_divide", detail)
        yield divisor
    if fields.current_composite is not None:
        left = evaluate(fields.current_composite, max_digits)
        if left < 1 or value % left:
            detail = f"current_composite {shorten(fields.current_composite)} does not divide {shorten(written)}"
            raise InvalidRowError("factor_does_not_divide", detail)
        if left > 1:
            yield value // left


def _runs(prior_work: str | None) -> list[tuple[int, int, int, int]]:
    """Prior work as (B1, B2, parametrization, curves): each setting once, and none without curves."""
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
