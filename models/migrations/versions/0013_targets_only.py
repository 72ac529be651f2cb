"""Composites lose what belongs to their targets now, and every attempt has its value."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM owed_work) THEN"
        " RAISE 'This database has numbers to convert: run `ecm-coordinator migrate`'; END IF; END $$"
    )
    # The conversion has created the indexes already, because it needs them.
    op.execute("CREATE INDEX IF NOT EXISTS ecm_attempts_value ON ecm_attempts (value_id, id)")
    op.execute("CREATE INDEX IF NOT EXISTS composites_target ON composites (target_id)")
    op.create_foreign_key("ecm_attempts_value_id_fkey", "ecm_attempts", "worked_values", ["value_id"], ["id"])
    op.create_foreign_key("composites_target_id_fkey", "composites", "targets", ["target_id"], ["id"])
    op.alter_column("ecm_attempts", "value_id", nullable=False)
    op.drop_index("composites_held", table_name="composites")
    op.drop_constraint("composites_hold", "composites", type_="check")
    for name in ("hold", "hold_reason", "held_at", "resumed_at"):
        op.drop_column("composites", name)
    op.drop_table("composite_effort")


def downgrade() -> None:
    op.create_table(
        "composite_effort",
        sa.Column(
            "composite_id", sa.BigInteger(), sa.ForeignKey("composites.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("b1", sa.BigInteger(), primary_key=True),
        sa.Column("b2", sa.Numeric(precision=22, scale=0), primary_key=True),
        sa.Column("parametrization", sa.SmallInteger(), primary_key=True),
        sa.Column("curves", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("prior_curves", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    for name, kind in (("hold", sa.Text()), ("hold_reason", sa.Text()), ("held_at", MOMENT), ("resumed_at", MOMENT)):
        op.add_column("composites", sa.Column(name, kind, nullable=True))
    op.create_check_constraint("composites_hold", "composites", "hold IN ('paused', 'parked')")
    op.create_index(
        "composites_held",
        "composites",
        ["held_at"],
        postgresql_include=["hold"],
        postgresql_where=sa.text("hold IS NOT NULL"),
    )
    op.alter_column("ecm_attempts", "value_id", nullable=True)
    op.drop_constraint("composites_target_id_fkey", "composites", type_="foreignkey")
    op.drop_constraint("ecm_attempts_value_id_fkey", "ecm_attempts", type_="foreignkey")
    op.drop_index("composites_target", table_name="composites")
    op.drop_index("ecm_attempts_value", table_name="ecm_attempts")
