"""The first keys of every PostgreSQL advisory lock of the project: distinct numbers that nothing else takes.

`LOAD_LOCK` and `MIGRATION_LOCK` are used alone. The others take the id or the hash of what is locked as second key.
"""

from models.migrate import MIGRATION_LOCK

JOB_LOCK = 0x4A4F42  # a job, while it runs
CLIENT_LOCK = 0x436C69  # a client, while it claims work
COMPOSITE_LOCK = 0x4E756D  # a composite, while a claim looks at it
LOAD_LOCK = 0x4C6F6164  # the registry, while a list is stored: two lists with the same numbers would deadlock

ALL = (MIGRATION_LOCK, JOB_LOCK, CLIENT_LOCK, COMPOSITE_LOCK, LOAD_LOCK)
