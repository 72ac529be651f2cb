"""Databases of revision 0011, in which effort and work belonged to composites, written row by row."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from coordinator import effort
from coordinator.composites.values import sha256
from coordinator.numbers.arithmetic import is_probable_prime

OLD_REVISION = "0011"


@dataclass
class OldNumber:
    """A number of an old database: its value, its cofactor, and all values that it has had."""

    id: int
    value: int
    cofactor: int
    parent: "OldNumber | None" = None
    had: list[int] = field(default_factory=list)


@dataclass
class OldRun:
    """An attempt of an old database, with the value that it was really run on."""

    id: int
    number: OldNumber
    value: int
    curves: int


class OldDatabase:
    """Writes an old database over a connection, and remembers what it should become."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.numbers: list[OldNumber] = []
        self.runs: list[OldRun] = []

    def add_number(
        self,
        value: int,
        *factors: int,
        written: str | None = None,
        tested: bool = True,
        parent: OldNumber | None = None,
        values_between: tuple[int, ...] = (),
        **columns: Any,
    ) -> OldNumber:
        """Insert a number that prime factors were found of; `values_between` are earlier cofactors, largest first."""
        cofactor = value
        for factor in factors:
            cofactor //= factor
        is_prime = cofactor > 1 and is_probable_prime(cofactor)
        is_finished = cofactor == 1 or bool(is_prime)
        digits = len(str(value if is_finished else cofactor))
        row = {
            "number": written or str(value),
            "value_sha256": sha256(str(value)),
            "current_composite": str(cofactor),
            "digit_length": digits,
            "is_prime": (is_prime or None) if is_finished or not tested else False,
            "is_fully_factored": is_finished,
            "parent_id": parent and parent.id,
            "target_t_level": effort.target_t_level(digits),
            "effort": np.zeros(91).tobytes(),
        } | columns
        new_id = self._insert("composites", row)
        number = OldNumber(new_id, value, cofactor, parent, [value, *values_between])
        aliases = {sha256(str(value)): "number", sha256(row["number"]): "number"}
        aliases |= {sha256(str(between)): "cofactor" for between in values_between}
        if cofactor not in (1, value):
            number.had.append(cofactor)
            aliases[sha256(str(cofactor))] = "cofactor"
        for alias, kind in aliases.items():
            self._insert(
                "composite_aliases", {"value_sha256": alias, "composite_id": new_id, "kind": kind}, returning="kind"
            )
        for factor in factors:
            self.add_factor(number, factor)
        self.numbers.append(number)
        return number

    def add_factor(self, number: OldNumber, factor: int, child: OldNumber | None = None) -> None:
        """Insert a factor of a number; a composite one has a number of its own, its `child`."""
        row = {
            "composite_id": number.id,
            "factor": str(factor),
            "factor_sha256": sha256(str(factor)),
            "digit_length": len(str(factor)),
            "multiplicity": 1,
            "is_prime": bool(is_probable_prime(factor)),
            "origin": "known",
            "child_composite_id": child and child.id,
        }
        self._insert("factors", row)

    def add_run(
        self,
        number: OldNumber,
        value: int | None = None,
        *,
        written: str | None = None,
        curves: int = 100,
        b1: int = 50_000,
        b2: int = -1,
        method: str = "ecm",
        voided: bool = False,
        **columns: Any,
    ) -> OldRun:
        """Insert an attempt on a value of a number (None: the number itself), and its submission.

        `written` is what its client called the value.
        """
        value = number.value if value is None else value
        body = {"client_id": "alice", "composite": written or str(value), "parameters": {"b1": b1, "curves": curves}}
        submission: dict[str, Any] = {
            "client_id": "alice",
            "idempotency_key": f"key {len(self.runs)}",
            "key_is_implicit": True,
            "payload_sha256": b"",
            "payload": json.dumps(body),
            "state": "applied",
            "composite_id": number.id,
        }
        submission_id = self._insert("submissions", submission)
        row = {
            "composite_id": number.id,
            "submission_id": submission_id,
            "client_id": "alice",
            "method": method,
            "b1": b1,
            "b2": b2,
            "parametrization": 3 if method == "ecm" else None,
            "curves": curves,
        } | columns
        attempt_id = self._insert("ecm_attempts", row)
        if voided:
            self.connection.execute(
                text("UPDATE ecm_attempts SET voided_at = now() WHERE id = :id"), {"id": attempt_id}
            )
        settle = (
            "UPDATE submissions SET attempt_id = :attempt, settled_at = now(),"
            " outcome = jsonb_build_object('attempt_id', CAST(:attempt AS bigint)) WHERE id = :id"
        )
        self.connection.execute(text(settle), {"attempt": attempt_id, "id": submission_id})
        counted = curves - columns.get("superseded_curves", 0)
        if method == "ecm" and not voided:
            add = (
                "INSERT INTO composite_effort (composite_id, b1, b2, parametrization, curves)"
                " VALUES (:id, :b1, :b2, 3, :curves) ON CONFLICT (composite_id, b1, b2, parametrization)"
                " DO UPDATE SET curves = composite_effort.curves + excluded.curves"
            )
            self.connection.execute(text(add), {"id": number.id, "b1": b1, "b2": b2, "curves": counted})
        run = OldRun(attempt_id, number, value, counted)
        self.runs.append(run)
        return run

    def add_prior_work(self, number: OldNumber, curves: int, b1: int = 11_000) -> None:
        """Insert prior work: that of a list, or what a part has inherited."""
        row = {"composite_id": number.id, "b1": b1, "b2": -1, "parametrization": 1, "prior_curves": curves}
        self._insert("composite_effort", row, returning="b1")

    def add_lease(
        self, number: OldNumber, curves: int | None = 10, *, closed: bool = False, client: str = "bob"
    ) -> None:
        """Insert a lease of curves, or of the whole number, that is open or has timed out."""
        lease = (
            "INSERT INTO work_assignments (id, composite_id, client_id, method, b1, b2, parametrization, curves,"
            " status, expires_at, closed_at) VALUES (gen_random_uuid(), :composite, :client, 'ecm', 50000, -1, 3,"
            " :curves, :status, now() + interval '1 day', CASE WHEN :closed THEN now() END)"
        )
        values = {"composite": number.id, "client": client, "curves": curves, "closed": closed}
        self.connection.execute(text(lease), values | {"status": "timeout" if closed else "assigned"})

    def add_residue(self, number: OldNumber, stage1: OldRun) -> None:
        """Insert a residue that waits for its stage 2."""
        residue = (
            "INSERT INTO ecm_residues (composite_id, client_id, stage1_attempt_id, number, b1, parametrization,"
            " curve_count, sha256, file_name, file_size_bytes, has_file, expires_at) VALUES (:composite, 'alice',"
            " :stage1, :number, 50000, 3, :curves, sha256(CAST(:name AS bytea)), :name, 100, false,"
            " now() + interval '1 day')"
        )
        values = {"composite": number.id, "stage1": stage1.id, "number": str(number.cofactor), "curves": stage1.curves}
        self.connection.execute(text(residue), values | {"name": f"residue of {stage1.id}"})

    def finish(self) -> None:
        """Commit everything and end the connection, so that the database can be copied."""
        self.connection.commit()
        self.connection.detach()
        self.connection.close()

    def _insert(self, table: str, row: dict[str, Any], returning: str = "id") -> Any:
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        insert = text(f"INSERT INTO {table} ({names}) VALUES ({values}) RETURNING {returning}")
        return self.connection.execute(insert, row).scalar_one()
