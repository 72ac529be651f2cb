"""A number in several spellings: found by each, and evaluated for the first of a kind only."""

import pytest
from pipeline import SETTINGS, apply_in_batches, assert_sound, receive, result, rows, submit
from primes import prime, product

from coordinator.composites import registry, values
from coordinator.numbers.expressions import ExpressionError
from coordinator.reading import detail
from coordinator.results import applying, inbox

NUMBER = "2^1277-1"
DECIMAL = str(2**1277 - 1)


def spellings(engine):
    return {
        bytes(row.value_sha256)
        for row in rows(engine, "SELECT value_sha256 FROM composite_aliases WHERE kind = 'number'")
    }


def hashes(*written):
    return {values.sha256(text) for text in written}


@pytest.mark.parametrize("second", ["2**1277-1", "2^1277 - 1", DECIMAL])
def test_a_new_spelling_is_evaluated_once_and_then_applied_in_batches(engine, monkeypatch, second):
    first = submit(engine, result(NUMBER))
    assert submit(engine, result(second)).composite_id == first.composite_id
    assert spellings(engine) == hashes(NUMBER, DECIMAL, second)
    monkeypatch.setattr(registry, "evaluate_number", lambda *_: pytest.fail("evaluated again"))
    monkeypatch.setattr(applying, "apply_result", lambda *_: pytest.fail("not in a batch"))
    third = receive(engine, result(second, curves=7))
    assert apply_in_batches(engine, third.submission_id, SETTINGS).state == "applied"
    assert inbox.submission_row(engine, third.submission_id).composite_id == first.composite_id
    assert_sound(engine)


def test_a_composite_has_so_many_spellings_and_no_more(engine):
    for more in range(registry.MAX_SPELLINGS + 5):
        assert submit(engine, result(f"{NUMBER}{'+1-1' * more}", curves=more)).state == "applied"
    known = spellings(engine)
    assert len(known) == registry.MAX_SPELLINGS
    # Its own decimal value is one of them, whoever writes it.
    assert values.sha256(DECIMAL) in known
    assert_sound(engine)


def test_rejected_results_and_queries_add_no_spelling(engine):
    submit(engine, result(NUMBER))
    assert submit(engine, result("2**1277-1", "999")).state == "rejected"
    assert detail.composite_stats(engine, "2^1277 - 1", SETTINGS.max_digits) is not None
    assert spellings(engine) == hashes(NUMBER, DECIMAL)


def test_the_spelling_of_a_cofactor_is_not_learned_because_it_may_become_a_number(engine):
    cofactor = product(prime(40), prime(80))
    number = str(prime(20) * cofactor)
    first = submit(engine, result(number, str(prime(20))))
    assert submit(engine, result(f"{cofactor}+1-1", client="bob")).composite_id == first.composite_id
    assert spellings(engine) == hashes(number)


def test_digits_of_other_scripts_are_no_number(engine):
    with engine.connect() as connection, pytest.raises(ExpressionError):
        registry.find(connection, "\u0661\u0662\u0663", SETTINGS.max_digits)


@pytest.mark.parametrize("named", [{"residue_id": 5}, {"residue_checksum": "ab" * 32}])
def test_a_result_that_names_an_unknown_residue_counts_with_a_note(engine, named):
    row = submit(engine, result(NUMBER, **named))
    assert row.state == "applied"
    assert "the residue that it names is unknown; the result counts without it" in row.outcome["message"]
    assert "residue" not in submit(engine, result(NUMBER, curves=1)).outcome["message"]
