"""Indexes of tables that live processes use: built and dropped without holding up readers or writers.

CREATE INDEX blocks every writer until it is done; with CONCURRENTLY it takes longer and blocks nobody. It cannot run in
a transaction, so what its revision did before it is committed first, and an interrupted revision is run again from its
beginning: everything before and after these functions has to allow that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import op


def create_index(name: str, table: str, columns: list[Any], **options: Any) -> None:
    """Create an index if it is not there yet. An interrupted build leaves an invalid index, which is dropped first."""
    is_invalid = sa.text(
        "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid)"
    )
    with _outside_of_transactions():
        if op.get_bind().execute(is_invalid.bindparams(name=name)).scalar_one():
            op.drop_index(name, postgresql_concurrently=True, if_exists=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, if_not_exists=True, **options)


def drop_index(name: str, table: str) -> None:
    """Drop an index if it is there."""
    with _outside_of_transactions():
        op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)


@contextmanager
def _outside_of_transactions() -> Iterator[None]:
    """Commit what the revision did so far, and run a block in which every statement is a transaction.

    These statements wait for older transactions, which may take minutes. Nobody is queued behind them meanwhile, so
    they need no lock timeout; each one that ran out would mean to build the index again from its beginning.
    """
    with op.get_context().autocommit_block():
        before = op.get_bind().execute(sa.text("SHOW lock_timeout")).scalar_one()
        op.execute("SET lock_timeout = 0")
        yield
        op.execute(sa.text("SELECT set_config('lock_timeout', :before, false)").bindparams(before=before))
