"""`ecm-coordinator work`, for operators: what it shows and does, and that its errors are sentences."""

import json
import os
import subprocess
import sys
import uuid

import pytest
from click.testing import CliRunner
from pipeline import composite, lease, rows, run_sql, scalar, submit
from pipeline import result as body
from primes import prime, product
from sqlalchemy import make_url

from config.settings import settings
from coordinator.leases import claims, reservations
from coordinator.leases.work_request import WorkRequest
from ingest.cli import main
from ingest.commands.leases_commands import work
from models.wire.work import Assignment

N = product(prime(30), prime(40), prime(50))
M = product(prime(31), prime(41), prime(51))


@pytest.fixture
def call(database_url, monkeypatch):
    """Calls the command on this test's database; the result has standard output and standard error apart."""
    monkeypatch.setattr("ingest.commands.database.configure_logging", lambda *_: None)
    monkeypatch.setenv("DATABASE_URL", database_url)
    settings.cache_clear()
    yield lambda *arguments: CliRunner().invoke(work, arguments)
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture
def numbers(engine):
    """The ids of two numbers that can be leased."""
    for value in (N, M):
        submit(engine, body(str(value), curves=1))
    return composite(engine, str(N)).id, composite(engine, str(M)).id


def claim(engine, number, client="alice", **more):
    return claims.claim(engine, WorkRequest(client, composite=str(number), **more), settings())


# ls ------------------------------------------------------------------------------------------------------------------


def test_open_leases_as_a_table(call, engine, numbers):
    shared = claim(engine, N, "[red]alice[/red]", shared=True)
    whole = claim(engine, M, "bob")
    run_sql(engine, "UPDATE work_assignments SET expires_at = now() - interval '1 hour' WHERE client_id = 'bob'")
    result = call("ls")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith((str(shared.work_id), str(whole.work_id)))]
    assert [line[:36] for line in lines] == [str(whole.work_id), str(shared.work_id)]  # what runs out first first
    assert "bob" in lines[0]
    assert lines[0].rstrip().endswith("overdue")
    for word in ("[red]alice[/red]", f"B1={shared.plan.b1:,}", f"0 of {shared.plan.curves:,}", "assigned", "in "):
        assert word in lines[1]
    assert f"{numbers[0]} ({shared.composite.digit_length} digits)" in lines[1]


def test_a_narrow_terminal_cuts_no_work_id(call, engine, numbers, monkeypatch):
    made = claim(engine, N, "a" * 200)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    assert str(made.work_id) in call("ls").stdout


def test_leases_as_json_are_what_the_api_shows(call, engine, numbers):
    made = claim(engine, N, shared=True)
    claim(engine, M, "bob")
    (shown,) = json.loads(call("ls", "--json", "--client", "alice").stdout)
    assert set(shown) == set(Assignment.model_fields)
    assert (shown["work_id"], shown["curves"], shown["composite"]) == (str(made.work_id), made.plan.curves, str(N))
    assert len(json.loads(call("ls", "--json").stdout)) == 2
    assert json.loads(call("ls", "--json", "--client", "nobody").stdout) == []


def test_a_cut_list_of_leases_is_reported(call, engine, numbers):
    claim(engine, N)
    claim(engine, M)
    cut = call("ls", "--json", "--limit", "1")
    assert len(json.loads(cut.stdout)) == 1
    assert "more rows than 1" in cut.stderr
    assert call("ls", "--json", "--limit", "2").stderr == ""


def test_nothing_to_show(call):
    assert call("ls").stdout == "No leases are open.\n"
    assert call("ls", "--held").stdout == "No number is paused or set aside.\n"
    assert json.loads(call("ls", "--held", "--json").stdout) == []


def test_held_numbers_are_listed_with_the_reason(call, engine, numbers):
    reservations.pause(engine, numbers[0], "its factors are known elsewhere")
    assert call("pause", str(numbers[1])).exit_code == 0
    shown = json.loads(call("ls", "--held", "--json").stdout)
    assert [(held["composite_id"], held["hold"], held["hold_reason"]) for held in shown] == [
        (numbers[1], "paused", "paused by an operator"),  # the latest first
        (numbers[0], "paused", "its factors are known elsewhere"),
    ]
    assert shown[1]["number"] == str(N)
    table = call("ls", "--held").stdout
    assert "its factors are known elsewhere" in table
    assert f"({len(str(N))} digits)" in table
    assert call("ls", "--held", "--client", "alice").exit_code == 2


# cancel, cleanup -----------------------------------------------------------------------------------------------------


def test_a_cancelled_lease_is_closed_once(call, engine, numbers):
    made = claim(engine, N)
    result = call("cancel", str(made.work_id), "--reason", "the machine is gone")
    assert (result.exit_code, result.stdout) == (
        0,
        f"lease {made.work_id} of alice is cancelled: the machine is gone\n",
    )
    assert composite(engine, str(N)).open_leases == 0
    assert call("cancel", str(made.work_id)).stdout == result.stdout  # as it was


@pytest.mark.parametrize(
    ("work_id", "message"),
    [(str(uuid.UUID(int=7)), "there is no work 0000"), ("7; DROP TABLE", "'7; DROP TABLE' is no")],
)
def test_unknown_leases_cannot_be_cancelled(call, engine, numbers, work_id, message):
    made = claim(engine, N)
    result = call("cancel", work_id)
    assert result.exit_code == 1
    assert message in result.stderr
    assert scalar(engine, "SELECT status FROM work_assignments WHERE id = :id", id=made.work_id) == "assigned"


def test_cleanup_ends_overdue_leases_and_no_others(call, engine, numbers):
    lease(engine, numbers[0], expires="now() - interval '1 second'")
    kept = lease(engine, numbers[1])
    assert call("cleanup").stdout == "1 overdue lease timed out.\n"
    assert call("cleanup").stdout == "0 overdue leases timed out.\n"
    states = rows(engine, "SELECT status FROM work_assignments ORDER BY id <> :kept", kept=kept)
    assert [row.status for row in states] == ["assigned", "timeout"]


# pause, resume -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["its id", "its value", "an expression"])
def test_a_number_is_paused_and_resumed_by_any_name(call, engine, numbers, name):
    named = {"its id": str(numbers[0]), "its value": str(N), "an expression": f"2*{N}-{N}"}[name]
    result = call("pause", named, "--reason", "looked at")
    assert (result.exit_code, result.stdout) == (
        0,
        f"composite {numbers[0]} is paused: looked at; 0 open leases go on\n",
    )
    assert not composite(engine, str(N)).ecm_eligible
    assert isinstance(claim(engine, N), claims.NoWork)
    for _ in range(2):
        result = call("resume", named)
        assert (result.exit_code, result.stdout) == (0, f"composite {numbers[0]} gets work again\n")
    assert isinstance(claim(engine, N), claims.Claim)
    assert "it needs no ECM now" in call("resume", named).stdout  # it is leased


@pytest.mark.parametrize("verb", ["pause", "resume"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("15", "15 is neither a number of this server nor the id of one"),
        ("9" * 40, "neither a number of this server"),
        ("9^9^9^9", "9^9^9^9"),
        ("", "decimal number or an expression"),
        ("' OR 1=1 --", "OR"),
    ],
)
@pytest.mark.usefixtures("numbers")
def test_unknown_numbers_are_refused(call, engine, verb, number, message):
    result = call(verb, "--", number)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert rows(engine, "SELECT hold FROM targets WHERE hold IS NOT NULL") == []


@pytest.mark.parametrize("reason", ["two\nlines", "a bell \x07", "half a pair \ud800"])
def test_a_reason_is_one_line_of_text(call, engine, numbers, reason):
    result = call("pause", str(numbers[0]), "--reason", reason)
    assert result.exit_code == 2
    assert "--reason" in result.stderr
    assert composite(engine, str(N)).hold is None


# The database it works on --------------------------------------------------------------------------------------------


def test_a_missing_database_gives_one_sentence(call, database_url, tmp_path, monkeypatch):
    def refusal(url, *arguments):
        monkeypatch.setenv("DATABASE_URL", url)
        settings.cache_clear()
        result = call("ls", *arguments)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        return result.stderr

    assert "does not answer" in refusal("postgresql://ecm@127.0.0.1:1/ecm")
    assert "postgresql://user" in refusal("no url")
    unmigrated = make_url(database_url).set(database="postgres").render_as_string(hide_password=False)
    assert "schema" in refusal(unmigrated)
    missing = tmp_path / "home"
    assert f"{missing} has no database" in refusal("", "--home", str(missing))
    assert not missing.exists()


def test_standard_output_has_nothing_but_json(database_url, engine, numbers):
    """In a process of its own, with the logging of an operator's shell."""
    made = claim(engine, N)
    script = "from ingest.cli import main; main()"
    environment = {**os.environ, "DATABASE_URL": database_url, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*arguments):
        command = [sys.executable, "-c", script, "work", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    done = run("cancel", str(made.work_id))
    assert done.stdout.splitlines() == [f"lease {made.work_id} of alice is cancelled: cancelled by an operator"]
    assert json.loads(run("ls", "--json").stdout) == []


# Help ----------------------------------------------------------------------------------------------------------------


def test_help_describes_every_command():
    listed = CliRunner().invoke(main, ["--help"]).stdout
    assert "List and cancel leases" in listed
    group = CliRunner().invoke(main, ["work", "--help"]).stdout
    for verb, words in {
        "ls": ("--client", "--held", "--json", "--limit", "open leases"),
        "cancel": ("WORK_ID", "--reason", "Exit status:"),
        "cleanup": ("overdue",),
        "pause": ("NUMBER", "--reason", "its id", "Exit status:"),
        "resume": ("NUMBER", "set aside", "Exit status:"),
    }.items():
        assert f"\n  {verb} " in group
        shown = " ".join(CliRunner().invoke(main, ["work", verb, "--help"]).stdout.split())
        for word in (*words, "--home"):
            assert word in shown, (verb, word)
