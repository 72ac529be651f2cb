"""Files of factors: CSV for spreadsheets, NDJSON for programs."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Row

from models.wire.reading import FactorListed

FORMATS = ("csv", "ndjson")
CONTENT_TYPES = {"csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}
COLUMNS = tuple(FactorListed.model_fields)
# Spreadsheets take cells with these first characters for formulas, unless after an apostrophe (OWASP, CSV Injection).
FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r")


def lines(batches: Iterable[list[Row[Any]]], form: str) -> Iterator[str]:
    """Yield the text of a file in pieces, from batches of rows of coordinator.reading.factors; `form` is in FORMATS."""
    if form == "ndjson":
        for batch in batches:
            yield "".join(f"{FactorListed.model_validate(row._mapping).model_dump_json()}\n" for row in batch)
        return
    yield _csv([COLUMNS])
    for batch in batches:
        listed = (FactorListed.model_validate(row._mapping).model_dump(mode="json") for row in batch)
        yield _csv([_cell(one[name]) for name in COLUMNS] for one in listed)


def _csv(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Numbers may be negative (a B2 of -1); only strings can be formulas.
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA_BEGINNINGS) else value
    return "" if value is None else str(value)
