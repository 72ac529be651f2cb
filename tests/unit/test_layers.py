"""What import-linter cannot say in general: the agent takes two modules of the floors, whatever is added to them."""

import subprocess
import sys

FLOORS = {"ingest", "tasks", "coordinator", "models", "config"}
OF_SERVERS = {"flask", "sqlalchemy", "celery", "kombu", "gunicorn", "psycopg2"}


def test_the_agent_takes_nothing_of_the_floors_but_the_wire_and_no_server_library():
    # Its own process: here everything may have been imported by another test.
    script = (
        "import pkgutil, importlib, sys, agent\n"
        "for module in pkgutil.walk_packages(agent.__path__, 'agent.'): importlib.import_module(module.name)\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "agent.cli" in loaded
    wire = {"models", "models.limits", "models.wire", "models.wire.common", "models.wire.results"}
    assert {name for name in loaded if name.partition(".")[0] in FLOORS} == wire
    assert OF_SERVERS.isdisjoint(loaded)
