"""The tables of targets: unfinished values, the values that curves were run on, and the sums of these curves.

A database with numbers owes the conversion of its rows after this revision; the next revision refuses to run before
coordinator/housekeeping/schema_upgrade.py has done it. What the conversion does not read is dropped here: the effort of
composites and their eligibility are computed from the attempts again.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
# The steps of the conversion, in this order (coordinator/housekeeping/target_conversion.py).
OWED = (
    "convert_attempts",
    "convert_prior_work",
    "point_unfinished",
    "point_finished",
    "link_sources",
    "compute_effort",
    "refresh_eligibility",
)
# Name, columns, the work for which a row must be eligible, and the included columns.
ELIGIBILITY_INDEXES = (
    ("standard", ("digit_length", "id"), "ecm", ("priority", "target_t_level")),
    ("progressive", ("planned_t_level", "digit_length", "id"), "ecm", ("priority", "target_t_level")),
    ("priority", (sa.text("priority DESC"), "digit_length", "id"), "ecm", ("target_t_level",)),
    ("best", (sa.text("work_value DESC"), "digit_length", "id"), "ecm", ("priority", "target_t_level")),
    ("pm1", ("digit_length", "id"), "pm1", ("priority", "target_t_level")),
    ("pp1", ("digit_length", "id"), "pp1", ("priority", "target_t_level")),
)


def upgrade() -> None:
    op.create_table(
        "targets",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("value_sha256", sa.LargeBinary(length=32), nullable=False, unique=True),
        sa.Column("digit_length", sa.Integer(), nullable=False),
        sa.Column("is_prime", sa.Boolean(), nullable=True),
        sa.Column("is_finished", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("target_t_level", sa.Double(), nullable=False),
        sa.Column("target_set_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("current_t_level", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("effort", sa.LargeBinary(), nullable=False),
        sa.Column("attempt_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_attempt_at", MOMENT, nullable=True),
        *_work_columns(),
        sa.CheckConstraint("hold IN ('paused', 'parked')", name="targets_hold"),
        postgresql_with={"fillfactor": "70"},
    )
    _create_work_indexes("targets")
    op.create_table(
        "worked_values",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("value_sha256", sa.LargeBinary(length=32), nullable=False, unique=True),
        sa.Column("value", sa.Text(), nullable=False),
    )
    op.create_table(
        "target_sources",
        sa.Column("target_id", sa.BigInteger(), sa.ForeignKey("targets.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("value_id", sa.BigInteger(), sa.ForeignKey("worked_values.id", ondelete="CASCADE"), primary_key=True),
    )
    op.create_index("target_sources_value", "target_sources", ["value_id"])
    op.create_table(
        "value_effort",
        sa.Column("value_id", sa.BigInteger(), sa.ForeignKey("worked_values.id", ondelete="CASCADE"), primary_key=True),
        *_sum_columns(),
    )
    op.create_table(
        "owed_work",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("done_until", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
    )
    op.add_column("composites", sa.Column("target_id", sa.BigInteger(), nullable=True))
    op.add_column("ecm_attempts", sa.Column("value_id", sa.BigInteger(), nullable=True))
    op.add_column("work_assignments", sa.Column("target_id", sa.BigInteger(), nullable=True))
    op.create_index(
        "work_assignments_target", "work_assignments", ["target_id"], postgresql_where=sa.text("closed_at IS NULL")
    )
    for name, *_ in ELIGIBILITY_INDEXES:
        op.drop_index(f"composites_{name}", table_name="composites")
    kept = ("hold", "hold_reason", "held_at", "resumed_at")
    for name in ("effort", "target_set_at", *(column.name for column in _work_columns() if column.name not in kept)):
        op.drop_column("composites", name)
    # A recalculation of the old sums ends; the conversion computes all effort.
    op.execute(
        "UPDATE recalculations SET state = 'failed', error = 'The schema was migrated', finished_at = now()"
        " WHERE finished_at IS NULL"
    )
    op.drop_table("recalculated_efforts")
    _create_recalculated_efforts("target_id", "targets.id")
    for name in OWED:
        op.execute(
            sa.text("INSERT INTO owed_work (name) SELECT :name WHERE EXISTS (SELECT FROM composites)").bindparams(
                name=name
            )
        )


def downgrade() -> None:
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM composites) THEN"
        " RAISE 'The conversion to targets cannot be undone; restore a backup of the older version'; END IF; END $$"
    )
    op.drop_table("recalculated_efforts")
    _create_recalculated_efforts("composite_id", "composites.id")
    op.add_column("composites", sa.Column("effort", sa.LargeBinary(), nullable=False))
    op.add_column("composites", sa.Column("target_set_at", MOMENT, server_default=sa.text("now()"), nullable=False))
    for column in ("hold", "hold_reason", "held_at", "resumed_at"):
        op.drop_column("composites", column)
    for added in _work_columns():
        op.add_column("composites", added)
    op.create_check_constraint("composites_hold", "composites", "hold IN ('paused', 'parked')")
    _create_work_indexes("composites")
    op.drop_index("work_assignments_target", table_name="work_assignments")
    op.drop_column("work_assignments", "target_id")
    op.drop_column("ecm_attempts", "value_id")
    op.drop_column("composites", "target_id")
    for table in ("owed_work", "value_effort", "target_sources", "worked_values", "targets"):
        op.drop_table(table)


def _work_columns() -> list[sa.Column[Any]]:
    """Return the columns that say which work there is, which composites had and targets have."""
    return [
        sa.Column("pm1_b1", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("pp1_b1", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("p1_target_b1", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("hold", sa.Text(), nullable=True),
        sa.Column("hold_reason", sa.Text(), nullable=True),
        sa.Column("held_at", MOMENT, nullable=True),
        sa.Column("resumed_at", MOMENT, nullable=True),
        sa.Column("open_leases", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("open_residues", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("ecm_eligible", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("pm1_eligible", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("pp1_eligible", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("planned_t_level", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("work_value", sa.Double(), server_default=sa.text("0"), nullable=False),
    ]


def _create_work_indexes(table: str) -> None:
    for name, columns, work, included in ELIGIBILITY_INDEXES:
        op.create_index(
            f"{table}_{name}",
            table,
            list(columns),
            postgresql_include=list(included),
            postgresql_where=sa.text(f"{work}_eligible"),
        )
    op.create_index(
        f"{table}_held", table, ["held_at"], postgresql_include=["hold"], postgresql_where=sa.text("hold IS NOT NULL")
    )


def _sum_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("b1", sa.BigInteger(), primary_key=True),
        sa.Column("b2", sa.Numeric(precision=22, scale=0), primary_key=True),
        sa.Column("parametrization", sa.SmallInteger(), primary_key=True),
        sa.Column("curves", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("prior_curves", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    ]


def _create_recalculated_efforts(column: str, referred: str) -> None:
    op.create_table(
        "recalculated_efforts",
        sa.Column(
            "recalculation_id",
            sa.BigInteger(),
            sa.ForeignKey("recalculations.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column(column, sa.BigInteger(), sa.ForeignKey(referred, ondelete="CASCADE"), primary_key=True),
        sa.Column("effort", sa.LargeBinary(), nullable=False),
        sa.Column("seen_effort", sa.LargeBinary(), nullable=False),
        sa.Column("attempt_count", sa.BigInteger(), nullable=False),
    )
