"""The tables. Names that operators' SQL and existing clients use are listed in the architecture and stay."""

import uuid
from datetime import datetime
from typing import Any

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

from models.types import Bound, EffortVector, UtcDateTime


class Base(DeclarativeBase):
    type_annotation_map = {datetime: UtcDateTime, str: Text, float: Double, dict[str, Any]: JSONB}


def _eligibility_index(name: str, work: str, *order: str | TextClause) -> Index:
    """An index of the numbers that want such work, in that order."""
    filtered = ["target_t_level"] if name == "priority" else ["priority", "target_t_level"]
    wanting = text(f"{work}_eligible")
    return Index(f"composites_{name}", *order, "id", postgresql_where=wanting, postgresql_include=filtered)


LISTED_T_LEVEL = "floor(current_t_level * 10)::integer"
LISTED_PROGRESS = """
CASE WHEN target_t_level > 0 THEN floor(least(current_t_level / target_t_level, 100) * 100)::integer ELSE 100 END
"""
LISTED_STATE = """
CASE WHEN is_fully_factored AND is_prime THEN 'prime' WHEN is_fully_factored THEN 'fully_factored'
     WHEN is_prime IS NULL THEN 'unknown' ELSE 'composite' END
"""


def _list_index(name: str, *order: str, also: tuple[str, ...] = (), where: str | None = None) -> Index:
    """An index that lists are read in the order of: filters look at it alone, and only what is shown is read."""
    listed = ["digit_length", "listed_t_level", "listed_progress", "listed_state", "priority", *also]
    columns = [column for column in listed if column not in order]
    chosen = text(where) if where else None
    return Index(f"composites_by_{name}", *order, postgresql_include=columns, postgresql_where=chosen)


class Composite(Base):
    """A number to be factored, what is left of it, and how much has been done on it.

    `number` is as first written (decimal or an expression); `current_composite` is the cofactor left, in decimal, "1"
    when nothing is; `is_prime` says whether that cofactor is a (probable) prime, null while nobody knows;
    `digit_length` counts the cofactor's digits, or the number's when it is finished. A number split off a known
    one that is too large to split here is a composite of its own, whose `parent_id` is the number it divides.

    The last columns say what work it wants, for claims to find it by (coordinator/composites/eligibility.py keeps them). They are
    rounded, so that most results leave them and their indexes alone.
    """

    __tablename__ = "composites"
    __table_args__ = (
        Index("composites_parent", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
        # What claims scan, in the order of each work type: numbers that want no work are in none of these. What filters
        # ask for is in them too, so that numbers which a filter passes over are not read, one page each; all but
        # current_t_level, which every result changes.
        _eligibility_index("standard", "ecm", "digit_length"),
        _eligibility_index("progressive", "ecm", "planned_t_level", "digit_length"),
        _eligibility_index("priority", "ecm", text("priority DESC"), "digit_length"),
        _eligibility_index("best", "ecm", text("work_value DESC"), "digit_length"),
        _eligibility_index("pm1", "pm1", "digit_length"),
        _eligibility_index("pp1", "pp1", "digit_length"),
        Index("composites_held", "held_at", postgresql_include=["hold"], postgresql_where=text("hold IS NOT NULL")),
        _list_index("id", "id"),
        _list_index("creation", "created_at", "id"),
        _list_index("digits", "digit_length", "id"),
        _list_index("t_level", "listed_t_level", "id"),
        _list_index("progress", "listed_progress", "id", also=("snfs_difficulty",)),
        _list_index("priority", "priority", "id"),
        # All but the many that are composite, so that few of a kind are found at once.
        _list_index("state", "listed_state", "id", where="listed_state <> 'composite'"),
        CheckConstraint("hold IN ('paused', 'parked')", name="composites_hold"),
        # Every result updates its composite's row: room on the page keeps those updates from moving it.
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
    priority: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    has_snfs_form: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    snfs_difficulty: Mapped[int | None] = mapped_column(Integer)
    target_t_level: Mapped[float]
    explicit_target_t_level: Mapped[float | None]
    current_t_level: Mapped[float] = mapped_column(server_default=text("0"))
    effort: Mapped[np.ndarray] = mapped_column(EffortVector)
    attempt_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    last_attempt_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # When the target last changed, through a factor or an operator: leases from before were sized by another one.
    target_set_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # The largest B1 of P-1 and P+1 runs (stage 2 included) on it, and the one that its target asks for.
    pm1_b1: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    pp1_b1: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    p1_target_b1: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # Kept from work by an operator (paused) or because client after client gave it up (parked), and why.
    hold: Mapped[str | None]
    hold_reason: Mapped[str | None]
    held_at: Mapped[datetime | None]
    resumed_at: Mapped[datetime | None]
    # What it wants now, and where it stands in each work type's order, curves out on lease included.
    open_leases: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    # Residues whose stage 2 is still to be done: as long as there are any, no new curves are begun on it.
    open_residues: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    ecm_eligible: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    pm1_eligible: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    pp1_eligible: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    planned_t_level: Mapped[float] = mapped_column(server_default=text("0"))
    work_value: Mapped[float] = mapped_column(server_default=text("0"))  # log10 of value for a second
    # What lists sort and filter by: tenths of a t-level, hundredths of the target reached (10,000 at most), and
    # in a word what is known of it. PostgreSQL computes them; rounded, they and their indexes outlast most results.
    listed_t_level: Mapped[int] = mapped_column(Integer, Computed(LISTED_T_LEVEL, persisted=True))
    listed_progress: Mapped[int] = mapped_column(Integer, Computed(LISTED_PROGRESS, persisted=True))
    listed_state: Mapped[str] = mapped_column(Computed(LISTED_STATE, persisted=True))


# Numbers by how they are written, as far as anybody types it, in the operator class that LIKE 'beginning%' asks for.
Index(
    "composites_by_text",
    func.left(Composite.number, 60).label("beginning"),
    Composite.id,
    postgresql_ops={"beginning": "text_pattern_ops"},
)


class CompositeAlias(Base):
    """A value (as its SHA-256) that a composite has had: as written, evaluated, each cofactor."""

    __tablename__ = "composite_aliases"

    value_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(Text)  # number | cofactor (see coordinator/composites/registry.py)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("composite_aliases_composite", "composite_id"),)


class CompositeEffort(Base):
    """How many curves a composite has had at each (B1, B2, parametrization): exact integers behind its vector."""

    __tablename__ = "composite_effort"

    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id", ondelete="CASCADE"), primary_key=True)
    b1: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    b2: Mapped[int] = mapped_column(Bound, primary_key=True)
    parametrization: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # Work from before the registry, or done on the number that this one was split from.
    prior_curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


attempt_ids = Sequence("ecm_attempts_id_seq", metadata=Base.metadata)


class EcmAttempt(Base):
    """One applied run: so many curves (or one P-1, P+1, ... run) with these bounds on this composite.

    `b2` is -1 for GMP-ECM's default, 0 for stage 1 only. `superseded_curves` of an ECM run count as stage 1 of a
    later run and add no effort of their own.
    """

    __tablename__ = "ecm_attempts"
    __table_args__ = (
        Index("ecm_attempts_composite", "composite_id", "id"),
        Index("ecm_attempts_client", "client_id", "id"),
        # Attempts lie in the order of their making, so that a few pages tell where an hour begins.
        Index("ecm_attempts_created", "created_at", postgresql_using="brin"),
        Index("ecm_attempts_work", "work_id", postgresql_where=text("work_id IS NOT NULL")),
        Index("ecm_attempts_residue", "residue_id", postgresql_where=text("residue_id IS NOT NULL")),
        CheckConstraint("curves >= 0", name="ecm_attempts_curves"),
    )

    # Reserved when the result comes in, so that a client that does not wait knows its attempt's id already.
    id: Mapped[int] = mapped_column(BigInteger, attempt_ids, server_default=attempt_ids.next_value(), primary_key=True)
    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id"))
    submission_id: Mapped[int] = mapped_column(ForeignKey("submissions.id"), unique=True)
    client_id: Mapped[str]
    method: Mapped[str]
    program: Mapped[str | None]
    program_version: Mapped[str | None]
    b1: Mapped[int | None] = mapped_column(BigInteger)
    b2: Mapped[int | None] = mapped_column(Bound)
    parametrization: Mapped[int | None] = mapped_column(SmallInteger)
    curves: Mapped[int] = mapped_column(BigInteger)
    superseded_curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    sigma: Mapped[str | None]  # "value", or several separated by spaces
    execution_time: Mapped[float | None]
    # The same curves sent again, in whatever words, must not count twice (null: no sigma, nothing to tell them by).
    curves_sha256: Mapped[bytes | None] = mapped_column(LargeBinary(32), unique=True)
    # Taken back by an operator: it adds no effort, and its curves may be sent again (their hash is gone).
    voided_at: Mapped[datetime | None]
    work_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("work_assignments.id", ondelete="SET NULL"))
    # The residue whose stage 2 this was, and for how many of its curves: so many of its stage 1 are superseded.
    residue_id: Mapped[int | None] = mapped_column(ForeignKey("ecm_residues.id", ondelete="SET NULL"))
    superseding_curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # Written under its composite's lock: by the clock, and not by when its transaction began, for leases are counted
    # against what was done before them.
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Factor(Base):
    """A factor in a composite's tree; its own splits lie beneath it (`split_from_id`).

    `multiplicity` is relative to the row it lies beneath. `origin`: submitted (a client's claim, or what was new
    in it), known (from elsewhere, told by an operator), split (found by the server in a composite factor or a small
    cofactor), cofactor (what was left was prime).
    `child_composite_id` is the composite that leases work for this factor, if it is too large to split here.
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
    # Of a factor known from elsewhere: who says so, and since when it is known.
    source: Mapped[str | None]
    found_at: Mapped[datetime | None]
    # The order of the curve that found it, as p1^e1 * p2 ..., and whether B1 and B2 explain the find (null: unknown).
    group_order: Mapped[str | None]
    group_order_factors: Mapped[str | None]
    is_explained: Mapped[bool | None] = mapped_column(Boolean)
    order_remark: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WorkAssignment(Base):
    """A lease: `curves` curves of one composite (null: the whole number) held by a client until `expires_at`.

    `method`: ecm; pm1, pp1, or p1 for both; nfs, snfs, gnfs or other for a number that is reserved for them elsewhere.
    `curves_completed` is what the client says in its heartbeats, `curves_submitted` what its results have brought.
    """

    __tablename__ = "work_assignments"
    __table_args__ = (
        Index("work_assignments_composite", "composite_id", postgresql_where=text("closed_at IS NULL")),
        Index("work_assignments_expiry", "expires_at", "id", postgresql_where=text("closed_at IS NULL")),
        Index("work_assignments_client", "client_id", "created_at"),
        Index("work_assignments_open", "client_id", postgresql_where=text("closed_at IS NULL")),
        Index("work_assignments_past", "composite_id", "closed_at", postgresql_where=text("closed_at IS NOT NULL")),
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
    client_id: Mapped[str]
    method: Mapped[str]
    b1: Mapped[int | None] = mapped_column(BigInteger)
    b2: Mapped[int | None] = mapped_column(Bound)
    parametrization: Mapped[int | None] = mapped_column(SmallInteger)
    curves: Mapped[int | None] = mapped_column(BigInteger)
    curves_completed: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    curves_submitted: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    lease_seconds: Mapped[int] = mapped_column(Integer, server_default=text("86400"))  # what a heartbeat extends it by
    details: Mapped[dict[str, Any] | None]  # what whoever reserved a number said of it
    status: Mapped[str] = mapped_column(Text, server_default=text("'assigned'"))
    # An operator ended it: it has failed, but no client gave the number up (coordinator/composites/holds.py).
    is_cancelled: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]


class Residue(Base):
    """What stage 1 of some curves left, for somebody else's stage 2; the file lies in the residue storage.

    `status`: available, or claimed by `claimed_by` until `claim_expires_at`; then completed (its stage 2 is done),
    closed (it is not needed any more: `message` says why) or expired (nobody wanted it).
    """

    __tablename__ = "ecm_residues"
    __table_args__ = (
        # The same file twice, unless the first one was given up.
        Index(
            "ecm_residues_sha256",
            "sha256",
            unique=True,
            postgresql_where=text("status IN ('available', 'claimed', 'completed')"),
        ),
        Index("ecm_residues_composite", "composite_id"),
        Index("ecm_residues_stage1", "stage1_attempt_id"),
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
    number: Mapped[str]  # the file's N, in decimal: the composite, or what was left of it then
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
    """What a client sent, word for word but for unknown fields, and what became of it.

    `state`: received until a unit of work settles it as applied, duplicate, rejected or failed. `outcome`, or `reason`
    and `detail`, are what its answer says then.
    """

    __tablename__ = "submissions"
    __table_args__ = (
        UniqueConstraint("client_id", "idempotency_key", name="submissions_key"),
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
        # A submission is inserted, counted and settled: its updates stay on the page.
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
    publish_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    published_at: Mapped[datetime] = mapped_column(server_default=func.now())
    request_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    settled_at: Mapped[datetime | None]


class Job(Base):
    """Something that must happen later: written with what needs it, rung for after the commit, unique by target."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("kind", "target_id", name="jobs_once"),
        Index("jobs_waiting", "published_at", postgresql_where=text("state = 'waiting'")),
        Index("jobs_failed", "id", postgresql_where=text("state = 'failed'")),
        CheckConstraint("state IN ('waiting', 'done', 'failed')", name="jobs_state"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str]
    target_id: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(Text, server_default=text("'waiting'"))
    error: Mapped[str | None]
    # Counts the times it was asked for, so that finishing one run cannot swallow a request made meanwhile.
    request_count: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    tries: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    publish_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    published_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class Client(Base):
    """A client by name; derived from submissions and attempts by upkeep, never written by a result.

    What it has sent in all: applied results, curves of ECM, seconds that it says it took, factors that were new.
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
    """What a client sent in an hour (of UTC), as in `clients`; derived by upkeep."""

    __tablename__ = "client_hourly_stats"

    hour: Mapped[datetime] = mapped_column(primary_key=True)
    client_id: Mapped[str] = mapped_column(Text, primary_key=True)
    results: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    curves: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    seconds: Mapped[float] = mapped_column(server_default=text("0"))
    factors: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


class Watermark(Base):
    """Up to when upkeep has derived something."""

    __tablename__ = "watermarks"

    what: Mapped[str] = mapped_column(Text, primary_key=True)
    until: Mapped[datetime]


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ProjectComposite(Base):
    __tablename__ = "project_composites"

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id", ondelete="CASCADE"), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("project_composites_composite", "composite_id"),)


class AdminEvent(Base):
    """What an operator changed: who, what, and the values before and after."""

    __tablename__ = "admin_events"
    __table_args__ = (Index("admin_events_target", "target", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    actor: Mapped[str]  # admin (over HTTP, by the key), or the account that ran the command
    action: Mapped[str]
    target: Mapped[str]  # kind and id, such as "composite 17"
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    request_id: Mapped[str | None]


class ClientKey(Base):
    """A key that a client proves its name with; only its SHA-256 is kept."""

    __tablename__ = "client_keys"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    key_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]


class Recalculation(Base):
    """A maintenance run over many composites: computed in chunks without locks, then written all at once.

    `state`: computing, writing, done, failed. `cursor` is the last composite id whose vector was computed.
    """

    __tablename__ = "recalculations"
    __table_args__ = (
        CheckConstraint("state IN ('computing', 'writing', 'done', 'failed')", name="recalculations_state"),
        # One at a time.
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
    """What a recalculation computed for a composite and found to differ, waiting to be written."""

    __tablename__ = "recalculated_efforts"

    recalculation_id: Mapped[int] = mapped_column(ForeignKey("recalculations.id", ondelete="CASCADE"), primary_key=True)
    composite_id: Mapped[int] = mapped_column(ForeignKey("composites.id", ondelete="CASCADE"), primary_key=True)
    effort: Mapped[np.ndarray] = mapped_column(EffortVector)
    # What the composite's row said when this was computed; if it says something else now, it is computed anew.
    seen_effort: Mapped[np.ndarray] = mapped_column(EffortVector)
    attempt_count: Mapped[int] = mapped_column(BigInteger)
