"""An index for each foreign key that had none, and one for the deletion of old jobs.

Without an index, PostgreSQL reads a whole table of references for each row that is deleted from the table referred to.
"""

import sqlalchemy as sa
from alembic import op

from models.migrations import concurrently

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    split = sa.text("split_from_id IS NOT NULL")
    concurrently.create_index("factors_split_from", "factors", ["split_from_id"], postgresql_where=split)
    stage2 = sa.text("stage2_attempt_id IS NOT NULL")
    concurrently.create_index("ecm_residues_stage2", "ecm_residues", ["stage2_attempt_id"], postgresql_where=stage2)
    concurrently.create_index("recalculated_efforts_target", "recalculated_efforts", ["target_id"])
    done = sa.text("state = 'done'")
    concurrently.create_index("jobs_done", "jobs", ["finished_at"], postgresql_where=done)
    # One index for the open and the past leases of a composite. Neither of the two was of use for the foreign key,
    # because each had a part of the rows.
    concurrently.create_index("work_assignments_of_composite", "work_assignments", ["composite_id", "closed_at"])
    concurrently.drop_index("work_assignments_composite", "work_assignments")
    concurrently.drop_index("work_assignments_past", "work_assignments")


def downgrade() -> None:
    op.create_index(
        "work_assignments_past",
        "work_assignments",
        ["composite_id", "closed_at"],
        postgresql_where=sa.text("closed_at IS NOT NULL"),
    )
    op.create_index(
        "work_assignments_composite",
        "work_assignments",
        ["composite_id"],
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.drop_index("work_assignments_of_composite", table_name="work_assignments")
    op.drop_index("jobs_done", table_name="jobs")
    op.drop_index("recalculated_efforts_target", table_name="recalculated_efforts")
    op.drop_index("ecm_residues_stage2", table_name="ecm_residues")
    op.drop_index("factors_split_from", table_name="factors")
