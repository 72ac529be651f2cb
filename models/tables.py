"""The tables. docs/architecture.md lists the names that existing clients and the SQL of operators rely on."""

import uuid
from datetime import datetime
from typing import Any, ClassVar

import numpy as np
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Computed,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Sequence,
    SmallInteger,
    Text,
    TextClause,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from models.types import EffortVector, StageBound, UtcDateTime


class Base(DeclarativeBase):
    """The base of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        str: Text,
        float: Double,
        dict[str, Any]: JSONB,
    }


def _eligibility_index(name: str, work: str, *order: str | TextClause) -> Index:
    """Return an index of the targets that are eligible for `work`, in `order`."""
    filter_columns = ["target_t_level"] if name == "priority" else ["priority", "target_t_level"]
    is_eligible = text(f"{work}_eligible")
    return Index(f"targets_{name}", *order, "id", postgresql_where=is_eligible, postgresql_include=filter_columns)


LISTED_T_LEVEL = "floor(current_t_level * 10)::integer"
LISTED_PROGRESS = """
CASE WHEN target_t_level > 0 THEN floor(least(current_t_level / target_t_level, 100) * 100)::integer ELSE 100 END
"""
LISTED_STATE = """
CASE WHEN is_fully_factored AND is_prime THEN 'prime' WHEN is_fully_factored THEN 'fully_factored'
     WHEN is_prime IS NULL THEN 'unknown' ELSE 'composite' END
"""


def _list_index(name: str, *order: str, also: tuple[str, ...] = (), where: str | None = None) -> Index:
    """Return an index for a list in `order`; it has the columns of all filters, so only the rows shown are read."""
    filter_columns = ["digit_length", "listed_t_level", "listed_progress", "listed_state", "priority", *also]
    included = [column for column in filter_columns if column not in order]
    condition = text(where) if where else None
    return Index(f"composites_by_{name}", *order, postgresql_include=included, postgresql_where=condition)


class Composite(Base):
    """A number to be factored, and its cofactor.

    `number` is the first spelling (decimal or an expression); `current_composite` is the cofactor in decimal, "1" when
    there is none; `is_prime` is whether the cofactor is a (probable) prime, null while it is not tested; `digit_length`
    is the number of digits of the cofactor, or of the number when it is finished. A composite factor that is too large
    to be split here is a composite of its own, and its `parent_id` is the number that it divides.

    The work on the cofactor belongs to its target, which other composites may share. `current_t_level`,
    `target_t_level`, `attempt_count` and `last_attempt_at` repeat what the target has, for lists and for outsiders.
    """

    __tablename__ = "composites"
    __table_args__ = (
        Index("composites_parent", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
        Index("composites_target", "target_id"),
        _list_index("id", "id"),
        _list_index("creation", "created_at", "id"),
        _list_index("digits", "digit_length", "id"),
        _list_index("t_level", "listed_t_level", "id"),
        _list_index("progress", "listed_progress", "id", also=("snfs_difficulty",)),
        _list_index("priority", "priority", "id"),
        # Most cofactors are composite; the few others are found at once without them.
        _list_index("state", "listed_state", "id", where="listed_state <> 'composite'"),
        # Every result updates the rows of its composites; with free space on the page a row does not move.
        {"postgresql_with": {"fillfactor": "70"}},
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    number: Mapped[str]
    value_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    current_composite: Mapped[str]
    digit_length: Mapped[int] = mapped_column(Integer)
    is_prime: Mapped[bool | None] = mapped_column(Boolean)
    is_fully_factored: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("composites.id"))
    # The target of the cofactor. A number keeps its last target when nothing is left to do on it; a number that was
    # finished when it was registered has none.
    target_id: Mapped[int | None] = mapped_column(ForeignKey("targets.id"))
    priority: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    has_snfs_form: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    snfs_difficulty: Mapped[int | None] = mapped_column(Integer)
    target_t_level: Mapped[float]
    explicit_target_t_level: Mapped[float | None]
    current_t_level: Mapped[float] = mapped_column(server_default=text("0"))
    attempt_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    last_attempt_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # The client whose result registered the number; null once an operator has loaded it.
    registered_by: Mapped[str | None]
    # Lists sort and filter by these columns: tenths of a t-level, percent of the target (at most 10,000), the state.
    # PostgreSQL computes them; they are rounded, so that most results change neither them nor their indexes.
    listed_t_level: Mapped[int] = mapped_column(Integer, Computed(LISTED_T_LEVEL, persisted=True))
    listed_progress: Mapped[int] = mapped_column(Integer, Computed(LISTED_PROGRESS, persisted=True))
    listed_state: Mapped[str] = mapped_column(Computed(LISTED_STATE, persisted=True))


# Composites by the beginning of their spelling, in the operator class that LIKE 'beginning%' needs.
Index(
    "composites_by_text",
    func.left(Composite.number, 60).label("beginning"),
    Composite.id,
    postgresql_ops={"beginning": "text_pattern_ops"},
)


class CompositeAlias(Base):
    """A value, as its SHA-256, that a composite has had: a spelling, the number in decimal, or a cofactor."""

    __tablename__ = "composite_aliases"

    value_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(Text)  # number | cofactor (see coordinator/composites/registry.py)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("composite_aliases_composite", "composite_id"),)


class Target(Base):
    """An unfinished value, with the effort spent on it and the work that it is eligible for.

    Every composite whose cofactor is this value points to it, so the work on the value is done once for all of them.
    `is_finished`: the value is prime or has been divided completely; its composites keep it for their effort.
    `priority` and `target_t_level` are the largest of its composites.

    Claims find targets by the last columns, which coordinator/composites/eligibility.py computes. They are rounded, so
    that most results change neither them nor their indexes.
    """

    __tablename__ = "targets"
    __table_args__ = (
        # Claims scan these indexes, one for the order of each work type; only eligible targets are in them. They
        # include the columns of the filters, so that the rows that a filter excludes are not read, one page each; only
        # current_t_level is missing, because every result changes it.
        _eligibility_index("standard", "ecm", "digit_length"),
        _eligibility_index("progressive", "ecm", "planned_t_level", "digit_length"),
        _eligibility_index("priority", "ecm", text("priority DESC"), "digit_length"),
        _eligibility_index("best", "ecm", text("work_value DESC"), "digit_length"),
        _eligibility_index("pm1", "pm1", "digit_length"),
        _eligibility_index("pp1", "pp1", "digit_length"),
        Index("targets_held", "held_at", postgresql_include=["hold"], postgresql_where=text("hold IS NOT NULL")),
        CheckConstraint("hold IN ('paused', 'parked')", name="targets_hold"),
        # Every result updates the row of its target; with free space on the page the row does not move.
        {"postgresql_with": {"fillfactor": "70"}},
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    value_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    digit_length: Mapped[int] = mapped_column(Integer)
    is_prime: Mapped[bool | None] = mapped_column(Boolean)  # null while it is not tested
    is_finished: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    priority: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    target_t_level: Mapped[float]
    # The time when target_t_level last changed; older leases were sized by the t-level before.
    target_set_at: Mapped[datetime] = mapped_column(server_default=func.now())
    current_t_level: Mapped[float] = mapped_column(server_default=text("0"))
    effort: Mapped[np.ndarray] = mapped_column(EffortVector)
    # The number and the time of the attempts that count.
    attempt_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    last_attempt_at: Mapped[datetime | None]
    # The largest B1 of P-1 and of P+1 runs with stage 2 that count, and the B1 that the target t-level needs.
    pm1_b1: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    pp1_b1: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    p1_target_b1: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # paused (by an operator) or parked (set aside: several clients in a row gave it up), and the reason.
    hold: Mapped[str | None]
    hold_reason: Mapped[str | None]
    held_at: Mapped[datetime | None]
    resumed_at: Mapped[datetime | None]
    # The columns of coordinator/composites/eligibility.py, and between them an input of these.
    open_leases: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    # The number of residues whose stage 2 is still to be done; while there are any, no new ECM curves are leased.
    open_residues: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    ecm_eligible: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    pm1_eligible: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    pp1_eligible: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    planned_t_level: Mapped[float] = mapped_column(server_default=text("0"))
    work_value: Mapped[float] = mapped_column(server_default=text("0"))  # log10 of planning.value_per_second


class WorkedValue(Base):
    """A value that curves were run on: a number, or the cofactor that it had at that time, in decimal."""

    __tablename__ = "worked_values"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    value_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    value: Mapped[str]


class TargetSource(Base):
    """A value whose curves count for a target: the target's own value, or a multiple of it."""

    __tablename__ = "target_sources"
    __table_args__ = (Index("target_sources_value", "value_id"),)

    target_id: Mapped[int] = mapped_column(ForeignKey("targets.id", ondelete="CASCADE"), primary_key=True)
    value_id: Mapped[int] = mapped_column(ForeignKey("worked_values.id", ondelete="CASCADE"), primary_key=True)


class ValueEffort(Base):
    """The number of curves run on a value for each (B1, B2, parametrization).

    The effort of a target is that of all curves on its sources. An attempt is in the sum of one value only, so no curve
    counts twice for a target, however many numbers have that value.
    """

    __tablename__ = "value_effort"

    value_id: Mapped[int] = mapped_column(ForeignKey("worked_values.id", ondelete="CASCADE"), primary_key=True)
    b1: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    b2: Mapped[int] = mapped_column(StageBound, primary_key=True)
    parametrization: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # Curves from before the registration, as a list states them.
    prior_curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


attempt_ids = Sequence("ecm_attempts_id_seq", metadata=Base.metadata)


class EcmAttempt(Base):
    """One applied run: a number of ECM curves, or one run of P-1, P+1 or another method, on a value of a composite.

    `b2` is -1 for GMP-ECM's default, 0 for stage 1 only. The `superseded_curves` of an ECM run add no effort: a later
    run that did their stage 2 counts them in full.
    """

    __tablename__ = "ecm_attempts"
    __table_args__ = (
        Index("ecm_attempts_composite", "composite_id", "id"),
        Index("ecm_attempts_value", "value_id", "id"),
        Index("ecm_attempts_client", "client_id", "id"),
        # Attempts are stored in the order of their creation, so the block ranges of an hour are few.
        Index("ecm_attempts_created", "created_at", postgresql_using="brin"),
        Index("ecm_attempts_work", "work_id", postgresql_where=text("work_id IS NOT NULL")),
        Index("ecm_attempts_residue", "residue_id", postgresql_where=text("residue_id IS NOT NULL")),
        CheckConstraint("curves >= 0", name="ecm_attempts_curves"),
    )

    # Reserved when the result is received, so that a client that does not wait knows the id of its attempt.
    id: Mapped[int] = mapped_column(BigInteger, attempt_ids, server_default=attempt_ids.next_value(), primary_key=True)
    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id"))
    value_id: Mapped[int] = mapped_column(ForeignKey("worked_values.id"))
    submission_id: Mapped[int] = mapped_column(ForeignKey("submissions.id"), unique=True)
    client_id: Mapped[str]
    method: Mapped[str]
    program: Mapped[str | None]
    program_version: Mapped[str | None]
    b1: Mapped[int | None] = mapped_column(BigInteger)
    b2: Mapped[int | None] = mapped_column(StageBound)
    parametrization: Mapped[int | None] = mapped_column(SmallInteger)
    curves: Mapped[int] = mapped_column(BigInteger)
    superseded_curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    sigma: Mapped[str | None]  # "value", or several separated by spaces
    execution_time: Mapped[float | None]
    # The same curves must not count twice, however they are sent (null: without a sigma they cannot be recognized).
    curves_sha256: Mapped[bytes | None] = mapped_column(LargeBinary(32), unique=True)
    # The time when an operator voided the attempt: it adds no effort, and its curves may be sent again (no hash).
    voided_at: Mapped[datetime | None]
    work_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("work_assignments.id", ondelete="SET NULL"))
    # The residue whose stage 2 this run did, and the number of its stage-1 curves that the run supersedes.
    residue_id: Mapped[int | None] = mapped_column(ForeignKey("ecm_residues.id", ondelete="SET NULL"))
    superseding_curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # The row is inserted under the lock of its composite. Leases are compared with the effort before them, so this is
    # the time of the insertion and not that of the beginning of the transaction.
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Factor(Base):
    """A factor in the tree of a composite; the factors that it was split into are beneath it (`split_from_id`).

    `multiplicity` is relative to the row above. `origin`: submitted (a client's claim, or its new part), known (an
    operator gave it), split (the server found it in a composite factor or a small cofactor), cofactor (the cofactor was
    prime).
    `child_composite_id` is the composite that leases work for a factor that is too large to be split here.
    """

    __tablename__ = "factors"
    __table_args__ = (
        Index(
            "factors_once",
            "composite_id",
            text("coalesce(split_from_id, 0)"),
            "factor_sha256",
            unique=True,
        ),
        Index("factors_value", "factor_sha256"),
        Index("factors_child", "child_composite_id", postgresql_where=text("child_composite_id IS NOT NULL")),
        Index("factors_attempt", "attempt_id", postgresql_where=text("attempt_id IS NOT NULL")),
        Index("factors_split_from", "split_from_id", postgresql_where=text("split_from_id IS NOT NULL")),
        Index("factors_newest", "created_at", "id", postgresql_include=["digit_length", "is_prime"]),
        Index("factors_largest", "digit_length", "id", postgresql_include=["is_prime"]),
        Index(
            "factors_client",
            "client_id",
            "created_at",
            "id",
            postgresql_include=["digit_length", "is_prime"],
            postgresql_where=text("client_id IS NOT NULL"),
        ),
        Index("factors_unproven", "id", postgresql_where=text("is_prime IS NOT TRUE")),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id"))
    factor: Mapped[str]
    factor_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    digit_length: Mapped[int] = mapped_column(Integer)
    multiplicity: Mapped[int] = mapped_column(Integer)
    is_prime: Mapped[bool | None] = mapped_column(Boolean)
    split_from_id: Mapped[int | None] = mapped_column(ForeignKey("factors.id"))
    child_composite_id: Mapped[int | None] = mapped_column(ForeignKey("composites.id"))
    origin: Mapped[str]
    attempt_id: Mapped[int | None] = mapped_column(ForeignKey("ecm_attempts.id"))
    client_id: Mapped[str | None]
    method: Mapped[str | None]
    sigma: Mapped[str | None]
    parametrization: Mapped[int | None] = mapped_column(SmallInteger)
    # For a factor with the origin `known`: its source, and the time of the find.
    source: Mapped[str | None]
    found_at: Mapped[datetime | None]
    # The order of the curve that found it, also as p1^e1 * p2 ..., and whether B1 and B2 explain it (null: unknown).
    group_order: Mapped[str | None]
    group_order_factors: Mapped[str | None]
    is_explained: Mapped[bool | None] = mapped_column(Boolean)
    order_remark: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WorkAssignment(Base):
    """A lease: a client has `curves` curves of one composite (null: the whole number) until `expires_at`.

    `method`: ecm; pm1, pp1, or p1 for both; nfs, snfs, gnfs or other for a number that is reserved for them elsewhere.
    `curves_completed` is the progress of the client's heartbeats, `curves_submitted` the sum of its results.
    """

    __tablename__ = "work_assignments"
    __table_args__ = (
        Index("work_assignments_of_composite", "composite_id", "closed_at"),
        Index("work_assignments_target", "target_id", postgresql_where=text("closed_at IS NULL")),
        Index("work_assignments_expiry", "expires_at", "id", postgresql_where=text("closed_at IS NULL")),
        Index("work_assignments_client", "client_id", "created_at"),
        Index("work_assignments_open", "client_id", postgresql_where=text("closed_at IS NULL")),
        CheckConstraint(
            "status IN ('assigned', 'claimed', 'running', 'completed', 'failed', 'timeout')",
            name="work_assignments_status",
        ),
        CheckConstraint(
            "(closed_at IS NULL) = (status IN ('assigned', 'claimed', 'running'))", name="work_assignments_closed"
        ),
        CheckConstraint("status = 'failed' OR NOT is_cancelled", name="work_assignments_cancelled"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id"))
    # The target of the composite while the lease is open; a closed lease keeps the last one, which may be gone.
    target_id: Mapped[int | None] = mapped_column(BigInteger)
    client_id: Mapped[str]
    method: Mapped[str]
    b1: Mapped[int | None] = mapped_column(BigInteger)
    b2: Mapped[int | None] = mapped_column(StageBound)
    parametrization: Mapped[int | None] = mapped_column(SmallInteger)
    curves: Mapped[int | None] = mapped_column(BigInteger)
    curves_completed: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    curves_submitted: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    lease_seconds: Mapped[int] = mapped_column(
        Integer, server_default=text("86400")
    )  # the time that a heartbeat extends it by
    details: Mapped[dict[str, Any] | None]  # JSON that the operator gave with a reservation
    status: Mapped[str] = mapped_column(Text, server_default=text("'assigned'"))
    # An operator ended it: it has failed, but no client gave the number up (coordinator/composites/holds.py).
    is_cancelled: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]


class Residue(Base):
    """The residues of stage 1 of some curves, for another client's stage 2; the residue storage has the file.

    `status`: available, or claimed by `claimed_by` until `claim_expires_at`; then completed (its stage 2 is done),
    closed (it is not needed any more; `message` is the reason) or expired (no client completed it in time).
    """

    __tablename__ = "ecm_residues"
    __table_args__ = (
        # The same file is accepted again after it was closed or expired.
        Index(
            "ecm_residues_sha256",
            "sha256",
            unique=True,
            postgresql_where=text("status IN ('available', 'claimed', 'completed')"),
        ),
        Index("ecm_residues_composite", "composite_id"),
        Index("ecm_residues_stage1", "stage1_attempt_id"),
        Index("ecm_residues_stage2", "stage2_attempt_id", postgresql_where=text("stage2_attempt_id IS NOT NULL")),
        Index("ecm_residues_available", "id", postgresql_where=text("status = 'available'")),
        Index("ecm_residues_claimed", "claim_expires_at", postgresql_where=text("status = 'claimed'")),
        Index("ecm_residues_files", "id", postgresql_where=text("has_file")),
        CheckConstraint(
            "status IN ('available', 'claimed', 'completed', 'closed', 'expired')", name="ecm_residues_status"
        ),
        CheckConstraint("(closed_at IS NULL) = (status IN ('available', 'claimed'))", name="ecm_residues_closed"),
        CheckConstraint("(claimed_by IS NOT NULL) OR status <> 'claimed'", name="ecm_residues_claimer"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id"))
    client_id: Mapped[str]
    stage1_attempt_id: Mapped[int | None] = mapped_column(
        ForeignKey("ecm_attempts.id", ondelete="SET NULL", use_alter=True, name="ecm_residues_stage1_attempt")
    )
    stage2_attempt_id: Mapped[int | None] = mapped_column(
        ForeignKey("ecm_attempts.id", ondelete="SET NULL", use_alter=True, name="ecm_residues_stage2_attempt")
    )
    number: Mapped[str]  # N of the file in decimal: the composite or its cofactor at that time
    b1: Mapped[int] = mapped_column(BigInteger)
    parametrization: Mapped[int] = mapped_column(SmallInteger)
    curve_count: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    file_name: Mapped[str] = mapped_column(Text, unique=True)
    file_size_bytes: Mapped[int] = mapped_column(BigInteger)
    has_file: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    status: Mapped[str] = mapped_column(Text, server_default=text("'available'"))
    claimed_by: Mapped[str | None]
    claimed_at: Mapped[datetime | None]
    claim_expires_at: Mapped[datetime | None]
    message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]


class Submission(Base):
    """A result as its client sent it, without unknown fields, and its state.

    `state`: received until a unit of work settles it as applied, duplicate, rejected or failed. The answer to the
    client is made of `outcome`, or of `reason` and `detail`. `tries` counts the delivery attempts that began.
    """

    __tablename__ = "submissions"
    __table_args__ = (
        UniqueConstraint("client_id", "idempotency_key", name="submissions_key"),
        # Without due_at: taking a submission then changes no index.
        Index("submissions_waiting", "id", postgresql_where=text("state = 'received'")),
        Index("submissions_unsettled", "state", "id", postgresql_where=text("state IN ('rejected', 'failed')")),
        Index(
            "submissions_true_factors",
            "id",
            postgresql_where=text("state = 'rejected' AND outcome ? 'true_factors'"),
        ),
        Index("submissions_created", "created_at"),
        Index("submissions_duplicates", "composite_id", postgresql_where=text("state = 'duplicate'")),
        Index("submissions_raw_output", "settled_at", postgresql_where=text("raw_output IS NOT NULL")),
        CheckConstraint(
            "state IN ('received', 'applied', 'duplicate', 'rejected', 'failed')", name="submissions_state"
        ),
        # A submission is inserted and then updated once or twice; with free space on the page the row does not move.
        {"postgresql_with": {"fillfactor": "80"}},
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    client_id: Mapped[str]
    idempotency_key: Mapped[str]
    key_is_implicit: Mapped[bool] = mapped_column(Boolean)
    payload_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    payload: Mapped[dict[str, Any]]
    raw_output: Mapped[str | None]
    state: Mapped[str] = mapped_column(Text, server_default=text("'received'"))
    reason: Mapped[str | None]
    detail: Mapped[str | None]
    outcome: Mapped[dict[str, Any] | None]
    composite_id: Mapped[int | None] = mapped_column(BigInteger)
    attempt_id: Mapped[int] = mapped_column(BigInteger, server_default=attempt_ids.next_value())
    tries: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    # From this moment on a worker may take the submission. A worker that takes it sets a later moment.
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # The batch that took it last, as its worker names it: if that dies, the worker makes its submissions due at once.
    taken_by: Mapped[uuid.UUID | None]
    request_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    settled_at: Mapped[datetime | None]


class Job(Base):
    """A computation to be done later, one row per kind and target; the unit of work that needs it inserts the row.

    `unknown`: it ran out of its time, and what it was to find out stays unknown. The client is the one who caused the
    job (null: an operator); clients share the running time. Smaller priorities come first (coordinator/base/jobs.py).
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("kind", "target_id", name="jobs_once"),
        Index("jobs_waiting", "published_at", postgresql_where=text("state = 'waiting'")),
        Index("jobs_failed", "id", postgresql_where=text("state = 'failed'")),
        # Housekeeping deletes old jobs, and nearly all jobs are done.
        Index("jobs_done", "finished_at", postgresql_where=text("state = 'done'")),
        Index(
            "jobs_next", "priority", text("coalesce(client_id, '')"), "id", postgresql_where=text("state = 'waiting'")
        ),
        CheckConstraint("state IN ('waiting', 'done', 'failed', 'unknown')", name="jobs_state"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str]
    target_id: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(Text, server_default=text("'waiting'"))
    error: Mapped[str | None]
    # The number of requests: a run that ends does not mark the job as done if there was another request meanwhile.
    request_count: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    client_id: Mapped[str | None]
    tries: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    # How many of the tries ran out of time or died, and how many runs a restart of their worker ended: those are no
    # tries. A run that ends in an orderly way sets the worker that runs it, and the time since it does, to null.
    timeouts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    interruptions: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    worker: Mapped[str | None]
    running_since: Mapped[datetime | None]
    published_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class JobShare(Base):
    """The seconds for which a client's jobs ran lately: half of them are forgotten every hour after `counted_at`."""

    __tablename__ = "job_shares"

    client_id: Mapped[str] = mapped_column(Text, primary_key=True)  # "": the operators
    seconds: Mapped[float]
    counted_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Client(Base):
    """A client by name; housekeeping derives the rows from attempts and factors, and results do not write them.

    The sums are over all time: applied results, ECM curves, seconds of execution (as reported), and new factors.
    """

    __tablename__ = "clients"
    __table_args__ = (Index("clients_curves", "curves", "name"),)

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    first_seen: Mapped[datetime]
    last_seen: Mapped[datetime]
    results: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    seconds: Mapped[float] = mapped_column(server_default=text("0"))
    factors: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


class ClientHourlyStats(Base):
    """The sums of `clients` for one client and one hour (UTC); housekeeping derives the rows."""

    __tablename__ = "client_hourly_stats"

    hour: Mapped[datetime] = mapped_column(primary_key=True)
    client_id: Mapped[str] = mapped_column(Text, primary_key=True)
    results: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    seconds: Mapped[float] = mapped_column(server_default=text("0"))
    factors: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


class Watermark(Base):
    """The time up to which housekeeping has derived a table; `what` is the name of the table."""

    __tablename__ = "watermarks"

    what: Mapped[str] = mapped_column(Text, primary_key=True)
    until: Mapped[datetime]


class Project(Base):
    """A project: a set of composites under one name."""

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ProjectComposite(Base):
    """The membership of a composite in a project."""

    __tablename__ = "project_composites"

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id", ondelete="CASCADE"), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("project_composites_composite", "composite_id"),)


class AdminEvent(Base):
    """A change by an operator: the actor, the action, its target, and the values before and after."""

    __tablename__ = "admin_events"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    actor: Mapped[str]  # admin (over HTTP, by the key), or the account that ran the command
    action: Mapped[str]
    target: Mapped[str]  # kind and id, such as "composite 17"
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    request_id: Mapped[str | None]


class ClientKey(Base):
    """The key that proves a client's name; only its SHA-256 is stored."""

    __tablename__ = "client_keys"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    key_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]


class Recalculation(Base):
    """A recalculation of the effort of many targets: computed in chunks without locks, then written at once.

    `state`: computing, writing, done, failed. `cursor` is the last target id whose effort was computed.
    """

    __tablename__ = "recalculations"
    __table_args__ = (
        CheckConstraint("state IN ('computing', 'writing', 'done', 'failed')", name="recalculations_state"),
        # At most one recalculation runs at a time.
        Index("recalculations_running", text("(true)"), unique=True, postgresql_where=text("finished_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    only_missing: Mapped[bool] = mapped_column(Boolean)
    state: Mapped[str] = mapped_column(Text, server_default=text("'computing'"))
    total: Mapped[int] = mapped_column(BigInteger)
    done: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cursor: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    changed: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class RecalculatedEffort(Base):
    """A target whose stored effort differs from the recalculated one, until the recalculation is written."""

    __tablename__ = "recalculated_efforts"
    __table_args__ = (Index("recalculated_efforts_target", "target_id"),)

    recalculation_id: Mapped[int] = mapped_column(ForeignKey("recalculations.id", ondelete="CASCADE"), primary_key=True)
    target_id: Mapped[int] = mapped_column(ForeignKey("targets.id", ondelete="CASCADE"), primary_key=True)


class OwedWork(Base):
    """Work that a migration leaves to whoever starts next: its name, and the id up to which it is done."""

    __tablename__ = "owed_work"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    done_until: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
