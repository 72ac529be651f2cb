"""The open leases in the order they are shown in: by when they run out, then by their ids."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

OPEN = sa.text("closed_at IS NULL")


def upgrade() -> None:
    op.drop_index("work_assignments_expiry", table_name="work_assignments")
    op.create_index("work_assignments_expiry", "work_assignments", ["expires_at", "id"], postgresql_where=OPEN)


def downgrade() -> None:
    op.drop_index("work_assignments_expiry", table_name="work_assignments")
    op.create_index("work_assignments_expiry", "work_assignments", ["expires_at"], postgresql_where=OPEN)
