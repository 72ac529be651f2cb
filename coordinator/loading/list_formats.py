"""Lists of numbers as files: plain text with a number on each line, or CSV with a header, read line by line.

Both formats skip blank lines and lines that begin with #. An error in one line is returned with that line; an error of
the whole file (compressed, another encoding, no header) raises ListError.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

COLUMNS = (
    "number",
    "current_composite",
    "factors",
    "has_snfs_form",
    "snfs_difficulty",
    "priority",
    "is_prime",
    "is_fully_factored",
    "target_t_level",
    "prior_work",
    "project",
)
SYNONYMS = {"composite": "number", "project_name": "project"}
DELIMITERS = ",;\t"
TABLE_ENDINGS = (".csv", ".tsv")
ARCHIVE_SIGNATURES = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"7z\xbc\xaf": "a 7z archive",
}
UTF8_BOM, UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class ListError(ValueError):
    """The file is not a list of numbers; `reason` is a word for programs, the message a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class RowError(NamedTuple):
    """Why a line is not loaded: a word for programs and a sentence for people."""

    reason: str
    message: str


class InputRow(NamedTuple):
    """One number of a list: its line (from 1), the number as it is written, its further fields, or its error.

    The fields of a table are texts; those of JSON (JsonFields) are values.
    """

    line: int
    number: Any
    fields: dict[str, Any] | None = None
    error: RowError | None = None


class JsonFields(dict[str, Any]):
    """Fields from JSON: a text in them is not converted to a number or a truth value."""


@dataclass
class ParsedList:
    """A list that is being read: its numbers in order, and the names of the columns that are ignored."""

    numbers: Iterator[InputRow]
    ignored_columns: list[str] = field(default_factory=list)


def read_list(stream: BinaryIO, name: str, longest_line: int) -> ParsedList:
    """Read the numbers of a text or CSV file; it is CSV if its first line names a column `number`.

    Only the ending of `name` matters. A line of more than `longest_line` bytes gives an error for that line. Memory
    holds one line at a time. Raises ListError, also while the caller iterates over the numbers.
    """
    lines = _lines(stream, longest_line)
    head: list[tuple[int, bytes | None]] = []
    for number, raw in lines:
        line = raw
        if number == 1 and raw is not None:
            _refuse_encoded(raw)
            line = raw.removeprefix(UTF8_BOM)
        head.append((number, line))
        if not _is_blank(line):
            break
    rest = chain(head, lines)
    if head and head[-1][1] is not None:
        first = head[-1][1].decode("utf-8", "replace").strip()
        if first[:1] in ("{", "["):
            raise ListError("is_json", "The file is JSON; send it as the body of /admin/composites/bulk-structured")
        if delimiter := _delimiter(first):
            return _table(rest, delimiter)
    if name.lower().endswith(TABLE_ENDINGS):
        detail = "The file has no header line; its first line should name the columns, `number` among them"
        raise ListError("no_header", detail)
    return ParsedList(_text_rows(rest))


def _refuse_encoded(beginning: bytes) -> None:
    for signature, format_name in ARCHIVE_SIGNATURES.items():
        if beginning.startswith(signature):
            raise ListError("is_compressed", f"The file is {format_name}; unpack it and send the list in it")
    if beginning.startswith(UTF16_BOMS):
        raise ListError("not_utf8", "The file is UTF-16; save it as UTF-8")


def _lines(stream: BinaryIO, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line number from 1, the line without its end, or None if it is too long); a lone \\r also ends a line."""
    number = 0
    while raw := stream.readline(longest + 2):
        if len(raw) > longest and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(65536)
            number += 1
            yield number, None
            continue
        for line in raw.rstrip(b"\r\n").split(b"\r"):
            number += 1
            yield number, line


def _is_blank(line: bytes | None) -> bool:
    return line is not None and (not line.strip() or line.lstrip().startswith(b"#"))


def _decode(lines: Iterable[tuple[int, bytes | None]]) -> Iterator[tuple[int, str, RowError | None]]:
    for number, line in lines:
        if line is None:
            yield number, "", RowError("line_too_long", "The line is longer than any number taken (MAX_DIGITS)")
        elif not _is_blank(line):
            try:
                yield number, line.decode("utf-8"), None
            except UnicodeDecodeError:
                text = line[:100].decode("utf-8", "replace")
                yield number, text, RowError("not_utf8", "The line is not UTF-8 text")


def _text_rows(lines: Iterable[tuple[int, bytes | None]]) -> Iterator[InputRow]:
    for number, text, error in _decode(lines):
        yield InputRow(number, text.strip(), None, error)


def _cells(text: str, delimiter: str) -> list[str]:
    # One line at a time, so that a quote that is not closed spoils only its own line.
    (cells,) = csv.reader([text], delimiter=delimiter, strict=True, skipinitialspace=True)
    return [cell.strip() for cell in cells]


def _column_name(cell: str) -> str:
    name = cell.strip().lower().replace(" ", "_").replace("-", "_")
    return SYNONYMS.get(name, name)


def _delimiter(first: str) -> str | None:
    """The delimiter with which this line names a column `number`, or None."""
    for delimiter in DELIMITERS:
        try:
            if "number" in map(_column_name, _cells(first, delimiter)):
                return delimiter
        except csv.Error:
            continue
    return None


def _table(lines: Iterator[tuple[int, bytes | None]], delimiter: str) -> ParsedList:
    rows = _decode(lines)
    _, header, header_error = next(rows)
    if header_error is not None:
        raise ListError(header_error.reason, "The header line is not UTF-8 text; save the file as UTF-8")
    columns = [_column_name(cell) for cell in _cells(header, delimiter)]
    duplicates = {column for column in columns if column in COLUMNS and columns.count(column) > 1}
    if duplicates:
        raise ListError("column_twice", f"The header has the column {min(duplicates)} twice; leave one out")
    ignored = [column[:60] for column in columns if column and column not in COLUMNS]
    return ParsedList(_table_rows(rows, columns, delimiter), ignored[:100])


def _table_rows(
    rows: Iterator[tuple[int, str, RowError | None]], columns: list[str], delimiter: str
) -> Iterator[InputRow]:
    csv.field_size_limit(2**31 - 1)  # lines are bounded already
    for line, text, line_error in rows:
        if line_error is not None:
            yield InputRow(line, text, None, line_error)
            continue
        try:
            cells = _cells(text, delimiter)
        except csv.Error as error:
            yield InputRow(line, text, None, RowError("malformed_line", f"The line cannot be read as CSV: {error}"))
            continue
        if len(cells) > len(columns):
            detail = f"The line has {len(cells)} cells; the header names {len(columns)}"
            yield InputRow(line, text, None, RowError("malformed_line", detail))
            continue
        fields = {column: cell for column, cell in zip(columns, cells, strict=False) if cell and column in COLUMNS}
        yield InputRow(line, fields.pop("number", ""), fields)
