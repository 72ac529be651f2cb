"""PostgreSQL and Valkey for one machine: the same servers that `ecm-coordinator up` runs, also for tests.

server = start_postgres(home)        # .url, .pid, .stop(), .kill(), .start(), .restart()
broker = start_valkey(home)
"""

from config.embedded.postgres import start_postgres
from config.embedded.valkey import start_valkey

__all__ = ["start_postgres", "start_valkey"]
