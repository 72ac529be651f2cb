"""Jobs have a priority, a client and a record of interrupted runs; numbers have the client that registered them."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("composites", sa.Column("registered_by", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("client_id", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("running_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("worker", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("timeouts", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("interruptions", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.drop_column("jobs", "publish_count")
    op.drop_constraint("jobs_state", "jobs", type_="check")
    op.create_check_constraint("jobs_state", "jobs", "state IN ('waiting', 'done', 'failed', 'unknown')")
    op.create_table(
        "job_shares",
        sa.Column("client_id", sa.Text(), primary_key=True),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("job_shares")
    op.add_column("jobs", sa.Column("publish_count", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.execute("UPDATE jobs SET state = 'failed' WHERE state = 'unknown'")
    op.drop_constraint("jobs_state", "jobs", type_="check")
    op.create_check_constraint("jobs_state", "jobs", "state IN ('waiting', 'done', 'failed')")
    for name in ("interruptions", "timeouts", "worker", "running_since", "client_id", "priority"):
        op.drop_column("jobs", name)
    op.drop_column("composites", "registered_by")
