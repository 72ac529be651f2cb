"""What `up` and `migrate` say about a long migration."""

import pytest

from ingest.commands import migrate_command


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(migrate_command, "monotonic", lambda: now[0])
    return now


def test_a_short_migration_prints_nothing(clock, capsys):
    report = migrate_command.print_progress()
    for share in (0.2, 0.7, 1.0):
        report("effort", share)
    assert capsys.readouterr() == ("", "")


def test_a_long_migration_prints_a_line_every_two_seconds_on_standard_error(clock, capsys):
    report = migrate_command.print_progress()
    for step in range(8):
        clock[0] += 0.5
        report("effort", step / 8)
    assert capsys.readouterr() == ("", "migration: effort, 38%\nmigration: effort, 88%\n")


def test_waiting_for_another_process_is_said_at_once(clock, capsys):
    migrate_command.print_progress()("waiting for another process that migrates", None)
    assert capsys.readouterr().err == "migration: waiting for another process that migrates\n"
