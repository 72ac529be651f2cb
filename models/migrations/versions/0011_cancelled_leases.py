"""A column marks the leases that an operator cancelled; a column and an index that no statement uses are dropped."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "work_assignments", sa.Column("is_cancelled", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.create_check_constraint(
        "work_assignments_cancelled", "work_assignments", "status = 'failed' OR NOT is_cancelled"
    )
    op.drop_column("ecm_attempts", "void_reason")
    op.drop_index("admin_events_target", table_name="admin_events")


def downgrade() -> None:
    op.create_index("admin_events_target", "admin_events", ["target", "id"])
    op.add_column("ecm_attempts", sa.Column("void_reason", sa.Text(), nullable=True))
    op.drop_constraint("work_assignments_cancelled", "work_assignments", type_="check")
    op.drop_column("work_assignments", "is_cancelled")
