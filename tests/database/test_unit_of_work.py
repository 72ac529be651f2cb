"""A unit of work logs its end, its name and its duration in one line, and that line is true."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import structlog
from sqlalchemy import text

from coordinator.base import unit_of_work


@pytest.fixture
def lines(monkeypatch):
    # The loggers of these tests are silent, so this module gets one of its own.
    captured = structlog.testing.LogCapture()
    logger_class = structlog.make_filtering_bound_logger(logging.INFO)
    monkeypatch.setattr(
        unit_of_work, "log", structlog.wrap_logger(None, processors=[captured], wrapper_class=logger_class)
    )
    return captured.entries


INSERT = text("INSERT INTO projects (name) VALUES ('aliquot')")


def projects(engine):
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM projects")).scalar_one()


def test_a_committed_unit_of_work_is_logged(engine, lines):
    with unit_of_work.unit_of_work(engine, "add_project", project=7) as connection:
        connection.execute(INSERT)
    (line,) = lines
    assert (line["event"], line["unit"], line["project"]) == ("Transaction committed", "add_project", 7)
    assert 0 < line["ms"] < 60_000
    assert projects(engine) == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_a_rolled_back_unit_of_work_is_logged_with_its_cause(engine, lines, error):
    def add_project_and_raise():
        with unit_of_work.unit_of_work(engine, "add_project", project=7) as connection:
            connection.execute(INSERT)
            raise error

    with pytest.raises(type(error)):
        add_project_and_raise()
    (line,) = lines
    assert (line["event"], line["unit"], line["project"]) == ("Transaction rolled back", "add_project", 7)
    assert line["cause"] == type(error).__name__
    assert 0 < line["ms"] < 60_000
    assert projects(engine) == 0


def test_a_unit_of_work_runs_again_after_a_deadlock(engine):
    """Two threads lock two rows in opposite orders; the one that PostgreSQL ends starts anew."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO projects (name) VALUES ('one'), ('two')"))
    both_locked = threading.Barrier(2)
    calls = []

    @unit_of_work.repeats_after_deadlock
    def rename(engine, first, second):
        calls.append(first)
        with unit_of_work.unit_of_work(engine, "rename") as connection:
            connection.execute(text("UPDATE projects SET name = name WHERE name = :name"), {"name": first})
            if len(calls) <= 2:
                both_locked.wait(20)
            connection.execute(text("UPDATE projects SET name = name WHERE name = :name"), {"name": second})
        return first

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(rename, engine, *order) for order in (("one", "two"), ("two", "one"))]
        assert [future.result(60) for future in futures] == ["one", "two"]
    assert len(calls) == 3
