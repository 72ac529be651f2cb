"""The keys of PostgreSQL's advisory locks: all in one module, and no two alike."""

import re
from pathlib import Path

import pytest

from coordinator.base import advisory_locks

ROOT = Path(__file__).parents[2]
PACKAGES = ("agent", "bench", "config", "coordinator", "ingest", "models", "tasks")
# The key of migrations is apart, because models/ cannot import coordinator/.
DEFINING_MODULES = ("coordinator/base/advisory_locks.py", "models/migration_lock.py")
KEY_ASSIGNMENT = re.compile(r"^([A-Z][A-Z_]*_LOCK)\b[^=\n]*=", re.MULTILINE)
NUMBER = r"(?:0[xX][0-9a-fA-F_]+|\d[\d_]*)"
LOCK_CALL = re.compile(r"pg_(?:try_)?advisory_(?:xact_)?(?:un)?lock(?:_shared)?\w*\(\s*(?:'?" + NUMBER + r")")
HEXADECIMAL = re.compile(r"^[A-Z_]+\s*(?::[^=\n]*)?=\s*0[xX][0-9a-fA-F_]+", re.MULTILINE)


def modules_with(pattern: re.Pattern[str]) -> set[str]:
    """Return the project's modules whose text has the pattern, as paths relative to its root."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix() for path in paths if pattern.search(path.read_text())}


def test_the_keys_are_distinct_and_complete():
    keys = {name: value for name, value in vars(advisory_locks).items() if name.endswith("_LOCK")}
    assert len(keys) >= 5
    assert len(set(keys.values())) == len(keys)
    assert sorted(advisory_locks.ALL) == sorted(keys.values())


def test_the_keys_are_integers_of_the_kind_that_postgresql_takes():
    # The two-key functions take 32-bit integers.
    assert all(0 < key < 2**31 for key in advisory_locks.ALL)


def test_no_other_module_defines_a_key():
    assert modules_with(KEY_ASSIGNMENT) == set(DEFINING_MODULES)
    assert modules_with(HEXADECIMAL) <= set(DEFINING_MODULES)


def test_no_statement_has_a_key_as_a_literal_number():
    assert modules_with(LOCK_CALL) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_advisory_xact_lock(1234)",
        "SELECT pg_try_advisory_lock( 0x4A, :id)",
        "func.pg_advisory_unlock(7_000, 1)",
        "SELECT pg_advisory_xact_lock_shared('42')",
    ],
)
def test_a_literal_key_is_recognized(statement):
    assert LOCK_CALL.search(statement)
