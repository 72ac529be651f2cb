"""The tables of the results pipeline."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Submissions reserve attempt ids from it, so it belongs to neither table.
    op.execute(sa.schema.CreateSequence(sa.Sequence("ecm_attempts_id_seq")))
    op.create_table(
        "clients",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "composites",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("value_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("current_composite", sa.Text(), nullable=False),
        sa.Column("digit_length", sa.Integer(), nullable=False),
        sa.Column("is_prime", sa.Boolean(), nullable=True),
        sa.Column("is_fully_factored", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("has_snfs_form", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("snfs_difficulty", sa.Integer(), nullable=True),
        sa.Column("target_t_level", sa.Double(), nullable=False),
        sa.Column("explicit_target_t_level", sa.Double(), nullable=True),
        sa.Column("current_t_level", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("effort", sa.LargeBinary(), nullable=False),
        sa.Column("attempt_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["composites.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("value_sha256"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "composites_parent",
        "composites",
        ["parent_id"],
        unique=False,
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'waiting'"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("asked", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("rings", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("rung_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('waiting', 'done', 'failed')", name="jobs_state"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("kind", "target_id", name="jobs_once"),
    )
    op.create_index("jobs_waiting", "jobs", ["rung_at"], unique=False, postgresql_where=sa.text("state = 'waiting'"))
    op.create_table(
        "projects",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "submissions",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("key_is_implicit", sa.Boolean(), nullable=False),
        sa.Column("payload_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("raw_output", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default=sa.text("'received'"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("outcome", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("composite_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "attempt_id", sa.BigInteger(), server_default=sa.text("nextval('ecm_attempts_id_seq')"), nullable=False
        ),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("rings", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("rung_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('received', 'applied', 'duplicate', 'rejected', 'failed')", name="submissions_state"
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("client_id", "idempotency_key", name="submissions_key"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index("submissions_created", "submissions", ["created_at"], unique=False)
    op.create_index(
        "submissions_unsettled",
        "submissions",
        ["state", "id"],
        unique=False,
        postgresql_where=sa.text("state IN ('rejected', 'failed')"),
    )
    op.create_index(
        "submissions_waiting", "submissions", ["id"], unique=False, postgresql_where=sa.text("state = 'received'")
    )
    op.create_table(
        "composite_aliases",
        sa.Column("value_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("composite_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["composite_id"], ["composites.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("value_sha256", "composite_id"),
    )
    op.create_index("composite_aliases_composite", "composite_aliases", ["composite_id"], unique=False)
    op.create_table(
        "composite_effort",
        sa.Column("composite_id", sa.BigInteger(), nullable=False),
        sa.Column("b1", sa.BigInteger(), nullable=False),
        sa.Column("b2", sa.Numeric(precision=22, scale=0), nullable=False),
        sa.Column("parametrization", sa.SmallInteger(), nullable=False),
        sa.Column("curves", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("prior_curves", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["composite_id"], ["composites.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("composite_id", "b1", "b2", "parametrization"),
    )
    op.create_table(
        "project_composites",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("composite_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["composite_id"], ["composites.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("project_id", "composite_id"),
    )
    op.create_index("project_composites_composite", "project_composites", ["composite_id"], unique=False)
    op.create_table(
        "work_assignments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("composite_id", sa.BigInteger(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("b1", sa.BigInteger(), nullable=True),
        sa.Column("b2", sa.Numeric(precision=22, scale=0), nullable=True),
        sa.Column("parametrization", sa.SmallInteger(), nullable=True),
        sa.Column("curves", sa.BigInteger(), nullable=True),
        sa.Column("curves_completed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'assigned'"), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(closed_at IS NULL) = (status IN ('assigned', 'claimed', 'running'))", name="work_assignments_closed"
        ),
        sa.CheckConstraint(
            "status IN ('assigned', 'claimed', 'running', 'completed', 'failed', 'timeout')",
            name="work_assignments_status",
        ),
        sa.ForeignKeyConstraint(
            ["composite_id"],
            ["composites.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("work_assignments_client", "work_assignments", ["client_id", "created_at"], unique=False)
    op.create_index(
        "work_assignments_composite",
        "work_assignments",
        ["composite_id"],
        unique=False,
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index(
        "work_assignments_expiry",
        "work_assignments",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "ecm_attempts",
        sa.Column("id", sa.BigInteger(), server_default=sa.text("nextval('ecm_attempts_id_seq')"), nullable=False),
        sa.Column("composite_id", sa.BigInteger(), nullable=False),
        sa.Column("submission_id", sa.BigInteger(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("program", sa.Text(), nullable=True),
        sa.Column("program_version", sa.Text(), nullable=True),
        sa.Column("b1", sa.BigInteger(), nullable=True),
        sa.Column("b2", sa.Numeric(precision=22, scale=0), nullable=True),
        sa.Column("parametrization", sa.SmallInteger(), nullable=True),
        sa.Column("curves", sa.BigInteger(), nullable=False),
        sa.Column("superseded_curves", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sigma", sa.Text(), nullable=True),
        sa.Column("execution_time", sa.Double(), nullable=True),
        sa.Column("curves_sha256", sa.LargeBinary(length=32), nullable=True),
        sa.Column("work_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("curves >= 0", name="ecm_attempts_curves"),
        sa.ForeignKeyConstraint(
            ["composite_id"],
            ["composites.id"],
        ),
        sa.ForeignKeyConstraint(
            ["submission_id"],
            ["submissions.id"],
        ),
        sa.ForeignKeyConstraint(["work_id"], ["work_assignments.id"], ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("curves_sha256"),
        sa.UniqueConstraint("submission_id"),
    )
    op.create_index("ecm_attempts_composite", "ecm_attempts", ["composite_id", "id"], unique=False)
    op.create_table(
        "factors",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("composite_id", sa.BigInteger(), nullable=False),
        sa.Column("factor", sa.Text(), nullable=False),
        sa.Column("factor_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("digit_length", sa.Integer(), nullable=False),
        sa.Column("multiplicity", sa.Integer(), nullable=False),
        sa.Column("is_prime", sa.Boolean(), nullable=True),
        sa.Column("split_from_id", sa.BigInteger(), nullable=True),
        sa.Column("child_composite_id", sa.BigInteger(), nullable=True),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("attempt_id", sa.BigInteger(), nullable=True),
        sa.Column("client_id", sa.Text(), nullable=True),
        sa.Column("method", sa.Text(), nullable=True),
        sa.Column("sigma", sa.Text(), nullable=True),
        sa.Column("parametrization", sa.SmallInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"],
            ["ecm_attempts.id"],
        ),
        sa.ForeignKeyConstraint(
            ["child_composite_id"],
            ["composites.id"],
        ),
        sa.ForeignKeyConstraint(
            ["composite_id"],
            ["composites.id"],
        ),
        sa.ForeignKeyConstraint(
            ["split_from_id"],
            ["factors.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "factors_child",
        "factors",
        ["child_composite_id"],
        unique=False,
        postgresql_where=sa.text("child_composite_id IS NOT NULL"),
    )
    op.create_index(
        "factors_once",
        "factors",
        ["composite_id", sa.literal_column("coalesce(split_from_id, 0)"), "factor_sha256"],
        unique=True,
    )
    op.create_index("factors_value", "factors", ["factor_sha256"], unique=False)


def downgrade() -> None:
    op.drop_index("factors_value", table_name="factors")
    op.drop_index("factors_once", table_name="factors")
    op.drop_index("factors_child", table_name="factors", postgresql_where=sa.text("child_composite_id IS NOT NULL"))
    op.drop_table("factors")
    op.drop_index("ecm_attempts_composite", table_name="ecm_attempts")
    op.drop_table("ecm_attempts")
    op.drop_index(
        "work_assignments_expiry", table_name="work_assignments", postgresql_where=sa.text("closed_at IS NULL")
    )
    op.drop_index(
        "work_assignments_composite", table_name="work_assignments", postgresql_where=sa.text("closed_at IS NULL")
    )
    op.drop_index("work_assignments_client", table_name="work_assignments")
    op.drop_table("work_assignments")
    op.drop_index("project_composites_composite", table_name="project_composites")
    op.drop_table("project_composites")
    op.drop_table("composite_effort")
    op.drop_index("composite_aliases_composite", table_name="composite_aliases")
    op.drop_table("composite_aliases")
    op.drop_index("submissions_waiting", table_name="submissions", postgresql_where=sa.text("state = 'received'"))
    op.drop_index(
        "submissions_unsettled", table_name="submissions", postgresql_where=sa.text("state IN ('rejected', 'failed')")
    )
    op.drop_index("submissions_created", table_name="submissions")
    op.drop_table("submissions")
    op.drop_table("projects")
    op.drop_index("jobs_waiting", table_name="jobs", postgresql_where=sa.text("state = 'waiting'"))
    op.drop_table("jobs")
    op.drop_index("composites_parent", table_name="composites", postgresql_where=sa.text("parent_id IS NOT NULL"))
    op.drop_table("composites")
    op.drop_table("clients")
    op.execute(sa.schema.DropSequence(sa.Sequence("ecm_attempts_id_seq")))
