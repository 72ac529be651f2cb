"""The key of the advisory lock of migrations: apart from them, because importing Alembic takes a third of a second."""

# Two processes that start at once must not migrate the same database together. (coordinator/base/advisory_locks.py has
# the keys of the other locks.)
MIGRATION_LOCK = 0x45434D
