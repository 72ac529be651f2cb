"""Administration: its log, clients' keys, voided attempts, provenance and group orders of factors, recalculations."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "admin_events",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("before", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("after", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("admin_events_target", "admin_events", ["target", "id"], unique=False)
    op.create_table(
        "client_keys",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("key_sha256"),
    )
    op.create_table(
        "recalculations",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("only_missing", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'computing'"), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cursor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('computing', 'writing', 'done', 'failed')", name="recalculations_state"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "recalculations_running",
        "recalculations",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_table(
        "recalculated_efforts",
        sa.Column("recalculation_id", sa.BigInteger(), nullable=False),
        sa.Column("composite_id", sa.BigInteger(), nullable=False),
        sa.Column("effort", sa.LargeBinary(), nullable=False),
        sa.Column("seen_effort", sa.LargeBinary(), nullable=False),
        sa.Column("attempt_count", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["composite_id"], ["composites.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["recalculation_id"], ["recalculations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("recalculation_id", "composite_id"),
    )
    op.add_column("ecm_attempts", sa.Column("voided_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("ecm_attempts", sa.Column("void_reason", sa.Text(), nullable=True))
    op.add_column("factors", sa.Column("source", sa.Text(), nullable=True))
    op.add_column("factors", sa.Column("found_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("factors", sa.Column("group_order", sa.Text(), nullable=True))
    op.add_column("factors", sa.Column("group_order_factors", sa.Text(), nullable=True))
    op.add_column("factors", sa.Column("is_explained", sa.Boolean(), nullable=True))
    op.add_column("factors", sa.Column("order_remark", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("factors", "order_remark")
    op.drop_column("factors", "is_explained")
    op.drop_column("factors", "group_order_factors")
    op.drop_column("factors", "group_order")
    op.drop_column("factors", "found_at")
    op.drop_column("factors", "source")
    op.drop_column("ecm_attempts", "void_reason")
    op.drop_column("ecm_attempts", "voided_at")
    op.drop_table("recalculated_efforts")
    op.drop_index(
        "recalculations_running", table_name="recalculations", postgresql_where=sa.text("finished_at IS NULL")
    )
    op.drop_table("recalculations")
    op.drop_table("client_keys")
    op.drop_index("admin_events_target", table_name="admin_events")
    op.drop_table("admin_events")
