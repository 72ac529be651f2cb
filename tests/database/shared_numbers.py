"""Numbers with the same cofactor: to register them, tell their factors, upload residues, and read what they show."""

import secrets
from typing import Any

from pipeline import composite
from primes import prime
from sqlalchemy import Engine

from coordinator.administration import edits
from coordinator.base.audit import OPERATOR
from coordinator.composites import registry
from coordinator.numbers.expressions import evaluate_number
from coordinator.residues import uploads
from coordinator.residues.save_files import SaveFile

SHARED = prime(60) * prime(61)  # the unfinished part that several numbers have
SMALL, OTHER = prime(20), prime(21)
MAX_DIGITS = 10_000


def register(engine: Engine, *numbers: int, is_prime: bool | None = False) -> None:
    """Register numbers, of whose cofactors this is known."""
    with engine.begin() as connection:
        for number in numbers:
            registry.register(connection, str(number), evaluate_number(str(number), MAX_DIGITS), is_prime=is_prime)


def know(engine: Engine, number: int, *factors: int) -> None:
    """Record factors that an operator knows."""
    known = [str(factor) for factor in factors]
    edits.add_known_factors(engine, OPERATOR, str(number), known, edits.Provenance(None, None), max_digits=MAX_DIGITS)


def register_two(engine: Engine) -> tuple[int, int]:
    """Register two numbers whose cofactor is SHARED: 20 digits times it, and 21 digits times it."""
    one, two = SMALL * SHARED, OTHER * SHARED
    register(engine, one, two)
    know(engine, one, SMALL)
    know(engine, two, OTHER)
    return one, two


def upload(engine: Engine, number: int, attempt_id: int | None = None, curves: int = 100) -> Any:
    """Register residues of stage 1 of curves on a number, and return their row."""
    return uploads.register_upload(
        engine,
        "alice",
        SaveFile(int(number), 50_000, 3, curves, secrets.token_bytes(32), 12_345),
        f"{secrets.token_hex(8)}.save",
        stage1_attempt_id=attempt_id,
        expiry_days=30,
        max_digits=MAX_DIGITS,
    ).residue


def level(engine: Engine, number: int) -> float:
    """Return the t-level that a number shows."""
    shown: float = composite(engine, str(number)).current_t_level
    return shown


def target_of(engine: Engine, number: int) -> int:
    """Return the id of the target that a number points to."""
    target_id: int = composite(engine, str(number)).target_id
    return target_id
