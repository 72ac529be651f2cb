"""Columns and tables named in the field's words: publishing, eligibility, hourly statistics, watermarks."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

COLUMNS = (
    ("submissions", "rings", "publish_count"),
    ("submissions", "rung_at", "published_at"),
    ("jobs", "rings", "publish_count"),
    ("jobs", "rung_at", "published_at"),
    ("jobs", "asked", "request_count"),
    ("composites", "wants_ecm", "ecm_eligible"),
    ("composites", "wants_pm1", "pm1_eligible"),
    ("composites", "wants_pp1", "pp1_eligible"),
    ("composites", "wanted_p1_b1", "p1_target_b1"),
)
TABLES = (("activity", "client_hourly_stats"), ("noted", "watermarks"))
WATERMARK = "UPDATE watermarks SET what = '{}' WHERE what = '{}'"


def upgrade() -> None:
    for table, old, new in COLUMNS:
        op.alter_column(table, old, new_column_name=new)
    for old, new in TABLES:
        op.rename_table(old, new)
        op.execute(f"ALTER INDEX {old}_pkey RENAME TO {new}_pkey")
    op.execute(WATERMARK.format("client_hourly_stats", "activity"))


def downgrade() -> None:
    op.execute(WATERMARK.format("activity", "client_hourly_stats"))
    for old, new in TABLES:
        op.execute(f"ALTER INDEX {new}_pkey RENAME TO {old}_pkey")
        op.rename_table(new, old)
    for table, old, new in COLUMNS:
        op.alter_column(table, new, new_column_name=old)
