"""Column types: times with a time zone, effort vectors, and bounds beyond bigint. Row types for annotations."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
from sqlalchemy import DateTime, Dialect, LargeBinary, Numeric, Row
from sqlalchemy.types import TypeDecorator

# A row of a query whose columns are not declared to the type checker.
AnyRow = Row[*tuple[Any, ...]]

_NO_EFFORT = np.zeros(91)
_NO_EFFORT.flags.writeable = False


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware time, read as UTC. Raises ValueError for a naive one before it reaches the database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; times are timezone-aware UTC here")
        return value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None else value.astimezone(UTC)


def effort_bytes(vector: np.ndarray) -> bytes:
    """Return an effort vector as it is stored: 728 little-endian bytes, or none for a vector of zeros."""
    return np.asarray(vector, dtype="<f8").tobytes() if np.any(vector) else b""


class EffortVector(TypeDecorator[np.ndarray]):
    """The 91 doubles of a composite's effort (docs/effort.md), stored as 728 little-endian bytes.

    A vector of zeros is stored as no bytes, which halves the rows of numbers that were just loaded.
    """

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: np.ndarray | None, dialect: Dialect) -> bytes | None:
        return None if value is None else effort_bytes(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> np.ndarray | None:
        return None if value is None else np.frombuffer(bytes(value), dtype="<f8") if value else _NO_EFFORT


class StageBound(TypeDecorator[int]):
    """A stage bound: B2 reaches 1e21, past PostgreSQL's bigint."""

    impl = Numeric(22, 0)
    cache_ok = True

    def process_result_value(self, value: Decimal | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value)
