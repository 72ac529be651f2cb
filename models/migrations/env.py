"""Alembic's entry: migrate over the connection we are handed, or over `DATABASE_URL` from Alembic's command line."""

import os

from alembic import context

from models.engine import make_engine
from models.tables import Base

connection = context.config.attributes.get("connection")
if connection is not None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    context.run_migrations()
else:
    with make_engine(os.environ["DATABASE_URL"]).begin() as own_connection:
        context.configure(connection=own_connection, target_metadata=Base.metadata)
        context.run_migrations()
