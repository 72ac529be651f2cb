"""Statements about many rows at once: conditions, rows as parameters, updates to different values, and COPY."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from itertools import islice
from typing import Any, TypeVar

import orjson
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Table,
    TableValuedAlias,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute

Item = TypeVar("Item")
# The rows of one update. They are sent as text, and this many effort vectors are 3 MB.
BATCH = 2000


def is_one_of(column: InstrumentedAttribute[Any], ids: Collection[int]) -> ColumnElement[bool]:
    """Return the condition that a column has one of these ids, which are sent as one array, however many they are."""
    return column == any_(literal(list(ids), ARRAY(BigInteger)))


def is_in_list(column: ColumnElement[Any] | InstrumentedAttribute[Any], parameter: str = "ids") -> ColumnElement[bool]:
    """Return the condition that a column has one of the values in a parameter of the statement, a list."""
    return column == any_(bindparam(parameter, type_=ARRAY(column.type)))


def rows_of_arrays(table: Table, names: Sequence[str], alias: str = "new") -> TableValuedAlias:
    """Return a set of rows with these columns of a table; `arrays` makes the parameters of its statement.

    One statement thus serves any number of rows, and is compiled once. `alias` tells the sets of one statement apart.
    """
    parameters = (cast(bindparam(_parameter(alias, name)), ARRAY(table.c[name].type)) for name in names)
    rows = func.unnest(*parameters).table_valued(*(column(name, table.c[name].type) for name in names))
    return rows.render_derived(name=alias)


def arrays(rows: Sequence[Mapping[str, Any]], names: Sequence[str], alias: str = "new") -> dict[str, list[Any]]:
    """Return the parameters for `rows_of_arrays`: the values of these columns, a list for each.

    The driver gets the values of a list as they are, so those of JSON are converted here, and effort vectors with
    `models.types.effort_bytes` before.
    """
    return {_parameter(alias, name): [_plain(row[name]) for row in rows] for name in names}


def _plain(value: Any) -> Any:
    return orjson.dumps(value).decode() if isinstance(value, dict) else value


def _parameter(alias: str, name: str) -> str:
    # SQLAlchemy reserves the names of the columns themselves.
    return f"{alias}_{name}"


def update_rows(connection: Connection, table: Table, key: str, rows: Iterable[dict[str, Any]]) -> None:
    """Set the other columns in `rows` of the rows of a table that have these values in the column `key`.

    All rows name the same columns. Every BATCH rows are one statement.
    """
    for batch in batches(rows, BATCH):
        names = list(batch[0])
        values = [
            cast(literal([row[name] for row in batch], ARRAY(table.c[name].type)), ARRAY(table.c[name].type))
            for name in names
        ]
        new = func.unnest(*values).table_valued(*names).render_derived(name="new_values")
        changes = {name: new.c[name] for name in names if name != key}
        connection.execute(update(table).where(table.c[key] == new.c[key]).values(changes))


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield all items in lists of at most `size`."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def copy_into(connection: Connection, table: str, columns: Sequence[str], rows: str) -> None:
    """Insert rows, which `copy_text` made, into these columns of a table."""
    cursor: Any = connection.connection.cursor()  # psycopg2's, which knows COPY
    cursor.copy_expert(f"COPY {table} ({', '.join(columns)}) FROM STDIN", StringIO(rows))
    cursor.close()


def copy_text(rows: Iterable[Sequence[Any]]) -> str:
    """Return these rows as text that COPY reads."""
    return "".join("\t".join(map(_copy_value, row)) + "\n" for row in rows)


def _copy_value(value: Any) -> str:
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("\t", "\\t") if "\\" in value or "\t" in value else value
    if value is None:
        return "\\N"
    if isinstance(value, bytes):
        return "\\\\x" + value.hex()
    return str(value)
