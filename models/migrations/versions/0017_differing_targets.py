"""A recalculation keeps only which targets differ; it computes them again, without locks, before it writes them."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("effort", "seen_effort", "attempt_count"):
        op.drop_column("recalculated_efforts", name)


def downgrade() -> None:
    # A recalculation that has not been written yet begins its last step again without these rows.
    op.execute("DELETE FROM recalculated_efforts")
    op.add_column("recalculated_efforts", sa.Column("effort", sa.LargeBinary(), nullable=False))
    op.add_column("recalculated_efforts", sa.Column("seen_effort", sa.LargeBinary(), nullable=False))
    op.add_column("recalculated_efforts", sa.Column("attempt_count", sa.BigInteger(), nullable=False))
