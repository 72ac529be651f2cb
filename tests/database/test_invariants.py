"""`invariants.violations` finds and names each kind of damage that SQL does to a sound database."""

import pytest
from pipeline import SETTINGS, composite, lease, result, run_sql, submit
from primes import prime, product

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
        ("effort", "UPDATE composite_effort SET curves = curves + 1 WHERE composite_id = 1"),
        ("effort", "UPDATE composite_effort SET prior_curves = 1 WHERE composite_id = 1"),
        ("effort", "UPDATE composites SET current_t_level = current_t_level + 0.001 WHERE id = 1"),
        ("effort", "DELETE FROM composite_effort WHERE composite_id = 1"),
        ("effort", "UPDATE ecm_attempts SET curves = 99 WHERE id = 1"),
        ("settled once", "UPDATE submissions SET settled_at = NULL WHERE state = 'applied'"),
        ("settled once", "UPDATE submissions SET outcome = NULL WHERE state = 'duplicate'"),
        ("settled once", "UPDATE submissions SET reason = NULL WHERE state = 'rejected'"),
        ("settled once", "UPDATE submissions SET composite_id = 2 WHERE state = 'duplicate'"),
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


def test_only_so_many_are_listed(sound):
    run_sql(sound, "UPDATE composites SET attempt_count = 7, current_t_level = 99, digit_length = 3")
    assert len(violations(sound)) > 3
    assert len(violations(sound, most=3)) == 3


def test_looking_locks_nothing_and_leaves_nothing(sound):
    with sound.connect() as connection:
        connection.exec_driver_sql("SELECT FROM composites FOR UPDATE")
        assert violations(sound) == []
    assert submit(sound, result(NUMBER, client="carol")).state == "applied"
