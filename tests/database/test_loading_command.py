"""`ecm-coordinator composites import`, run as an operator runs it."""

import json

import pytest
from click.testing import CliRunner
from pipeline import rows, scalar

from config.settings import settings
from ingest.commands.composites_commands import composites


@pytest.fixture
def run(database_url, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", database_url)
    settings.cache_clear()
    yield lambda *arguments, **options: CliRunner().invoke(composites, ["import", *map(str, arguments)], **options)
    settings.cache_clear()


def test_a_file_is_loaded_for_a_project(engine, run, tmp_path):
    file = tmp_path / "numbers.txt"
    file.write_text("# mine\n15\n2^67-1\n")
    answer = run(file, "--project", "Mine", "--priority", "3")
    assert answer.exit_code == 0, answer.output
    assert "2 numbers: 2 new, 0 known" in answer.output
    assert rows(engine, "SELECT DISTINCT priority FROM composites") == [(3,)]
    assert scalar(engine, "SELECT count(*) FROM project_composites") == 2
    answer = run(file, "--priority", "4", "--json")
    assert json.loads(answer.output)["updated_composites"] == 2
    assert rows(engine, "SELECT DISTINCT actor <> '' FROM admin_events") == [(True,)]


def test_bad_lines_are_named_and_nothing_or_the_rest_is_loaded(engine, run):
    answer = run("-", input="15\n=1+1\n")
    assert answer.exit_code == 1
    assert "line 2: '=1+1'" in answer.output
    assert "nothing was stored" in answer.output
    assert scalar(engine, "SELECT count(*) FROM composites") == 0
    answer = run("-", "--on-error", "skip", "--dry-run", input="15\n=1+1\n")
    assert answer.exit_code == 0
    assert "2 numbers: 1 new, 0 known (0 of them changed), 1 invalid; nothing was stored" in answer.output
    assert scalar(engine, "SELECT count(*) FROM composites") == 0
    assert run("-", "--on-error", "skip", input="15\n=1+1\n").exit_code == 0
    assert rows(engine, "SELECT number FROM composites") == [("15",)]


def test_numbers_that_share_a_cofactor_are_named(engine, run):
    answer = run("-", input="5*2^1061-5\n2^1061-1\n")
    assert answer.exit_code == 0
    assert "line 2: 2^1061-1: known as the cofactor of 5*2^1061-5, shared\n" in answer.output
    answer = run("-", "--json", input="3*2^1061-3\n7*2^1061-7\n")
    report = json.loads(answer.stdout)
    assert report["shared_composites"] == 2
    assert report["shared"] == [
        {"line": 1, "number": "3*2^1061-3", "message": "has the same cofactor as 5*2^1061-5, shared"},
        {"line": 2, "number": "7*2^1061-7", "message": "has the same cofactor as 5*2^1061-5, shared"},
    ]
    answer = run("-", input="".join(f"2^{power}*(2^1061-1)\n" for power in range(1, 103)))
    assert "... and 2 more shared numbers\n" in answer.output


def test_what_is_no_list_is_refused_in_a_sentence(engine, run):
    answer = run("-", input=b"PK\x03\x04rest")
    assert (answer.exit_code, answer.output) == (
        1,
        "Error: The file is a zip archive; unpack it and send the list in it\n",
    )
    assert run("/nowhere.txt").exit_code == 2
