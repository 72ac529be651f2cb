"""GMP-ECM's save files: the points after stage 1, one record per curve, checked as GMP-ECM checks them.

A record is a row of `TAG=value;`, on one line or, from older programs, on several lines. Prime95 writes
`N=...; QX=...; SIGMA=...;` without a B1 and without a checksum. The checksum (GMP-ECM's resume.c) is

    B1 * sigma * N * X * (param + 1)  mod 4294967291

where each factor is reduced first, and the last factor is left out if the record has no PARAM.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import BinaryIO

from gmpy2 import mpz

from coordinator.numbers.expressions import ExpressionError, evaluate_number, shorten
from models.limits import MAX_B1, MIN_B1

CHECKSUM_MODULUS = 4294967291
PARAMETRIZATIONS = range(4)
# Characters that a line may have beside its numbers: tags, names of programs and machines, the time.
OTHER_CHARACTERS = 4096
_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z_0-9]*)\s*=\s*(.*?)\s*", re.DOTALL)
_DECIMAL, _HEXADECIMAL = re.compile(r"[0-9]+"), re.compile(r"0[xX][0-9a-fA-F]+")
TAGS = ("METHOD", "PARAM", "SIGMA", "B1", "N", "X", "QX", "CHECKSUM", "A")


class SaveFileError(Exception):
    """A file is no save file, or is damaged; the message names the line and its fault."""


@dataclass(frozen=True)
class SaveFile:
    """The number, B1 and parametrization that all curves of a file share, their count, its SHA-256 and its bytes."""

    number: mpz
    b1: int
    parametrization: int
    curves: int
    sha256: bytes
    size: int


@dataclass
class _Record:
    line: int
    tags: dict[str, str] = field(default_factory=dict)


def read_save_file(
    file: BinaryIO,
    *,
    max_digits: int,
    b1: int | None = None,
    keep: Callable[[bytes], object],
    check_number: Callable[[mpz], object] = lambda number: None,
) -> SaveFile:
    """Read and check a save file, and pass every line of it to `keep`. `b1` is used for records without a B1.

    `check_number` gets N once it is read, and may raise: the rest of a file for an unknown number need not be read.
    Holds at most one record and the sigmas of all curves in memory. Raises SaveFileError.
    """
    digest = hashlib.sha256()
    size = 0

    def pieces() -> Iterator[tuple[int, str]]:
        nonlocal size
        # N may be written as an expression that is longer than its value; X is never longer than N.
        longest = 4 * max_digits + OTHER_CHARACTERS
        line_number = 0
        while line := file.readline(longest + 1):
            line_number += 1
            digest.update(line)
            size += len(line)
            keep(line)
            if len(line) > longest:
                raise SaveFileError(f"Line {line_number} is longer than {longest:,} characters; this is no save file")
            try:
                yield line_number, line.decode("ascii")
            except UnicodeDecodeError:
                raise SaveFileError(f"Line {line_number} is no text; send the file that ecm -save wrote") from None

    checker = _CurveChecker(max_digits, b1, check_number)
    for record in _records(pieces()):
        checker.add(record)
    return checker.save_file(digest.digest(), size)


def _records(lines: Iterator[tuple[int, str]]) -> Iterator[_Record]:
    """Yield the file's records; a record begins with METHOD, or with a tag that the record before it already has."""
    record = _Record(1)
    for line, text in lines:
        if text.lstrip().startswith("#"):
            continue
        for token in re.split(r"[;\r\n]+", text):
            if not token.strip():
                continue
            match = _TOKEN.fullmatch(token)
            if not match:
                raise SaveFileError(f"Line {line}: {token.strip()[:60]!r} is no TAG=value")
            tag = match[1].upper()
            if record.tags and (tag == "METHOD" or tag in record.tags):
                yield record
                record = _Record(line)
            if not record.tags:
                record.line = line
            if tag in TAGS:
                record.tags[tag] = match[2]
    if record.tags:
        yield record


class _CurveChecker:
    """Checks record after record, and that each has the same number, B1 and parametrization as the first."""

    def __init__(self, max_digits: int, b1: int | None, check_number: Callable[[mpz], object]) -> None:
        self._max_digits, self._b1, self._check_number = max_digits, b1, check_number
        self._written: tuple[str, mpz] | None = None
        self._first: tuple[mpz, int, int] | None = None
        self._sigmas: dict[mpz, int] = {}

    def add(self, record: _Record) -> None:
        tags, line = record.tags, record.line
        is_prime95 = "QX" in tags and "X" not in tags
        if not is_prime95 and "METHOD" not in tags:
            raise SaveFileError(f"Line {line}: METHOD is missing; every curve begins with METHOD=ECM")
        if tags.get("METHOD", "ECM").upper() != "ECM":
            raise SaveFileError(f"Line {line}: METHOD is {tags['METHOD'][:20]!r}; only curves (ECM) have residues here")
        required = ("N", "QX", "SIGMA") if is_prime95 else ("N", "X", "SIGMA", "B1", "CHECKSUM")
        for tag in required:
            if tag not in tags:
                raise SaveFileError(f"Line {line}: {tag} is missing; the line may have been cut off")
        number = self._number(tags["N"], line)
        sigma = _integer(tags["SIGMA"], "SIGMA", line)
        residue = _integer(tags["QX" if is_prime95 else "X"], "X", line)
        parametrization = int(_integer(tags.get("PARAM", "0"), "PARAM", line))
        if parametrization not in PARAMETRIZATIONS:
            raise SaveFileError(f"Line {line}: PARAM is {tags['PARAM'][:20]}; it should be 0, 1, 2 or 3")
        b1 = self._b1_of(tags.get("B1"), line)
        if "CHECKSUM" in tags:
            stated = _integer(tags["CHECKSUM"], "CHECKSUM", line)
            correct = _checksum(b1, sigma, number, residue, parametrization if "PARAM" in tags else None)
            if stated != correct:
                raise SaveFileError(
                    f"Line {line}: CHECKSUM is {stated}, the line's numbers give {correct}; it is damaged"
                )
        self._compare((number, b1, parametrization), line)
        if sigma in self._sigmas:
            raise SaveFileError(f"Line {line}: this curve (SIGMA={sigma}) is on line {self._sigmas[sigma]} already")
        self._sigmas[sigma] = line

    def save_file(self, sha256: bytes, size: int) -> SaveFile:
        if self._first is None:
            raise SaveFileError("There is no curve in the file; send what ecm -save wrote")
        return SaveFile(*self._first, len(self._sigmas), sha256, size)

    def _number(self, written: str, line: int) -> mpz:
        if self._written is None:
            self._written = written, _evaluate(written, line, self._max_digits)
            self._check_number(self._written[1])
        first, number = self._written
        if written == first:
            return number
        # All records have the same number, so its expression is evaluated once, whatever the others say.
        if _DECIMAL.fullmatch(written) or _HEXADECIMAL.fullmatch(written):
            return _evaluate(written, line, self._max_digits)
        raise SaveFileError(
            f"Line {line}: N is {shorten(written)}, and {shorten(first)} in the first line; all curves of a file have"
            " the same N, in the same spelling or in decimal"
        )

    def _b1_of(self, written: str | None, line: int) -> int:
        if written is None:
            if self._b1 is None:
                raise SaveFileError(f"Line {line}: B1 is missing, as in Prime95's files; send it with the file (?b1=)")
            return self._b1
        try:
            value = Decimal(written)
        except InvalidOperation:
            value = Decimal("NaN")
        if not value.is_finite() or not MIN_B1 <= value <= MAX_B1 or value != int(value):
            raise SaveFileError(
                f"Line {line}: B1 is {written[:30]!r}; it should be an integer from {MIN_B1} to {MAX_B1}"
            )
        return int(value)

    def _compare(self, common: tuple[mpz, int, int], line: int) -> None:
        if self._first is None:
            self._first = common
        for name, here, first in zip(("N", "B1", "PARAM"), common, self._first, strict=True):
            if here != first:
                values = f"{shorten(str(here))}, and {shorten(str(first))} in the first"
                raise SaveFileError(f"Line {line}: {name} is {values}; all curves of a file have the same")


def _evaluate(written: str, line: int, max_digits: int) -> mpz:
    if _HEXADECIMAL.fullmatch(written):
        value = mpz(written[2:], 16)
        if value > 1 and value.num_digits(10) <= max_digits + 1:
            return value
        raise SaveFileError(f"Line {line}: N should be a number above 1 of at most {max_digits:,} digits")
    try:
        return evaluate_number(written, max_digits)
    except ExpressionError as error:
        raise SaveFileError(f"Line {line}: N cannot be read: {error.detail}") from error


def _integer(written: str, tag: str, line: int) -> mpz:
    if _HEXADECIMAL.fullmatch(written):
        return mpz(written[2:], 16)
    if _DECIMAL.fullmatch(written):
        return mpz(written)
    raise SaveFileError(f"Line {line}: {tag} is {shorten(written)!r}, which is no integer; the line may be damaged")


def _checksum(b1: int, sigma: mpz, number: mpz, residue: mpz, parametrization: int | None) -> int:
    product = b1 % CHECKSUM_MODULUS
    for part in (sigma, number, residue, 1 if parametrization is None else parametrization + 1):
        product = product * int(part % CHECKSUM_MODULUS) % CHECKSUM_MODULUS
    return product
