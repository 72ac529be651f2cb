"""Work: what each number wants, where it stands in each order of claims, and what its leases have brought."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "composites",
        sa.Column("target_set_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )
    op.add_column("composites", sa.Column("pm1_b1", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("composites", sa.Column("pp1_b1", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("composites", sa.Column("wanted_p1_b1", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("composites", sa.Column("hold", sa.Text(), nullable=True))
    op.add_column("composites", sa.Column("hold_reason", sa.Text(), nullable=True))
    op.add_column("composites", sa.Column("held_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("composites", sa.Column("resumed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "composites", sa.Column("open_leases", sa.SmallInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("composites", sa.Column("wants_ecm", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("composites", sa.Column("wants_pm1", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("composites", sa.Column("wants_pp1", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("composites", sa.Column("planned_t_level", sa.Double(), server_default=sa.text("0"), nullable=False))
    op.add_column("composites", sa.Column("work_value", sa.Double(), server_default=sa.text("0"), nullable=False))
    # Roughly what coordinator/demand.py says, so that there is work at once; coordinator/upkeep.py's restate_all, which
    # follows a migration, says it exactly. So far only results counted curves on a lease.
    op.execute(
        "UPDATE composites SET wants_ecm = current_t_level < target_t_level, planned_t_level = current_t_level,"
        " work_value = -digit_length / 10.0"
        " WHERE is_prime IS FALSE AND NOT is_fully_factored AND digit_length > 45"
    )
    for method in ("pm1", "pp1"):
        op.execute(
            # The method is one of the two above, and no text from outside.
            f"UPDATE composites SET {method}_b1 = reached.b1 FROM (SELECT composite_id, max(b1) AS b1 FROM ecm_attempts"  # noqa: S608
            f" WHERE method = '{method}' AND b2 <> 0 AND curves > 0 GROUP BY composite_id) reached"
            " WHERE reached.composite_id = composites.id"
        )
    op.create_check_constraint("composites_hold", "composites", "hold IN ('paused', 'parked')")
    op.create_index(
        "composites_best",
        "composites",
        [sa.literal_column("work_value DESC"), "digit_length", "id"],
        unique=False,
        postgresql_include=["priority", "target_t_level"],
        postgresql_where=sa.text("wants_ecm"),
    )
    op.create_index(
        "composites_held", "composites", ["held_at"], unique=False, postgresql_where=sa.text("hold IS NOT NULL")
    )
    op.create_index(
        "composites_pm1",
        "composites",
        ["digit_length", "id"],
        unique=False,
        postgresql_include=["priority", "target_t_level"],
        postgresql_where=sa.text("wants_pm1"),
    )
    op.create_index(
        "composites_pp1",
        "composites",
        ["digit_length", "id"],
        unique=False,
        postgresql_include=["priority", "target_t_level"],
        postgresql_where=sa.text("wants_pp1"),
    )
    op.create_index(
        "composites_priority",
        "composites",
        [sa.literal_column("priority DESC"), "digit_length", "id"],
        unique=False,
        postgresql_include=["target_t_level"],
        postgresql_where=sa.text("wants_ecm"),
    )
    op.create_index(
        "composites_progressive",
        "composites",
        ["planned_t_level", "digit_length", "id"],
        unique=False,
        postgresql_include=["priority", "target_t_level"],
        postgresql_where=sa.text("wants_ecm"),
    )
    op.create_index(
        "composites_standard",
        "composites",
        ["digit_length", "id"],
        unique=False,
        postgresql_include=["priority", "target_t_level"],
        postgresql_where=sa.text("wants_ecm"),
    )
    op.alter_column("ecm_attempts", "created_at", server_default=sa.text("clock_timestamp()"))
    op.create_index("ecm_attempts_client", "ecm_attempts", ["client_id", "id"], unique=False)
    op.create_index(
        "ecm_attempts_work", "ecm_attempts", ["work_id"], unique=False, postgresql_where=sa.text("work_id IS NOT NULL")
    )
    op.create_index(
        "factors_attempt", "factors", ["attempt_id"], unique=False, postgresql_where=sa.text("attempt_id IS NOT NULL")
    )
    op.create_index("jobs_failed", "jobs", ["id"], unique=False, postgresql_where=sa.text("state = 'failed'"))
    op.create_index(
        "submissions_duplicates",
        "submissions",
        ["composite_id"],
        unique=False,
        postgresql_where=sa.text("state = 'duplicate'"),
    )
    op.create_index(
        "submissions_raw_output",
        "submissions",
        ["settled_at"],
        unique=False,
        postgresql_where=sa.text("raw_output IS NOT NULL"),
    )
    op.add_column(
        "work_assignments", sa.Column("curves_submitted", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column(
        "work_assignments", sa.Column("lease_seconds", sa.Integer(), server_default=sa.text("86400"), nullable=False)
    )
    op.add_column("work_assignments", sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.execute("UPDATE work_assignments SET curves_submitted = curves_completed")
    op.create_index(
        "work_assignments_open",
        "work_assignments",
        ["client_id"],
        unique=False,
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index(
        "work_assignments_past",
        "work_assignments",
        ["composite_id", "closed_at"],
        unique=False,
        postgresql_where=sa.text("closed_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index(
        "work_assignments_past", table_name="work_assignments", postgresql_where=sa.text("closed_at IS NOT NULL")
    )
    op.drop_index("work_assignments_open", table_name="work_assignments", postgresql_where=sa.text("closed_at IS NULL"))
    op.drop_column("work_assignments", "details")
    op.drop_column("work_assignments", "lease_seconds")
    op.drop_column("work_assignments", "curves_submitted")
    op.drop_index(
        "submissions_raw_output", table_name="submissions", postgresql_where=sa.text("raw_output IS NOT NULL")
    )
    op.drop_index("submissions_duplicates", table_name="submissions", postgresql_where=sa.text("state = 'duplicate'"))
    op.drop_index("jobs_failed", table_name="jobs", postgresql_where=sa.text("state = 'failed'"))
    op.drop_index("factors_attempt", table_name="factors", postgresql_where=sa.text("attempt_id IS NOT NULL"))
    op.drop_index("ecm_attempts_work", table_name="ecm_attempts", postgresql_where=sa.text("work_id IS NOT NULL"))
    op.drop_index("ecm_attempts_client", table_name="ecm_attempts")
    op.alter_column("ecm_attempts", "created_at", server_default=sa.text("now()"))
    op.drop_index("composites_standard", table_name="composites", postgresql_where=sa.text("wants_ecm"))
    op.drop_index("composites_progressive", table_name="composites", postgresql_where=sa.text("wants_ecm"))
    op.drop_index("composites_priority", table_name="composites", postgresql_where=sa.text("wants_ecm"))
    op.drop_index("composites_pp1", table_name="composites", postgresql_where=sa.text("wants_pp1"))
    op.drop_index("composites_pm1", table_name="composites", postgresql_where=sa.text("wants_pm1"))
    op.drop_index("composites_held", table_name="composites", postgresql_where=sa.text("hold IS NOT NULL"))
    op.drop_index("composites_best", table_name="composites", postgresql_where=sa.text("wants_ecm"))
    op.drop_constraint("composites_hold", "composites")
    op.drop_column("composites", "work_value")
    op.drop_column("composites", "planned_t_level")
    op.drop_column("composites", "wants_pp1")
    op.drop_column("composites", "wants_pm1")
    op.drop_column("composites", "wants_ecm")
    op.drop_column("composites", "open_leases")
    op.drop_column("composites", "resumed_at")
    op.drop_column("composites", "held_at")
    op.drop_column("composites", "hold_reason")
    op.drop_column("composites", "hold")
    op.drop_column("composites", "wanted_p1_b1")
    op.drop_column("composites", "pp1_b1")
    op.drop_column("composites", "pm1_b1")
    op.drop_column("composites", "target_set_at")
