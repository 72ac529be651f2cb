"""An index by which the analysis worker finds its next job.

A revision of its own: an index that is built concurrently commits what its revision did before it, and a revision that
is interrupted is run again as a whole.
"""

import sqlalchemy as sa
from alembic import op

from models.migrations import concurrently

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    columns = ["priority", sa.text("coalesce(client_id, '')"), "id"]
    concurrently.create_index("jobs_next", "jobs", columns, postgresql_where=sa.text("state = 'waiting'"))


def downgrade() -> None:
    op.drop_index("jobs_next", table_name="jobs")
