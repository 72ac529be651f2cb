"""The first keys of all PostgreSQL advisory locks of the project, which are distinct numbers, and the lock of a client.

`LOAD_LOCK` and `MIGRATION_LOCK` are used alone. The other locks have a second key: the id or the hash of the row that
they lock.
"""

from sqlalchemy import Connection, text

from models.migration_lock import MIGRATION_LOCK

JOB_LOCK = 0x4A4F42  # held for a job while it runs
CLIENT_LOCK = 0x436C69  # held for a client while it claims a lease or a residue
TARGET_LOCK = 0x4E756D  # held for a target while a claim examines it
LOAD_LOCK = 0x4C6F6164  # held while a list is stored: two lists with the same numbers would deadlock

ALL = (MIGRATION_LOCK, JOB_LOCK, CLIENT_LOCK, TARGET_LOCK, LOAD_LOCK)


def lock_client(connection: Connection, client_id: str) -> None:
    """Let the claims of this client go one after another, until the end of the transaction.

    Whoever counts what a client holds takes this lock first, and counts in a statement after it, which sees what other
    claims committed while this one waited.
    """
    connection.execute(_LOCK_CLIENT, {"lock": CLIENT_LOCK, "client": client_id})


_LOCK_CLIENT = text("SELECT pg_advisory_xact_lock(:lock, hashtext(:client))")
