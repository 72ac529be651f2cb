"""A unit of work says in one line how it ended, whose it was and how long it took; and ends as it says."""

import logging

import pytest
import structlog
from sqlalchemy import text

from coordinator.base import unit_of_work


@pytest.fixture
def lines(monkeypatch):
    # A logger of its own: those of these tests are quiet.
    captured = structlog.testing.LogCapture()
    told = structlog.make_filtering_bound_logger(logging.INFO)
    monkeypatch.setattr(unit_of_work, "log", structlog.wrap_logger(None, processors=[captured], wrapper_class=told))
    return captured.entries


INSERT = text("INSERT INTO projects (name) VALUES ('aliquot')")


def projects(engine):
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM projects")).scalar_one()


def test_a_committed_one(engine, lines):
    with unit_of_work.unit_of_work(engine, "add_project", project=7) as connection:
        connection.execute(INSERT)
    (line,) = lines
    assert (line["event"], line["unit"], line["project"]) == ("Transaction committed", "add_project", 7)
    assert 0 < line["ms"] < 60_000
    assert projects(engine) == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_one_that_was_rolled_back_says_why(engine, lines, error):
    with (
        pytest.raises(type(error)),
        unit_of_work.unit_of_work(engine, "add_project", project=7) as connection,
    ):
        connection.execute(INSERT)
        raise error
    (line,) = lines
    assert (line["event"], line["unit"], line["project"]) == ("Transaction rolled back", "add_project", 7)
    assert line["cause"] == type(error).__name__
    assert 0 < line["ms"] < 60_000
    assert projects(engine) == 0
