"""What clients do, by the hour and in all, for pages that never count the attempts."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def _sums() -> list[sa.Column[Any]]:
    return [
        sa.Column("results", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("curves", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("seconds", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("factors", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    ]


def upgrade() -> None:
    op.create_table(
        "activity",
        sa.Column("hour", MOMENT, primary_key=True),
        sa.Column("client_id", sa.Text(), primary_key=True),
        *_sums(),
    )
    op.create_table("noted", sa.Column("what", sa.Text(), primary_key=True), sa.Column("until", MOMENT, nullable=False))
    for column in _sums():
        op.add_column("clients", column)
    op.create_index("clients_curves", "clients", ["curves", "name"], unique=False)
    op.create_index("ecm_attempts_created", "ecm_attempts", ["created_at"], unique=False, postgresql_using="brin")


def downgrade() -> None:
    op.drop_index("ecm_attempts_created", table_name="ecm_attempts")
    op.drop_index("clients_curves", table_name="clients")
    for name in ("factors", "seconds", "curves", "results"):
        op.drop_column("clients", name)
    op.drop_table("noted")
    op.drop_table("activity")
