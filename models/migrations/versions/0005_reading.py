"""Reading: what lists are sorted by, and their indexes."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

LISTED = ("digit_length", "listed_t_level", "listed_progress", "priority", "is_prime", "is_fully_factored")
BY = {
    "digits": (["digit_length"], [], None),
    "t_level": (["listed_t_level"], [], None),
    "progress": (["listed_progress"], ["snfs_difficulty"], None),
    "priority": (["priority"], [], None),
    "state": (["is_fully_factored", "is_prime"], [], "is_fully_factored OR is_prime IS NULL"),
}
# PostgreSQL computes these anew with every update of a row, whoever makes it; rounded, they stay what they were mostly.
PROGRESS = (
    "CASE WHEN target_t_level > 0 THEN floor(least(current_t_level / target_t_level, 100) * 100)::integer ELSE 100 END"
)


def upgrade() -> None:
    # Both at once: each by itself would write the whole table anew.
    op.execute(
        "ALTER TABLE composites"
        " ADD COLUMN listed_t_level integer NOT NULL"
        " GENERATED ALWAYS AS (floor(current_t_level * 10)::integer) STORED,"
        f" ADD COLUMN listed_progress integer NOT NULL GENERATED ALWAYS AS ({PROGRESS}) STORED"
    )
    for name, (order, also, where) in BY.items():
        op.create_index(
            f"composites_by_{name}",
            "composites",
            [*order, "id"],
            unique=False,
            postgresql_include=[column for column in (*LISTED, *also) if column not in order],
            postgresql_where=sa.text(where) if where else None,
        )
    op.create_index("composites_by_creation", "composites", ["created_at", "id"], unique=False)
    op.execute("CREATE INDEX composites_by_text ON composites (left(number, 60) text_pattern_ops, id)")
    op.create_index(
        "factors_newest",
        "factors",
        ["created_at", "id"],
        unique=False,
        postgresql_include=["digit_length", "is_prime"],
    )
    op.create_index("factors_largest", "factors", ["digit_length", "id"], unique=False, postgresql_include=["is_prime"])
    op.create_index(
        "factors_client",
        "factors",
        ["client_id", "created_at", "id"],
        unique=False,
        postgresql_include=["digit_length", "is_prime"],
        postgresql_where=sa.text("client_id IS NOT NULL"),
    )
    op.create_index(
        "factors_unproven", "factors", ["id"], unique=False, postgresql_where=sa.text("is_prime IS NOT TRUE")
    )


def downgrade() -> None:
    for name in ("unproven", "client", "largest", "newest"):
        op.drop_index(f"factors_{name}", table_name="factors")
    for name in ("text", "creation", *reversed(BY)):
        op.drop_index(f"composites_by_{name}", table_name="composites")
    op.drop_column("composites", "listed_progress")
    op.drop_column("composites", "listed_t_level")
