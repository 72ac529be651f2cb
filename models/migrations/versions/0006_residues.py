"""Residues: stage 1 here, stage 2 there, and which attempts did which part."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "ecm_residues",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("composite_id", sa.BigInteger(), sa.ForeignKey("composites.id"), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("stage1_attempt_id", sa.BigInteger(), nullable=True),
        sa.Column("stage2_attempt_id", sa.BigInteger(), nullable=True),
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("b1", sa.BigInteger(), nullable=False),
        sa.Column("parametrization", sa.SmallInteger(), nullable=False),
        sa.Column("curve_count", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False, unique=True),
        sa.Column("file_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("has_file", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'available'"), nullable=False),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("claimed_at", MOMENT, nullable=True),
        sa.Column("claim_expires_at", MOMENT, nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("closed_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["stage1_attempt_id"], ["ecm_attempts.id"], name="ecm_residues_stage1_attempt", ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["stage2_attempt_id"], ["ecm_attempts.id"], name="ecm_residues_stage2_attempt", ondelete="SET NULL"
        ),
        sa.CheckConstraint(
            "status IN ('available', 'claimed', 'completed', 'closed', 'expired')", name="ecm_residues_status"
        ),
        sa.CheckConstraint("(closed_at IS NULL) = (status IN ('available', 'claimed'))", name="ecm_residues_closed"),
        sa.CheckConstraint("(claimed_by IS NOT NULL) OR status <> 'claimed'", name="ecm_residues_claimer"),
    )
    for name, column, unique, where in (
        ("sha256", "sha256", True, "status IN ('available', 'claimed', 'completed')"),
        ("composite", "composite_id", False, None),
        ("stage1", "stage1_attempt_id", False, None),
        ("available", "id", False, "status = 'available'"),
        ("claimed", "claim_expires_at", False, "status = 'claimed'"),
        ("files", "id", False, "has_file"),
    ):
        op.create_index(
            f"ecm_residues_{name}",
            "ecm_residues",
            [column],
            unique=unique,
            postgresql_where=sa.text(where) if where else None,
        )
    op.add_column("ecm_attempts", sa.Column("residue_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(
        "ecm_attempts_residue_id_fkey", "ecm_attempts", "ecm_residues", ["residue_id"], ["id"], ondelete="SET NULL"
    )
    op.add_column(
        "ecm_attempts", sa.Column("superseding_curves", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.create_index(
        "ecm_attempts_residue",
        "ecm_attempts",
        ["residue_id"],
        unique=False,
        postgresql_where=sa.text("residue_id IS NOT NULL"),
    )
    op.add_column("composites", sa.Column("open_residues", sa.Integer(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    op.drop_column("composites", "open_residues")
    op.drop_index("ecm_attempts_residue", table_name="ecm_attempts")
    op.drop_column("ecm_attempts", "superseding_curves")
    op.drop_column("ecm_attempts", "residue_id")
    op.drop_table("ecm_residues")
