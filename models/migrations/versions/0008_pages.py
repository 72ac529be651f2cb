"""Indexes that pages are read from: refused results that hold true factors, and why numbers are kept from work."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "submissions_true_factors",
        "submissions",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state = 'rejected' AND outcome ? 'true_factors'"),
    )
    op.drop_index("composites_held", table_name="composites")
    op.create_index(
        "composites_held",
        "composites",
        ["held_at"],
        unique=False,
        postgresql_include=["hold"],
        postgresql_where=sa.text("hold IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("composites_held", table_name="composites")
    op.create_index(
        "composites_held", "composites", ["held_at"], unique=False, postgresql_where=sa.text("hold IS NOT NULL")
    )
    op.drop_index("submissions_true_factors", table_name="submissions")
