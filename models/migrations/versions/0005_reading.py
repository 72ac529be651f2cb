"""Reading: what lists are sorted by, and their indexes."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

LISTED = ("digit_length", "listed_t_level", "listed_progress", "listed_state", "priority")
BY = {
    "id": (["id"], [], None),
    "creation": (["created_at", "id"], [], None),
    "digits": (["digit_length", "id"], [], None),
    "t_level": (["listed_t_level", "id"], [], None),
    "progress": (["listed_progress", "id"], ["snfs_difficulty"], None),
    "priority": (["priority", "id"], [], None),
    "state": (["listed_state", "id"], [], "listed_state <> 'composite'"),
}
T_LEVEL = "floor(current_t_level * 10)::integer"
PROGRESS = (
    "CASE WHEN target_t_level > 0 THEN floor(least(current_t_level / target_t_level, 100) * 100)::integer ELSE 100 END"
)
STATE = (
    "CASE WHEN is_fully_factored AND is_prime THEN 'prime' WHEN is_fully_factored THEN 'fully_factored'"
    " WHEN is_prime IS NULL THEN 'unknown' ELSE 'composite' END"
)


def upgrade() -> None:
    # All at once: each by itself would write the whole table anew.
    op.execute(
        "ALTER TABLE composites"
        f" ADD COLUMN listed_t_level integer NOT NULL GENERATED ALWAYS AS ({T_LEVEL}) STORED,"
        f" ADD COLUMN listed_progress integer NOT NULL GENERATED ALWAYS AS ({PROGRESS}) STORED,"
        f" ADD COLUMN listed_state text NOT NULL GENERATED ALWAYS AS ({STATE}) STORED"
    )
    for name, (order, also, where) in BY.items():
        op.create_index(
            f"composites_by_{name}",
            "composites",
            order,
            unique=False,
            postgresql_include=[column for column in (*LISTED, *also) if column not in order],
            postgresql_where=sa.text(where) if where else None,
        )
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
    for name in ("text", *reversed(BY)):
        op.drop_index(f"composites_by_{name}", table_name="composites")
    op.drop_column("composites", "listed_state")
    op.drop_column("composites", "listed_progress")
    op.drop_column("composites", "listed_t_level")
