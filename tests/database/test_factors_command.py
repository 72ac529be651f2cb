"""`ecm-coordinator factors`, run as an operator runs it."""

import csv
import json

import pytest
from click.testing import CliRunner
from pipeline import result, submit
from primes import prime, product

from config.settings import settings
from ingest.commands.factors_commands import factors

NUMBER = str(product(prime(15), prime(25), prime(70), prime(71)))


@pytest.fixture
def run(engine, database_url, monkeypatch):
    """Runs the command on a database with two factors of one number, by two clients."""
    submit(engine, result(NUMBER, (str(prime(15)), "1:17"), project="first"))
    submit(engine, result(NUMBER, str(prime(25)), client="=bob"))
    monkeypatch.setenv("DATABASE_URL", database_url)
    settings.cache_clear()
    yield lambda *arguments: CliRunner().invoke(factors, arguments)
    settings.cache_clear()


def test_factors_are_shown_newest_or_largest_first(run):
    answer = run("ls")
    assert answer.exit_code == 0, answer.output
    lines = [line for line in answer.output.splitlines() if "50,000" in line]
    assert [str(prime(25)) in lines[0], "=bob" in lines[0], str(prime(15)) in lines[1]] == [True] * 3
    found = json.loads(run("ls", "--json", "--largest", "--client", "alice").output)
    assert [factor["factor"] for factor in found] == [str(prime(15))]
    assert found[0]["sigma"] == "17"
    assert len(json.loads(run("ls", NUMBER, "--json", "--min-digits", "20").output)) == 1
    assert "There may be more factors than 1" in run("ls", "--limit", "1").output
    assert run("ls", "--client", "nobody").output == "No factors match.\n"


def test_an_unknown_number_or_project_is_reported(run, tmp_path):
    for arguments in (("ls", "17"), ("ls", "--project", "nowhere"), ("ls", "2^")):
        answer = run(*arguments)
        assert answer.exit_code == 1
        assert answer.output.startswith("Error: ")
    file = tmp_path / "factors.csv"
    assert run("export", str(file), "--project", "nowhere").exit_code == 1
    assert not file.exists()


def test_an_export_is_a_file_or_goes_to_the_next_program(run, tmp_path):
    file = tmp_path / "factors.csv"
    assert run("export", str(file)).exit_code == 0
    with file.open() as lines:
        listed = list(csv.DictReader(lines))
    assert [(factor["factor"], factor["client_id"]) for factor in listed] == [
        (str(prime(15)), "alice"),
        (str(prime(25)), "'=bob"),
    ]
    lines = run("export", "-", "--format", "ndjson", "--project", "first", "--since", "2020-01-01").output.splitlines()
    assert [json.loads(line)["factor"] for line in lines] == [str(prime(15)), str(prime(25))]
