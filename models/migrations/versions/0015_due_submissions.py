"""A submission has the moment from which a worker may take it, instead of marks of its publications."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("submissions", sa.Column("due_at", MOMENT, server_default=sa.func.now(), nullable=False))
    op.add_column("submissions", sa.Column("taken_by", sa.Uuid(), nullable=True))
    op.drop_column("submissions", "publish_count")
    op.drop_column("submissions", "published_at")


def downgrade() -> None:
    op.add_column("submissions", sa.Column("published_at", MOMENT, server_default=sa.func.now(), nullable=False))
    op.add_column("submissions", sa.Column("publish_count", sa.Integer(), server_default="0", nullable=False))
    op.drop_column("submissions", "taken_by")
    op.drop_column("submissions", "due_at")
