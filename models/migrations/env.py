"""Alembic's entry: migrate over the connection we are handed, or over `DATABASE_URL` from Alembic's command line.

Each revision is a transaction of its own, unless the connection that we are handed is in a transaction.
"""

import os

from alembic import context
from sqlalchemy import Connection

from models.engine import make_engine
from models.migrate import migration_lock, prepare_session
from models.tables import Base


def run_over(connection: Connection) -> None:
    """Run the migrations that Alembic was asked for."""
    context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


handed_connection = context.config.attributes.get("connection")
if handed_connection is not None:
    run_over(handed_connection)
else:
    engine = make_engine(os.environ["DATABASE_URL"], pool_size=2)
    with migration_lock(engine), engine.connect() as own_connection:
        with own_connection.begin():
            prepare_session(own_connection)
        run_over(own_connection)
    engine.dispose()
