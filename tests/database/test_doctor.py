"""The commands of administration on a database: doctor, composites, projects, submissions."""

import json

import pytest
from click.testing import CliRunner
from pipeline import assert_sound, composite, result, rows, run_sql, scalar, submit
from primes import prime, product

from config.settings import settings
from ingest.commands import composites_commands
from ingest.commands.doctor import doctor
from ingest.commands.projects_commands import projects
from ingest.commands.submissions_commands import submissions

P9, P20, P40, P80 = prime(9), prime(20), prime(40), prime(80)
NUMBER = str(product(P9, P20, P40, P80))
RESIDUE = """
INSERT INTO ecm_residues (id, composite_id, client_id, stage1_attempt_id, number, b1, parametrization, curve_count,
    sha256, file_name, file_size_bytes, expires_at)
SELECT 1, composite_id, client_id, id, '15', b1, parametrization, 100, '', 'x', 1, now() FROM ecm_attempts
"""

LEASE = """
INSERT INTO work_assignments (
    id, composite_id, target_id, client_id, method, b1, b2, parametrization, curves, expires_at
)
SELECT gen_random_uuid(), id, target_id, 'x', 'ecm', 50000, -1, 1, 1000000000, now() FROM composites
"""


@pytest.fixture
def call(database_url, monkeypatch):
    """Runs a command on the test's database: (exit code, standard output, standard error)."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setattr("ingest.commands.database.configure_logging", lambda *_: None)
    settings.cache_clear()

    def run(command, *arguments):
        output = CliRunner().invoke(command, list(map(str, arguments)))
        assert output.exception is None or isinstance(output.exception, SystemExit), output.exception
        return output.exit_code, output.stdout, output.stderr

    yield run
    settings.cache_clear()


def test_doctor_finds_nothing_in_a_sound_database(call, engine):
    assert call(doctor) == (0, "Every invariant holds.\n", "")
    submit(engine, result(NUMBER, str(P9)))
    assert call(doctor, "--json") == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("invariant", "table", "damage"),
    [
        ("product", "composites", "UPDATE factors SET multiplicity = 2"),
        ("effort", "value_effort", "UPDATE value_effort SET curves = curves + 1"),
        ("effort", "composites", "UPDATE composites SET attempt_count = 7"),
        ("effort", "targets", "UPDATE ecm_attempts SET voided_at = now()"),
        ("effort", "composites", "UPDATE composites SET current_t_level = 7"),
        ("effort", "composites", "UPDATE composites SET target_t_level = 7"),
        ("effort", "targets", "UPDATE targets SET effort = ''"),
        ("effort", "targets", "UPDATE targets SET current_t_level = 7"),
        ("effort", "targets", "UPDATE targets SET pm1_b1 = 7"),
        ("effort", "targets", "UPDATE targets SET pp1_b1 = 7"),
        ("effort", "targets", "UPDATE targets SET attempt_count = 7"),
        ("effort", "targets", "UPDATE value_effort SET prior_curves = 1"),
        ("effort", "target_sources", "DELETE FROM target_sources"),
        ("effort", "target_sources", "UPDATE worked_values SET value = '77'"),
        ("effort", "worked_values", "UPDATE worked_values SET value = '77'"),
        ("effort", "worked_values", "INSERT INTO worked_values (value_sha256, value) VALUES (sha256('77'), '77')"),
        ("effort", "composites", "UPDATE composites SET last_attempt_at = now()"),
        ("effort", "targets", "UPDATE targets SET last_attempt_at = NULL"),
        ("effort", "targets", "UPDATE targets SET last_attempt_at = last_attempt_at - interval '1 hour'"),
        ("one target", "targets", "UPDATE composites SET target_id = NULL"),
        ("one target", "composites", "UPDATE composites SET target_id = NULL"),
        ("one target", "composites", "UPDATE targets SET value_sha256 = sha256('x')"),
        ("one target", "composites", "UPDATE targets SET is_finished = true"),
        ("one target", "composites", "UPDATE targets SET is_prime = NULL"),
        ("one target", "targets", "UPDATE composites SET is_prime = true"),
        (
            "one target",
            "targets",
            "ALTER TABLE targets DROP CONSTRAINT targets_value_sha256_key;"
            " INSERT INTO targets (value_sha256, digit_length, target_t_level, effort)"
            " SELECT value_sha256, digit_length, target_t_level, effort FROM targets",
        ),
        ("one target", "targets", "UPDATE targets SET priority = 7"),
        ("one target", "targets", "UPDATE targets SET target_t_level = 7"),
        ("one target", "targets", "UPDATE targets SET digit_length = 7"),
        ("one target", "work_assignments", "LEASE; LEASE; UPDATE work_assignments SET curves = NULL"),
        ("one target", "work_assignments", "LEASE; LEASE; UPDATE work_assignments SET method = 'snfs', curves = NULL"),
        ("work", "work_assignments", "LEASE; UPDATE work_assignments SET target_id = 77"),
        ("work", "targets", "LEASE"),
        ("finished", "work_assignments", "LEASE; UPDATE targets SET is_finished = true"),
        ("settled once", "submissions", "UPDATE submissions SET settled_at = NULL"),
        ("one attempt", "submissions", "UPDATE submissions SET attempt_id = 77"),
        ("no trace", "ecm_attempts", "UPDATE submissions SET state = 'rejected', reason = 'x', detail = 'x'"),
        ("finished", "composites", "UPDATE composites SET is_fully_factored = true"),
        ("work", "targets", "UPDATE targets SET ecm_eligible = NOT ecm_eligible"),
        ("work", "targets", "UPDATE targets SET open_residues = 1"),
        ("finished", "ecm_residues", "RESIDUE; UPDATE composites SET is_fully_factored = true"),
        ("effort", "ecm_attempts", "RESIDUE; UPDATE ecm_attempts SET superseded_curves = 1"),
        ("effort", "ecm_attempts", "UPDATE ecm_attempts SET superseded_curves = 1"),
        ("effort", "ecm_attempts", "UPDATE ecm_attempts SET superseding_curves = 1"),
        ("effort", "ecm_residues", "RESIDUE; UPDATE ecm_attempts SET residue_id = 1, superseding_curves = 101"),
        ("bounded leases", "targets", "LEASE"),
    ],
)
def test_doctor_lists_what_is_broken(call, engine, invariant, table, damage):
    submit(engine, result(NUMBER, str(P9)))
    run_sql(engine, damage.replace("RESIDUE", RESIDUE).replace("LEASE", LEASE))
    code, output, _ = call(doctor, "--json")
    assert code == 1
    found = json.loads(output)
    assert (invariant, table) in {(violation["invariant"], violation["table"]) for violation in found}
    code, output, error = call(doctor)
    assert (code, invariant in output, f"{len(found)} violation" in error) == (1, True, True)
    assert "1 violation or more" in call(doctor, "--most", 1)[2]


def test_numbers_are_listed_shown_and_given_a_priority(call, engine):
    number = submit(engine, result(NUMBER, str(P9), project="main")).composite_id
    other = submit(engine, result("2^1061-1")).composite_id
    code, output, _ = call(composites_commands.ls, "--json")
    assert (code, [row["id"] for row in json.loads(output)]) == (0, [number, other])
    assert [row["id"] for row in json.loads(call(composites_commands.ls, "--json", "--project", "main")[1])] == [number]
    assert [row["id"] for row in json.loads(call(composites_commands.ls, "2^1061-1", "--json")[1])] == [other]
    code, output, error = call(composites_commands.ls, "--limit", 1)
    assert (code, str(number) in output, f"--after {number}" in error) == (0, True, True)
    assert "No numbers match" in call(composites_commands.ls, "3^99-1")[1]
    shown = json.loads(call(composites_commands.show, NUMBER, "--json")[1])
    assert (shown["id"], shown["projects"], shown["factors"][0]["factor"]) == (number, ["main"], str(P9))
    output = call(composites_commands.show, number)[1]
    for word in (str(P9), "alice", "main", "50,000", "100"):
        assert word in output
    assert call(composites_commands.priority, number, 9)[:2] == (0, f"composite {number} has priority 9; it was 0\n")
    assert composite(engine, NUMBER).priority == 9
    for command in (composites_commands.show, composites_commands.rm):
        code, _, error = call(command, "77777")
        assert (code, "neither a number of this server nor the id of one" in error) == (1, True)


def test_bounds_past_64_bits_are_shown(call, engine):
    submit(engine, result(NUMBER, b2=10**21))
    (row,) = json.loads(call(composites_commands.show, NUMBER, "--json")[1])["effort"]
    assert row["b2"] == 10**21
    assert call(composites_commands.show, NUMBER)[0] == 0
    assert json.loads(call(submissions, "show", 1)[1])["payload"]["parameters"]["b2"] == 10**21


def test_numbers_are_completed_and_deleted(call, engine):
    number = submit(engine, result(NUMBER)).composite_id
    code, _, error = call(composites_commands.complete, number, P9)
    assert (code, "is composite" in error) == (1, True)
    assert rows(engine, "SELECT id FROM factors") == []
    code, output, _ = call(composites_commands.complete, number, P9, P20, P40, "--source", "a book")
    assert (code, output) == (0, f"composite {number} is fully factored, with 3 new factors\n")
    assert call(composites_commands.rm, number)[0] == 1  # nobody answers
    code, output, _ = call(composites_commands.rm, number, "--yes")
    assert (code, output.startswith(f"composite {number} is deleted: ")) == (0, True)
    assert rows(engine, "SELECT id FROM composites") == []
    (actor,) = {row.actor for row in rows(engine, "SELECT actor FROM admin_events")}
    assert actor not in ("admin", "operator")
    assert_sound(engine)


def test_effort_is_recalculated_on_the_command_line(call, engine):
    number = submit(engine, result(NUMBER, curves=50)).composite_id
    assert call(composites_commands.recalculate, "--all")[:2] == (0, "0 numbers differed.\n")
    run_sql(engine, "UPDATE value_effort SET curves = curves + 1")
    code, output, _ = call(composites_commands.recalculate, "--all", "--json")
    found = [(difference["composite_id"], difference["what"]) for difference in json.loads(output)]
    assert (code, found) == (1, [(number, "sums")])
    run_sql(engine, "UPDATE value_effort SET curves = curves + 1")
    code, output, _ = call(composites_commands.recalculate, number)
    assert (code, output.startswith(f"composite {number}: sums corrected; t-level ")) == (1, True)
    assert (
        call(composites_commands.recalculate, number)[0] == call(composites_commands.recalculate, "--missing")[0] == 0
    )
    assert call(composites_commands.recalculate)[0] == call(composites_commands.recalculate, number, "--all")[0] == 2
    assert_sound(engine)


def test_projects_on_the_command_line(call, engine):
    assert call(projects, "ls")[1] == "No projects yet; `projects add` creates one.\n"
    assert call(projects, "add", "Cunningham")[0] == 0
    code, _, error = call(projects, "add", "Cunningham")
    assert (code, "already" in error) == (1, True)
    assert call(projects, "add", " ")[0] == 1
    submit(engine, result(NUMBER, project="Cunningham"))
    (row,) = json.loads(call(projects, "ls", "--json")[1])
    assert (row["name"], row["composites"]) == ("Cunningham", 1)
    assert "Cunningham" in call(projects, "ls")[1]
    assert "its numbers stay: 1" in call(projects, "rm", "Cunningham", "--yes")[1]
    assert call(projects, "rm", "Cunningham", "--yes")[0] == 1


def test_dead_letters_on_the_command_line(call, engine):
    assert call(submissions, "ls")[1] == "No submissions match.\n"
    applied = submit(engine, result(NUMBER))
    refused = submit(engine, result(NUMBER, str(P9), "999"))
    (row,) = json.loads(call(submissions, "ls", "--json")[1])
    assert (row["submission_id"], row["true_factors"]) == (refused.id, [str(P9)])
    assert "factor_does_not_divide" in call(submissions, "ls")[1]
    assert json.loads(call(submissions, "ls", "--state", "applied", "--json")[1])[0]["submission_id"] == applied.id
    assert json.loads(call(submissions, "show", refused.id)[1])["payload"]["composite"] == NUMBER
    for words in (("show", 99), ("retry", 99), ("retry", applied.id)):
        assert call(submissions, *words)[0] == 1
    assert f"accepted of submission {refused.id}: {P9}" in call(submissions, "retry", refused.id, "--accept-factors")[1]
    assert call(submissions, "retry", refused.id) == (0, f"submission {refused.id} is queued again\n", "")
    assert scalar(engine, "SELECT state FROM submissions WHERE id = :id", id=refused.id) == "received"
    assert_sound(engine)
