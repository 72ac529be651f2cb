"""What import-linter cannot check: who commits, and which modules the agent imports, whatever is added to them."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = {"ingest", "tasks", "coordinator", "models", "config"}
SERVER_LIBRARIES = {"flask", "sqlalchemy", "celery", "kombu", "gunicorn", "psycopg2"}
UNIT_OF_WORK = "coordinator/base/unit_of_work.py"


def transaction_ends(path):
    """The lines of a module that call commit or rollback on anything."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if getattr(call.func, "attr", "") in ("commit", "rollback")]


def test_only_the_unit_of_work_commits_and_rolls_back():
    found = {}
    for package in sorted(LAYERS):
        for path in (ROOT / package).rglob("*.py"):
            if lines := transaction_ends(path):
                found[str(path.relative_to(ROOT))] = lines
    assert list(found) == [UNIT_OF_WORK]
    assert len(found[UNIT_OF_WORK]) == 2


def test_the_agent_imports_the_wire_and_the_limits_and_no_server_library():
    # In a process of its own, because other tests may have imported everything here.
    script = (
        "import pkgutil, importlib, sys, agent\n"
        "for module in pkgutil.walk_packages(agent.__path__, 'agent.'): importlib.import_module(module.name)\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "agent.cli" in loaded
    wire = {"models", "models.limits", "models.wire", "models.wire.common", "models.wire.results"}
    assert {name for name in loaded if name.partition(".")[0] in LAYERS} == wire
    assert SERVER_LIBRARIES.isdisjoint(loaded)


def test_beat_loads_nothing_of_the_database():
    # It publishes tasks by their names; loading them all would take it twice the time and memory.
    script = "import sys, tasks.beat\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "tasks.publishing" in loaded
    assert {name for name in loaded if name.partition(".")[0] in {"sqlalchemy", "alembic", "coordinator"}} == set()
