"""The seed results, and that a fault between any two steps of applying one leaves nothing but the submission."""

import contextlib

import pytest
from pipeline import (
    SETTINGS,
    apply_in_batches,
    assert_sound,
    composite,
    counts,
    leaves,
    receive,
    result,
    rows,
    run_jobs,
    scalar,
    submit,
)
from sqlalchemy import Connection

from coordinator.results import applying, inbox

RECORDS = ("composites", "composite_aliases", "targets", "worked_values", "target_sources", "value_effort", "factors")
RECORDS += ("ecm_attempts", "jobs", "projects")
NOTHING = dict.fromkeys(RECORDS, 0)


def seed(**results_fields):
    return {
        "client_id": "seed",
        "composite": "123456789012345678901234567890123456789",
        "method": "ecm",
        "parameters": {"b1": 50000, "b2": 5000000, "curves": 100, "sigma": "1:123456"},
        "results": {"curves_completed": 100, **results_fields},
    }


def test_a_number_with_a_factor_is_applied_completely(engine):
    row = submit(engine, seed(factor_found="123456789"))
    assert row.state == "applied"
    assert row.outcome["factor_status"] == "new_factor"
    assert row.outcome["attempt_id"] == row.attempt_id
    assert counts(engine, ("composites", "ecm_attempts")) == {"composites": 1, "ecm_attempts": 1}
    number = composite(engine, seed()["composite"])
    assert (number.is_fully_factored, number.current_composite) == (True, "1")
    assert number.current_t_level > 0
    product = 1
    for leaf, prime in leaves(engine, number.number):
        assert prime
        product *= int(leaf)
    assert product == int(number.number)
    (first, *_) = rows(engine, "SELECT * FROM factors ORDER BY id")
    assert (first.factor, first.sigma, first.parametrization) == ("123456789", "123456", 1)
    assert (first.client_id, first.attempt_id, first.origin) == ("seed", row.attempt_id, "submitted")
    assert_sound(engine)


def test_a_factor_that_does_not_divide_leaves_no_trace(engine):
    row = submit(engine, seed(factor_found="999"))
    assert (row.state, row.reason) == ("rejected", "factor_does_not_divide")
    assert counts(engine, RECORDS) == NOTHING
    assert_sound(engine)


def test_only_b1_is_enough(engine):
    body = {
        "client_id": "seed",
        "composite": "12345678901234567890",
        "parameters": {"b1": 50000},
        "results": {"factor_found": "123456789"},
    }
    assert submit(engine, body).state == "applied"
    assert counts(engine, ("composites", "ecm_attempts")) == {"composites": 1, "ecm_attempts": 1}
    assert scalar(engine, "SELECT current_t_level > 0 FROM composites")
    assert scalar(engine, "SELECT factor FROM factors ORDER BY id LIMIT 1") == "123456789"
    assert_sound(engine)


class InjectedError(Exception):
    """Raised between two statements of a unit of work."""


def fail_at(monkeypatch, n: int, lasting: bool) -> list[int]:
    """Let the n-th statement from now on raise (`lasting`: all later ones too); the list holds how many there were."""
    execute, seen = Connection.execute, [0]

    def counted(self, *arguments, **keywords):
        seen[0] += 1
        if seen[0] == n or (lasting and seen[0] > n):
            raise InjectedError(f"at statement {n}")
        return execute(self, *arguments, **keywords)

    monkeypatch.setattr(Connection, "execute", counted)
    return seen


INTERRUPTED = {
    "new number with a factor": seed(factor_found="123456789"),
    "known number, no factor": result("123456789012345678901234567890123456790", sigma="3:7", project="one"),
    "a bad factor": seed(factor_found="999"),
    # A composite factor of 83 digits becomes a composite of its own, which inherits effort.
    "a child": result("(10^40+121)*(10^42+63)*(10^80+129)*(10^39+3)", "(10^40+121)*(10^42+63)", project="two"),
}


@pytest.mark.parametrize(
    ("apply", "lasting"),
    # A batch that fails once is applied one by one at once, so its faults last.
    [(applying.apply_result, False), (applying.apply_result, True), (apply_in_batches, True)],
    ids=["passing", "lasting", "lasting, in batches"],
)
@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_exception_between_any_two_steps_leaves_nothing_but_the_submission(
    engine, monkeypatch, name, apply, lasting
):
    body = INTERRUPTED[name]
    before = NOTHING
    if name.startswith("known"):
        submit(engine, body | {"client_id": "first", "parameters": {"b1": 2000}})
        before = counts(engine, RECORDS)
    receipt = receive(engine, body)
    n = 0
    while True:
        n += 1
        with monkeypatch.context() as patch:
            seen = fail_at(patch, n, lasting)
            with contextlib.suppress(InjectedError):
                apply(engine, receipt.submission_id, SETTINGS.model_copy(update={"max_deliveries": 1000}))
        if seen[0] < n:
            break
        row = inbox.submission_row(engine, receipt.submission_id)
        if row.state != "received":
            break  # the fault came after the commit
        assert counts(engine, RECORDS) == before, f"a fault at statement {n} left something"
    assert n > 4
    applying.apply_result(engine, receipt.submission_id, SETTINGS.model_copy(update={"max_deliveries": 1000}))
    row = inbox.submission_row(engine, receipt.submission_id)
    assert row.state == ("rejected" if name == "a bad factor" else "applied")
    assert scalar(engine, "SELECT count(*) FROM composites WHERE parent_id IS NOT NULL") == (name == "a child")
    run_jobs(engine)
    assert_sound(engine)
