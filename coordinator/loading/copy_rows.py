"""Rows for the staging tables of coordinator/loading/staging.py, in PostgreSQL's text format of COPY."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from gmpy2 import mpz

from coordinator import effort
from coordinator.composites import eligibility
from coordinator.composites.values import sha256
from coordinator.loading.row_parsing import ParsedRow
from coordinator.numbers.arithmetic import SPLIT_AT_ONCE_DIGITS, digit_count
from coordinator.numbers.expressions import decimal
from coordinator.numbers.factor_tree import FactorNode, Tree

NUMBER_COLUMNS = (
    "line",
    "written",
    "written_sha256",
    "value_sha256",
    "cofactor",
    "cofactor_sha256",
    "undivided_sha256",
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
NODE_COLUMNS = (
    "line",
    "place",
    "parent_place",
    "factor",
    "factor_sha256",
    "digits",
    "multiplicity",
    "is_prime",
    "origin",
    "is_divisor",
)
RUN_COLUMNS = ("line", "b1", "b2", "parametrization", "curves")


def number_row(row: ParsedRow, tree: Tree, plain: bool, undivided: mpz | None = None) -> tuple[Any, ...]:
    """A row of `incoming`, by NUMBER_COLUMNS. `plain`: `tree` is the final factorization, and no part needs work.

    `undivided` is what the trial division left of a number before the factors of the list were divided out.
    """
    text = decimal(row.value)
    value_sha256 = sha256(text)
    divided = tree.cofactor != row.value
    cofactor = decimal(tree.cofactor) if divided else text
    digits = digit_count(row.value if tree.finished or not divided else tree.cofactor)
    # A number with divisors is composite, whether or not the divisors are prime.
    is_prime = tree.cofactor_is_prime if plain else False
    fields = row.fields
    snfs = fields and fields.snfs_difficulty
    explicit = fields and fields.target_t_level
    derived = _derived_columns(digits, is_prime, tree.finished, snfs=snfs, explicit=explicit, runs=tuple(row.runs))
    return (
        row.line,
        row.written,
        sha256(row.written) if row.written != text else None,
        value_sha256,
        cofactor if cofactor != row.written else None,
        sha256(cofactor) if divided and tree.cofactor > 1 else None,
        sha256(decimal(undivided)) if undivided is not None and _may_need_work(undivided) else None,
        plain,
        digits,
        is_prime,
        tree.finished,
        fields and fields.priority,
        fields and fields.has_snfs_form,
        snfs,
        explicit,
        derived.target,
        fields and fields.project,
        derived.t_level,
        derived.vector,
        *derived.columns,
    )


def _may_need_work(value: mpz) -> bool:
    """Whether a number can have this as its unfinished part: smaller values are split as soon as they are known."""
    return digit_count(value) > SPLIT_AT_ONCE_DIGITS


class _DerivedColumns(NamedTuple):
    """The columns that numbers of the same size and prior work share; `vector` is None without effort."""

    target: float
    t_level: float
    vector: bytes | None
    columns: tuple[Any, ...]


@lru_cache(10_000)
def _derived_columns(
    digits: int,
    is_prime: bool | None,
    finished: bool,
    *,
    snfs: int | None,
    explicit: float | None,
    runs: tuple[tuple[int, int, int, int], ...],
) -> _DerivedColumns:
    vector: np.ndarray = effort.effort_of(runs)
    target = effort.target_t_level(digits, snfs, explicit)
    inputs = eligibility.EligibilityInputs(vector, digits, is_prime, finished, target)
    columns = tuple(eligibility.compute_eligibility(inputs, []).values())
    stored = np.asarray(vector, dtype="<f8").tobytes() if runs else None
    return _DerivedColumns(target, effort.t_level(vector), stored, columns)


def tree_rows(line: int, tree: Tree) -> Iterator[tuple[Any, ...]]:
    """Rows of `incoming_nodes` for a factorization, by NODE_COLUMNS; parents come first."""
    places: dict[int, int] = {}
    for place, (node, parent) in enumerate(tree.all_nodes()):
        places[id(node)] = place
        yield _node_row(line, place, None if parent is None else places[id(parent)], node)


def divisor_rows(line: int, divisors: list[mpz], origin: str) -> Iterator[tuple[Any, ...]]:
    """Rows of the divisors that coordinator/loading/upsert.py uses on a number whose parts need work of their own."""
    for place, value in enumerate(divisors):
        yield _node_row(line, place, None, FactorNode(value, origin=origin), is_divisor=True)


def _node_row(
    line: int, place: int, parent_place: int | None, node: FactorNode, *, is_divisor: bool = False
) -> tuple[Any, ...]:
    text = decimal(node.value)
    digits = digit_count(node.value)
    row = line, place, parent_place, text, sha256(text), digits, node.multiplicity, node.is_prime, node.origin
    return *row, is_divisor
