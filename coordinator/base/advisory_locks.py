"""The first keys of all PostgreSQL advisory locks of the project; they are distinct numbers.

`LOAD_LOCK` and `MIGRATION_LOCK` are used alone. The other locks have a second key: the id or the hash of the row that
they lock.
"""

from models.migration_lock import MIGRATION_LOCK

JOB_LOCK = 0x4A4F42  # held for a job while it runs
CLIENT_LOCK = 0x436C69  # held for a client while it claims work
TARGET_LOCK = 0x4E756D  # held for a target while a claim examines it
LOAD_LOCK = 0x4C6F6164  # held while a list is stored: two lists with the same numbers would deadlock

ALL = (MIGRATION_LOCK, JOB_LOCK, CLIENT_LOCK, TARGET_LOCK, LOAD_LOCK)
