"""What a number's page shows: a limited number of rows of each kind, and no factor without the one above it."""

import pytest
from pipeline import composite, lease, result, run_sql, submit
from primes import prime, product

from coordinator.base.audit import Actor
from coordinator.base.errors import NotFoundError
from coordinator.loading.list_formats import InputRow
from coordinator.loading.load import load_numbers
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


def test_numbers_with_the_same_cofactor_show_the_same_work(engine):
    submit(engine, result(NUMBER, curves=3))
    three = str(3 * int(NUMBER))
    submit(engine, result(three, "3", b1=1000, curves=5))
    submit(engine, result(NUMBER, b1=1000, curves=7))
    one, two = composite(engine, NUMBER), composite(engine, three)
    assert one.target_id == two.target_id
    leases = [str(lease(engine, known.id, curves=10)) for known in (one, two)]
    shown = [detail.read_detail(engine, known.id, most=10) for known in (one, two)]
    for page in shown:
        assert [row.curves for row in page.attempts] == [7, 5, 3]
        assert [(row.b1, row.curves) for row in page.curves] == [(1000, 12), (50_000, 3)]
        assert [str(row.id) for row in page.leases] == leases
        assert page.number["open_leases"] == 2
    assert shown[0].chart == shown[1].chart
    columns = detail.read_columns(engine, two.id)
    assert (columns["target_id"], columns["open_leases"], columns["hold"]) == (two.target_id, 2, None)
    assert [row["curves"] for row in columns["effort"]] == [12, 3]


def test_a_number_that_was_finished_from_the_beginning_shows_no_work(engine):
    number = str(product(prime(20), prime(22)))
    listed = [InputRow(1, number)]
    load_numbers(engine, listed, max_digits=20_000, actor=Actor("tester"), source="a list", processes=0)
    submit(engine, result(number, curves=3))
    known = composite(engine, number)
    assert known.target_id is None
    shown = detail.read_detail(engine, known.id, most=10)
    assert (shown.curves, shown.leases) == ([], [])
    assert [row.curves for row in shown.attempts] == [3]
    answer = detail.read_composite(engine, known.id)
    assert (answer["pm1_b1"], answer["pp1_b1"], answer["open_leases"], answer["sharing_count"]) == (0, 0, 0, 0)
    assert (answer["wants"], answer["hold"]) == ([], None)
    assert answer["ecm_work"] == {"total_attempts": 0, "total_curves": 0, "effort_by_level": [], "last_attempt": None}
    assert {point["missed"] for point in detail.composite_effort(engine, known.id)["points"]} == {1.0}
    columns = detail.read_columns(engine, known.id)
    assert [columns[name] for name in ("target_id", "ecm_eligible", "open_residues", "hold")] == [None, False, 0, None]


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
