"""What a number's page shows: a limited number of rows of each kind, and no factor without the one above it."""

import pytest
from pipeline import composite, result, run_sql, submit
from primes import prime, product

from coordinator.base.errors import NotFoundError
from coordinator.reading import counts, detail

NUMBER = str(product(prime(15), prime(40), prime(60)))

TREE = """
INSERT INTO factors (
    id, composite_id, factor, factor_sha256, digit_length, multiplicity, is_prime, origin, split_from_id
)
OVERRIDING SYSTEM VALUE
SELECT 1000 + n, :id, n::text, sha256(n::text::bytea), 3, 1, n > 10, 'submitted', CASE WHEN n > 5 THEN 1000 + n / 6 END
FROM generate_series(1, 60) n
"""


def test_a_large_tree_is_cut_but_no_row_lacks_the_factor_above_it(engine):
    submit(engine, result(NUMBER))
    known = composite(engine, NUMBER).id
    run_sql(engine, TREE, id=known)
    for most in (3, 17, 60):
        shown = detail.read_detail(engine, known, most=most)
        assert len(shown.factors) == most
        assert shown.is_cut == ({"factors"} if most < 60 else set())
        seen = {None}
        for row in shown.factors:
            assert row.split_from_id in seen
            seen.add(row.id)


def test_the_page_agrees_with_the_other_answers_about_the_number(engine):
    for n in range(1, 4):
        submit(engine, result(NUMBER, str(prime(15)), b1=1000 * n, curves=n), key=f"{n}")
    known = composite(engine, NUMBER).id
    shown = detail.read_detail(engine, known, most=2)
    assert shown.is_cut == {"attempts", "curves"}
    assert [row.curves for row in shown.attempts] == [3, 2]
    assert [row.b1 for row in shown.curves] == [1000, 2000]
    assert shown.chart.startswith("<svg")
    answer = detail.read_composite(engine, known)
    assert answer["ecm_work"]["total_curves"] == 6
    assert shown.number == {name: value for name, value in answer.items() if name not in ("factors", "factors_found")}


def test_an_unknown_number_is_not_found(engine):
    with pytest.raises(NotFoundError):
        detail.read_detail(engine, 12345, most=10)


def test_failed_results_are_counted_however_many_others_there_are(engine, monkeypatch):
    sent = [submit(engine, result(NUMBER, curves=n), key=f"{n}").id for n in range(1, 4)]
    run_sql(engine, "UPDATE submissions SET state = 'failed', reason = 'x', detail = 'x' WHERE id = :id", id=sent[0])
    assert counts.submissions_by_state(engine) == (
        {"applied": 2, "duplicate": 0, "rejected": 0, "failed": 1},
        False,
    )
    monkeypatch.setattr(counts, "COUNTED_BYTES", 0)
    states, estimated = counts.submissions_by_state(engine)
    assert (states["failed"], estimated) == (1, True)
