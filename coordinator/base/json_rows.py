"""Rows of several queries in one row: a client waits for one statement instead of one for each query."""

from typing import Any

from sqlalchemy import JSON, Select, func, literal_column, select
from sqlalchemy.sql.elements import Label


def json_rows(query: Select[Any], name: str = "rows") -> Label[list[list[Any]]]:
    """Return SQL for the rows of `query` as one column `name`: a JSON array with an array for each row.

    The columns are numbers, texts, booleans or null.
    """
    rows = query.subquery(name)
    as_array = func.json_agg(func.json_build_array(*rows.c))
    whole = func.coalesce(as_array, literal_column("'[]'::json"), type_=JSON)
    return select(whole).select_from(rows).scalar_subquery().label(name)
