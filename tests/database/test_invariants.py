"""`invariants.violations` finds and names each kind of damage that SQL does to a sound database."""

import pytest
from pipeline import SETTINGS, composite, lease, result, rows, run_jobs, run_sql, submit
from primes import prime, product

from coordinator.administration import deletions
from coordinator.base.audit import OPERATOR, Actor
from coordinator.loading.list_formats import InputRow
from coordinator.loading.load import load_numbers
from coordinator.reading import invariants

NUMBER = str(product(prime(9), prime(20), prime(40), prime(80)))
DONE = str(product(prime(20), prime(22)))


@pytest.fixture
def sound(engine):
    """A database with rows of every kind and no violation."""
    submit(engine, result(NUMBER, str(prime(9) * prime(20)), sigma="1:1"))
    submit(engine, result(NUMBER, sigma="1:1", client="bob"))
    submit(engine, result(NUMBER, "999"))
    submit(engine, result(DONE, curves=3))
    lease(engine, composite(engine, NUMBER).id, curves=10)
    assert violations(engine) == []
    return engine


def violations(engine, **options):
    return invariants.violations(engine, max_digits=SETTINGS.max_digits, **options)


@pytest.mark.parametrize(
    ("invariant", "damage"),
    [
        ("product", "UPDATE composites SET current_composite = '12345678901' WHERE id = 1"),
        ("product", "UPDATE factors SET multiplicity = 2 WHERE id = 1"),
        ("product", "DELETE FROM factors WHERE split_from_id = 1 AND id = (SELECT max(id) FROM factors f"
                    " WHERE f.split_from_id = 1)"),
        ("product", "UPDATE factors SET digit_length = 3 WHERE id = 1"),
        ("product", "UPDATE composites SET value_sha256 = sha256('x') WHERE id = 1"),
        ("product", "UPDATE composites SET digit_length = 7 WHERE id = 1"),
        ("effort", "UPDATE composites SET attempt_count = 7 WHERE id = 1"),
        ("effort", "UPDATE value_effort SET curves = curves + 1"),
        ("effort", "UPDATE value_effort SET prior_curves = 1"),
        ("effort", "UPDATE composites SET current_t_level = current_t_level + 0.001 WHERE id = 1"),
        ("effort", "DELETE FROM value_effort"),
        ("effort", "UPDATE ecm_attempts SET curves = 99 WHERE id = 1"),
        ("settled once", "UPDATE submissions SET settled_at = NULL WHERE state = 'applied'"),
        ("settled once", "UPDATE submissions SET outcome = NULL WHERE state = 'duplicate'"),
        ("settled once", "UPDATE submissions SET reason = NULL WHERE state = 'rejected'"),
        ("settled once", "UPDATE submissions SET composite_id = 2 WHERE state = 'applied' AND composite_id = 1"),
        ("settled once", "UPDATE submissions SET outcome = jsonb_set(outcome, '{attempt_id}', '777')"
                         " WHERE state = 'duplicate'"),
        ("one attempt", "UPDATE submissions SET attempt_id = 77 WHERE id = 1"),
        ("no trace", "UPDATE submissions SET state = 'rejected', reason = 'x', detail = 'x' WHERE id = 1"),
        ("finished", "UPDATE factors SET is_prime = false FROM composites c WHERE c.is_fully_factored"
                     " AND composite_id = c.id"),
        ("finished", "UPDATE composites SET is_fully_factored = true WHERE id = 1"),
        ("finished", "UPDATE work_assignments SET composite_id = (SELECT id FROM composites WHERE is_fully_factored)"),
        ("bounded leases", "UPDATE work_assignments SET curves = 1000000000"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(sound, invariant, damage):
    run_sql(sound, damage)
    assert invariant in {violation.invariant for violation in violations(sound)}


def test_a_part_that_nobody_works_on_is_found(engine):
    part = str(product(prime(12), prime(49)))
    submit(engine, result(str(int(part) * prime(80) * prime(81)), part))
    assert violations(engine) == []
    run_sql(engine, "DELETE FROM jobs")
    assert [violation.table for violation in violations(engine)] == ["factors"]


def test_curves_on_a_whole_that_do_not_count_for_a_part_are_found(engine):
    part = product(prime(50), prime(51))
    whole = str(product(part, prime(80), prime(81)))
    submit(engine, result(whole, str(part)))
    run_jobs(engine)
    child = composite(engine, str(part))
    assert (child.parent_id, child.attempt_count) == (composite(engine, whole).id, 1)
    # Curves on the other part of the whole do not count for this one.
    submit(engine, result(composite(engine, whole).current_composite, curves=7))
    assert violations(engine) == []
    run_sql(engine, "DELETE FROM target_sources WHERE target_id = :id", id=child.target_id)
    found = [(violation.table, violation.id) for violation in violations(engine) if "a part of" in violation.detail]
    assert found == [("target_sources", child.target_id)]


def test_curves_on_a_whole_that_do_not_count_for_a_part_of_another_family_are_found(engine):
    part = product(prime(50), prime(51))
    whole = str(product(part, prime(80), prime(81)))
    submit(engine, result(str(part)))
    submit(engine, result(whole, str(part)))
    run_jobs(engine)
    child, parent = composite(engine, str(part)), composite(engine, whole)
    assert (child.parent_id, child.attempt_count) == (None, 2)
    assert violations(engine) == []
    values = "SELECT v.id FROM worked_values v JOIN composites c USING (value_sha256) WHERE c.number = :whole"
    link = f"DELETE FROM target_sources WHERE target_id = :id AND value_id = ({values})"
    run_sql(engine, link, id=child.target_id, whole=whole)
    wanted = f"for composite {child.id}, a part of composite {parent.id},"
    found = [(violation.table, violation.id) for violation in violations(engine) if wanted in violation.detail]
    assert found == [("target_sources", child.target_id)]


def test_curves_on_a_former_cofactor_need_not_count_after_the_deletion_of_a_factor(engine):
    factor, rest = prime(80), product(prime(60), prime(61))
    number = str(factor * rest)
    submit(engine, result(number, str(factor), curves=3))
    submit(engine, result(str(rest), curves=50))
    (found,) = rows(engine, "SELECT id FROM factors")
    deletions.delete_factor(engine, OPERATOR, found.id, SETTINGS.max_digits)
    run_jobs(engine)
    assert composite(engine, number).attempt_count == 1
    assert violations(engine) == []
    submit(engine, result(number, str(factor), curves=3, client="bob"))
    assert composite(engine, number).attempt_count == 3
    assert violations(engine) == []


def test_a_number_that_was_finished_from_the_beginning_has_no_target(engine):
    listed = [InputRow(1, DONE)]
    load_numbers(engine, listed, max_digits=SETTINGS.max_digits, actor=Actor("tester"), source="a list", processes=0)
    assert submit(engine, result(DONE, curves=3)).state == "applied"
    known = composite(engine, DONE)
    assert (known.target_id, known.attempt_count) == (None, 0)
    assert violations(engine) == []


def test_only_so_many_are_listed(sound):
    run_sql(sound, "UPDATE composites SET attempt_count = 7, current_t_level = 99, digit_length = 3")
    assert len(violations(sound)) > 3
    assert len(violations(sound, most=3)) == 3


def test_looking_locks_nothing_and_leaves_nothing(sound):
    with sound.connect() as connection:
        connection.exec_driver_sql("SELECT FROM composites FOR UPDATE")
        assert violations(sound) == []
    assert submit(sound, result(NUMBER, client="carol")).state == "applied"
