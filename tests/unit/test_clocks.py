"""The database's clock decides: nothing in coordinator/ reads another one, and no message of beat expires."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import fakeredis
import pytest
from celery.beat import ScheduleEntry

from tasks import beat
from tasks.app import app

ROOT = Path(__file__).parents[2]
WALL_CLOCKS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"), ("time", "time")}


def wall_clocks(path):
    """The calls in a module that read this machine's clock of the day, and its imports of `time.time`."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    imported = [
        name.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "time" for name in node.names
    ]
    return [f"from time import {name}" for name in imported if name == "time"] + [
        f"{call.value.id}.{call.attr}"
        for call in calls
        if isinstance(call, ast.Attribute)
        and isinstance(call.value, ast.Name)
        and (call.value.id, call.attr) in WALL_CLOCKS
    ]


def test_the_coordinator_and_its_tables_read_no_clock_but_the_databases():
    found = {
        str(path.relative_to(ROOT)): calls
        for package in ("coordinator", "models", "tasks")
        for path in (ROOT / package).rglob("*.py")
        if (calls := wall_clocks(path))
    }
    # Heartbeats only compare this clock with the broker's, and Flower shows when a worker began, as for Celery's tasks.
    assert sorted(found) == ["tasks/analysis.py", "tasks/heartbeats.py", "tasks/results.py"]
    assert {name for calls in found.values() for name in calls} == {"from time import time"}


@pytest.fixture
def scheduler(monkeypatch):
    """Beat's scheduler with a broker in memory; `published` has the entries that it published."""
    broker = fakeredis.FakeRedis(decode_responses=True)
    monkeypatch.setattr(beat.heartbeats, "connect", lambda url: broker)
    monkeypatch.setattr(beat.publishing, "use_short_timeouts", lambda: None)
    made = beat.HeartbeatScheduler(app, lazy=True)
    published = []
    monkeypatch.setattr(made, "apply_async", lambda entry, producer, advance: published.append(entry))
    return SimpleNamespace(scheduler=made, broker=broker, published=published)


def entry(task="tasks.housekeeping.prune"):
    return ScheduleEntry(name=task, task=task, schedule=10, app=app)


def test_no_message_of_beat_expires_by_the_clock_of_a_worker(scheduler):
    assert app.conf.beat_schedule
    assert all("options" not in entry for entry in app.conf.beat_schedule.values())
    assert app.conf.task_annotations is None


def test_one_message_of_each_kind_waits_however_long_no_worker_takes_any(scheduler):
    waiting = json.dumps({"body": "", "headers": {"task": "tasks.housekeeping.prune"}})
    scheduler.broker.lpush("ecm:housekeeping", waiting)
    for _ in range(100):
        scheduler.scheduler.apply_entry(entry())
    assert scheduler.published == []
    scheduler.scheduler.apply_entry(entry("tasks.housekeeping.expire_leases"))
    scheduler.broker.delete("ecm:housekeeping")
    scheduler.scheduler.apply_entry(entry())
    assert [one.task for one in scheduler.published] == [
        "tasks.housekeeping.expire_leases",
        "tasks.housekeeping.prune",
    ]
