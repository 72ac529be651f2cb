"""The output of commands: tables for people, JSON for programs."""

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # a command's --help needs neither
    from rich.table import Table

# Without a terminal there is no line width to keep to: wide enough for every column.
UNBOUNDED_WIDTH = 240


def print_json(value: Any) -> None:
    """Print `value` as indented JSON; times and ids become strings."""
    # Not orjson: it refuses integers past 64 bits, and a B2 may be one.
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_text))


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def table_of(*titles: str) -> "Table":
    """Return a table with these columns, those with ">" right-aligned; the first is never cut."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, title in enumerate(titles):
        right = title.startswith(">")
        table.add_column(title.lstrip(">"), justify="right" if right else "left", no_wrap=place == 0, overflow="fold")
    return table


def add_row(table: "Table", *cells: str) -> None:
    """Add a row of plain text to `table`."""
    from rich.text import Text

    # As Text, because "[red]" in the name of a client is no colour.
    table.add_row(*map(Text, cells))


def print_table(table: "Table") -> None:
    """Print `table` as wide as the terminal, or UNBOUNDED_WIDTH without one."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = UNBOUNDED_WIDTH
    console.print(table)
