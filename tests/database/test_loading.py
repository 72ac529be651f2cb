"""Loading numbers: all or nothing, each one validated, known ones found by any value they had and updated."""

import io
import threading

import gmpy2
import pytest
from gmpy2 import mpz
from pipeline import (
    SETTINGS,
    assert_sound,
    composite,
    counts,
    lease,
    leaves,
    result,
    rows,
    run_jobs,
    run_sql,
    scalar,
    submit,
)
from primes import prime, product
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from config.settings import Settings
from coordinator import effort
from coordinator.base.advisory_locks import LOAD_LOCK
from coordinator.base.audit import Actor
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import families, registry, targets
from coordinator.composites.families import Divisor
from coordinator.composites.values import sha256
from coordinator.leases import claims
from coordinator.leases.work_request import Claim, WorkRequest
from coordinator.loading import load as loading
from coordinator.loading import staging
from coordinator.loading.list_formats import InputRow, JsonFields, ListError, read_list
from coordinator.loading.load import InvalidNumbersError, LoadInProgressError, load_numbers
from coordinator.numbers.factor_tree import KNOWN, SPLIT

P20, P40, Q40, P80, Q80 = prime(20), prime(40), prime(40, 1), prime(80), prime(80, 1)
TABLES = (
    "composites",
    "targets",
    "composite_aliases",
    "value_effort",
    "factors",
    "projects",
    "project_composites",
    "jobs",
)
EVERYTHING = {
    "composites": "SELECT number, current_composite, digit_length, is_prime, is_fully_factored, priority,"
    " has_snfs_form, snfs_difficulty, target_t_level, explicit_target_t_level, current_t_level, xmin::text"
    " FROM composites ORDER BY id",
    "targets": "SELECT value_sha256, digit_length, is_prime, is_finished, priority, target_t_level, current_t_level,"
    " effort, ecm_eligible, pm1_eligible, pp1_eligible, p1_target_b1, planned_t_level, work_value, open_leases,"
    " xmin::text FROM targets ORDER BY value_sha256",
    "factors": "SELECT composite_id, factor, multiplicity, is_prime, split_from_id, origin FROM factors ORDER BY id",
    "aliases": "SELECT value_sha256, composite_id, kind FROM composite_aliases ORDER BY 1, 2",
    "effort": "SELECT * FROM value_effort ORDER BY 1, 2, 3, 4",
    "members": "SELECT project_id, composite_id FROM project_composites ORDER BY 1, 2",
    "jobs": "SELECT kind, target_id, request_count FROM jobs ORDER BY 1, 2",
}


def load(engine, content, name="list.txt", **options):
    listing = read_list(io.BytesIO(content.encode()), name, 200_000)
    options = {"max_digits": SETTINGS.max_digits, "actor": Actor("tester"), "source": name, "processes": 0} | options
    return load_numbers(engine, listing.numbers, **options)


def load_json(engine, *items, **options):
    numbers = [
        InputRow(place, item["number"], JsonFields({name: item[name] for name in item if name != "number"}))
        for place, item in enumerate(items, 1)
    ]
    return load_numbers(
        engine, numbers, max_digits=SETTINGS.max_digits, actor=Actor("tester"), source="json", processes=0, **options
    )


def numbers_of(report):
    return report.total, report.new, report.existing, report.updated, report.invalid


def levels_of_all(engine):
    return [row.current_t_level for row in rows(engine, "SELECT DISTINCT current_t_level FROM composites")]


def everything(engine):
    return {name: [tuple(map(_plain, row)) for row in rows(engine, sql)] for name, sql in EVERYTHING.items()}


def _plain(value):
    return bytes(value).hex() if isinstance(value, memoryview) else str(value)


def test_numbers_are_registered_as_results_register_them(engine):
    number = product(P80, Q80)
    report = load(engine, f"# two\n{number}\n\n2^1277-1\n")
    assert numbers_of(report) == (2, 2, 0, 0, 0)
    assert composite(engine, "2^1277-1").current_composite == str(mpz(2) ** 1277 - 1)
    loaded = everything(engine)
    run_sql(engine, "TRUNCATE composites, composite_aliases RESTART IDENTITY CASCADE")
    with unit_of_work(engine, "register") as connection:
        for written, value in ((str(number), number), ("2^1277-1", mpz(2) ** 1277 - 1)):
            registry.register(connection, written, mpz(value), is_prime=False)
    for name, registered in everything(engine).items():
        assert [row[:-1] for row in registered] == [row[:-1] for row in loaded[name]]
    assert_sound(engine)


def test_loaded_numbers_can_be_claimed(engine):
    number = product(P80, Q80)
    load(engine, f"{number}\n{prime(90)}\n360\n{prime(20) * prime(20, 1)}\n")
    settings = Settings()
    request = WorkRequest("alice", shared=True)
    claim = claims.claim(engine, request, settings)
    assert isinstance(claim, Claim)
    assert claim.composite.current_composite == str(number)
    assert rows(engine, "SELECT number FROM composites JOIN targets ON targets.id = target_id WHERE ecm_eligible") == [
        (str(number),)
    ]
    assert_sound(engine)


def test_primes_and_small_numbers_are_finished_at_once(engine):
    load(engine, f"{P80}\n{3**5 * P80}\n{P20 * prime(20, 1)}\n2^60\n")
    assert (composite(engine, str(P80)).is_prime, composite(engine, str(P80)).is_fully_factored) == (True, True)
    assert leaves(engine, str(3**5 * P80)) == [("3", True)] * 5 + [(str(P80), True)]
    assert leaves(engine, "2^60") == [("2", True)] * 60
    assert scalar(engine, "SELECT count(*) FROM composites WHERE NOT is_fully_factored") == 0
    assert_sound(engine)


def test_small_factors_give_the_same_rows_as_submitted_ones(engine):
    number = product(mpz(2) ** 3, mpz(7), mpz(999_983), P80, Q80)
    load(engine, str(number))
    loaded = everything(engine)
    run_sql(engine, "TRUNCATE composites, targets, composite_aliases, factors RESTART IDENTITY CASCADE")
    with unit_of_work(engine, "register") as connection:
        new_id = registry.register(connection, str(number), mpz(number), is_prime=False)
        registry.lock_family(connection, new_id)
        members = families.load_family(connection, [new_id], SETTINGS.max_digits)
        families.use_divisors(connection, members, [Divisor(mpz(p), SPLIT) for p in (2, 7, 999_983)])
    stepwise = everything(engine)
    for name in ("factors", "aliases", "effort", "jobs"):
        assert stepwise[name] == loaded[name]
    for name in ("composites", "targets"):
        assert stepwise[name][0][:-1] == loaded[name][0][:-1]
    assert_sound(engine)


def test_given_factors_and_a_given_cofactor_are_used(engine):
    number = product(P20, P40, P80, Q80)
    table = f"current_composite,factors,number\n{product(P80, Q80)},{P20},{number}\n"
    assert numbers_of(load(engine, table)) == (1, 1, 0, 0, 0)
    assert leaves(engine, str(number)) == [(str(P20), True), (str(P40), True)]
    assert rows(engine, "SELECT DISTINCT origin FROM factors WHERE split_from_id IS NULL") == [(KNOWN,)]
    assert composite(engine, str(number)).current_composite == str(product(P80, Q80))
    assert_sound(engine)


def test_large_composite_parts_get_work_of_their_own_and_inherit_prior_work(engine):
    part = product(P40, P80)
    number = product(part, Q80, prime(81))
    report = load_json(engine, {"number": str(number), "factors": [str(part)], "prior_work": "t30"})
    assert numbers_of(report) == (1, 1, 0, 0, 0)
    child = composite(engine, str(part))
    assert child.parent_id == composite(engine, str(number)).id
    assert child.current_t_level == pytest.approx(30, abs=0.01)
    assert child.ecm_eligible
    assert_sound(engine)


def test_slow_primality_tests_and_splits_become_jobs(engine):
    number = product(prime(25), prime(26), P80, Q80)
    report = load_json(engine, {"number": str(number), "factors": [str(prime(25) * prime(26))]}, {"number": "2^7001+1"})
    assert {job.kind for job in report.to_publish} == {"split_factor", "test_cofactor"}
    assert composite(engine, "2^7001+1").is_prime is None
    run_sql(engine, "UPDATE jobs SET state = 'done' WHERE kind = 'test_cofactor'")  # half a minute
    run_jobs(engine)
    assert len(leaves(engine, str(number))) == 2
    assert_sound(engine)


def test_one_bad_line_prevents_the_whole_load(engine):
    with pytest.raises(InvalidNumbersError) as refused:
        load(engine, "15\n2^^3\n21\n7x\n2^67-1\n")
    report = refused.value.report
    assert numbers_of(report) == (5, 0, 0, 0, 2)
    assert [(bad.line, bad.number) for bad in report.errors] == [(2, "2^^3"), (4, "7x")]
    assert set(counts(engine, TABLES).values()) == {0}
    assert scalar(engine, "SELECT count(*) FROM admin_events") == 0


def test_the_first_hundred_bad_lines_are_reported_and_all_counted(engine):
    with pytest.raises(InvalidNumbersError) as refused:
        load(engine, "x\n" * 2500, processes=2)
    assert refused.value.report.invalid == 2500
    assert [bad.line for bad in refused.value.report.errors] == list(range(1, 101))


def test_bad_lines_can_be_skipped(engine):
    report = load(engine, "15\nx\n21\n", skip_bad=True)
    assert numbers_of(report) == (3, 2, 0, 0, 1)
    assert [bad.line for bad in report.errors] == [2]
    assert scalar(engine, "SELECT count(*) FROM composites") == 2


def test_a_dry_run_reports_and_stores_nothing(engine):
    load(engine, "15\n")
    before = everything(engine)
    report = load(engine, "15\n21\n2^67-1\n", dry_run=True, project="new")
    assert (numbers_of(report), report.is_stored) == ((3, 2, 1, 1, 0), False)
    assert everything(engine) == before
    assert scalar(engine, "SELECT count(*) FROM projects") == 0


def test_a_list_without_numbers_is_refused(engine):
    with pytest.raises(ListError, match="no number"):
        load(engine, "# nothing\n")


def test_numbers_are_found_by_value_spelling_and_old_cofactors(engine):
    number = product(P20, P40, P80, Q80)
    submit(engine, result(str(number), str(P20)))
    submit(engine, result(str(number), str(P40), sigma="1:5"))
    old, now = number // P20, number // P20 // P40
    load(engine, f"2^67-1\n{number}\n{old}\n{now}\n{number}*1\n({now}*3)/3\n")
    # The two cofactors are numbers of their own now; other spellings of a number are not.
    assert scalar(engine, "SELECT count(*) FROM composites") == 4
    load(engine, f"{2**67 - 1}\n2**67-1\n 2^67 - 1\n")
    assert scalar(engine, "SELECT count(*) FROM composites") == 4
    run_jobs(engine)
    assert len({composite(engine, str(one)).target_id for one in (number, old, now)}) == 1
    assert_sound(engine)


def test_a_number_that_occurs_twice_is_loaded_once_with_its_last_fields(engine):
    table = "number,priority,prior_work\n2^251-1,1,t20\n2**251-1,,\n2^251-1,3,t25\n"
    assert numbers_of(load(engine, table)) == (3, 1, 2, 1, 0)
    row = composite(engine, "2^251-1")
    assert row.priority == 3
    assert row.current_t_level == pytest.approx(25, abs=0.01)
    assert_sound(engine)


@pytest.mark.parametrize("in_one_list", [True, False], ids=["in one list", "in two lists"])
@pytest.mark.parametrize("written", [("5*2^1061-5", "2^1061-1"), ("2^1061-1", "5*2^1061-5")])
def test_a_number_and_its_cofactor_are_two_numbers_with_one_target(engine, written, in_one_list):
    """Case B3: every line is a number of its own, and the report says with which number it shares."""
    reports = [load(engine, "\n".join(written))] if in_one_list else [load(engine, number + "\n") for number in written]
    assert sum(report.new for report in reports) == 2
    assert sum(report.shared for report in reports) == 1
    (shared,) = reports[-1].sharing
    what = "its cofactor is the number" if written[0] == "2^1061-1" else "known as the cofactor of"
    assert (shared.number, shared.message) == (written[1], f"{what} {written[0]}, shared")
    first, second = (composite(engine, number) for number in written)
    assert first.target_id == second.target_id
    with engine.connect() as connection:
        for number, row in zip(written, (first, second), strict=True):
            assert registry.find(connection, number, SETTINGS.max_digits).id == row.id
    assert_sound(engine)


@pytest.mark.parametrize("n", [131, 137])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_lucas_number_shares_with_the_fibonacci_number_of_twice_its_index(engine, n, is_first):
    """Case B1: F(2n) = F(n) L(n), in both orders."""
    double, lucas, own = gmpy2.fib(2 * n), gmpy2.lucas(n), gmpy2.fib(n)
    lines = [f"{double},{own}", f"{lucas},"]
    report = load(engine, "number,factors\n" + "\n".join(lines if is_first else lines[::-1]), name="list.csv")
    run_jobs(engine)
    assert report.new == 2
    both = [composite(engine, str(number)) for number in (double, lucas)]
    assert both[0].target_id == both[1].target_id
    assert_sound(engine)


def test_numbers_with_the_same_cofactor_have_one_target_and_its_largest_priority(engine):
    number = product(P80, Q80)
    load(engine, f"number,priority,target_t_level\n{number * 6},3,\n{number * 10},7,60\n")
    load(engine, f"number,priority\n{number * 14},1\n")
    assert rows(engine, "SELECT priority, target_t_level FROM targets") == [(7, 60.0)]
    assert rows(engine, "SELECT DISTINCT target_t_level FROM composites") == [(60.0,)]
    load(engine, f"number,priority,target_t_level\n{number * 10},0,50\n")
    assert rows(engine, "SELECT priority, target_t_level FROM targets")[0] == (3, 50.0)
    assert_sound(engine)


def test_a_new_number_has_the_curves_that_were_run_on_its_cofactor_before(engine):
    number = product(P80, Q80)
    load(engine, f"{number * 6}\n")
    submit(engine, result(str(number), curves=30))
    submit(engine, result(str(number * 6), curves=12))
    load(engine, f"{number * 10}\n{number}\n")
    levels = rows(engine, "SELECT DISTINCT current_t_level, attempt_count FROM composites")
    assert [row.attempt_count for row in levels] == [2]
    assert_sound(engine)


def test_a_former_cofactor_that_is_loaded_later_has_its_curves_and_its_factors(engine):
    number = product(P20, P80, Q80)
    load(engine, f"{number * 6}\n")
    submit(engine, result(str(number), curves=30))
    submit(engine, result(str(number), str(P20), curves=1))
    load(engine, f"{number}\n")
    run_jobs(engine)
    both = [composite(engine, str(one)) for one in (number * 6, number)]
    assert both[0].target_id == both[1].target_id
    assert both[0].current_t_level == both[1].current_t_level > 0
    assert leaves(engine, str(number)) == [(str(P20), True)]
    assert_sound(engine)


def test_prior_work_on_a_shared_cofactor_counts_once(engine):
    number = product(P80, Q80)
    load(engine, f"number,prior_work\n{number * 6},t30\n{number * 10},t30\n")
    level = composite(engine, str(number * 6)).current_t_level
    assert level == pytest.approx(30, abs=0.1)
    load(engine, f"number,prior_work\n{number * 14},t30\n")
    assert {row.current_t_level for row in rows(engine, "SELECT current_t_level FROM composites")} == {level}
    assert_sound(engine)


def test_numbers_that_share_are_named_in_the_report(engine):
    number = product(P80, Q80)
    report = load(engine, f"{number * 6}\n{number * 10}\n{prime(90) * P80}\n")
    assert (report.shared, [shared.line for shared in report.sharing]) == (1, [2])
    assert report.sharing[0].message.startswith("has the same cofactor as 6000")
    assert report.answer()["shared"] == [report.sharing[0]._asdict()]
    assert "1 of the new ones" in report.summary()
    multiples = "".join(f"{number * 2**power}\n" for power in range(2, 150))
    report = load(engine, multiples)
    assert (report.shared, len(report.sharing)) == (148, loading.MAX_REPORTED_ERRORS)
    assert load(engine, multiples).shared == 0
    assert_sound(engine)


@pytest.mark.parametrize("is_first", [True, False], ids=["given first", "given last"])
@pytest.mark.parametrize("in_one_list", [True, False], ids=["in one list", "in two lists"])
@pytest.mark.parametrize("multiple", [1, 10])
def test_factors_that_are_given_with_a_new_number_are_used_on_the_numbers_that_share(
    engine, multiple, in_one_list, is_first
):
    """The list finishes the number at once, or gives a part that needs work of its own."""
    finished, divided = product(P80, Q80), product(P40, Q40, P80, Q80)
    part = product(P40, P80)
    items = [{"number": str(6 * finished)}, {"number": str(multiple * finished), "factors": [str(P80)]}]
    items += [{"number": str(6 * divided)}, {"number": str(multiple * divided), "factors": [str(part)]}]
    items = items if is_first else items[::-1]
    for one in [items] if in_one_list else [[item] for item in items]:
        load_json(engine, *one)
        assert_sound(engine)
    run_jobs(engine)
    assert composite(engine, str(6 * finished)).is_fully_factored
    assert len({composite(engine, str(one * divided)).target_id for one in (6, multiple)}) == 1
    assert int(composite(engine, str(6 * divided)).current_composite) in (part, divided // part)
    assert_sound(engine)


def test_a_power_of_a_large_composite_is_divided(engine):
    base = product(prime(60), prime(61))
    load(engine, f"{7 * base**2}\n")
    run_jobs(engine)
    assert composite(engine, str(base)).ecm_eligible
    assert_sound(engine)


def test_the_report_says_in_what_way_numbers_share(engine):
    number = product(P80, Q80)
    assert load(engine, f"{number * 6}\n").sharing == []
    same, itself = load(engine, f"{number * 10}\n{number}\n").sharing
    assert same.message.startswith("has the same cofactor as 6000")
    assert itself.message.startswith("known as the cofactor of 6000")
    # The oldest number of those with this cofactor is named.
    (last,) = load(engine, f"{number * 14}\n").sharing
    assert last.message.startswith("has the same cofactor as 6000")
    other = product(P80, prime(81))
    load(engine, f"{other}\n")
    (multiple,) = load(engine, f"{other * 6}\n").sharing
    assert multiple.message.startswith(f"its cofactor is the number {str(other)[:10]}")


def test_a_number_without_an_unfinished_part_shares_none(engine):
    """The factors of the list leave a composite part of one number beside a prime, and nothing of the other."""
    part = product(P40, P80)
    number = part * Q80
    load(engine, f"{number * 6}\n")
    table = f"number,factors\n{number * 10},{part} {Q80}\n{number * 14},{P40} {P80}\n"
    assert load(engine, table).shared == 0
    run_jobs(engine)
    assert scalar(engine, "SELECT count(*) FROM composites WHERE NOT is_fully_factored") == 0
    assert_sound(engine)


def test_only_known_numbers_count_as_updated(engine):
    number = product(P80, Q80)
    report = load(engine, f"number,prior_work\n{number * 6},\n{number * 10},t30\n")
    assert numbers_of(report) == (2, 2, 0, 0, 0)
    report = load(engine, f"number,prior_work\n{number * 6},t20\n{number * 14},\n")
    assert numbers_of(report) == (2, 1, 1, 1, 0)


@pytest.mark.parametrize("is_known", [False, True], ids=["new", "known"])
def test_numbers_that_share_can_be_loaded_again_with_different_prior_work(engine, is_known):
    number = product(P80, Q80)
    if is_known:
        load(engine, f"{number * 6}\n{number * 10}\n")
    items = [{"number": str(number * 6), "prior_work": "t30"}, {"number": str(number * 10), "prior_work": "t20"}]
    load_json(engine, *items)
    assert_sound(engine)
    loaded = everything(engine)
    assert numbers_of(load_json(engine, *items)) == (2, 0, 2, 0, 0)
    assert everything(engine) == loaded


# The number with the later line has the same cofactor, is that cofactor, or was a multiple of it before.
SHARING_LINES = [(6, 10), (6, 1), (1, 6), (P20, 6), (6, P20)]


@pytest.mark.parametrize("pair", SHARING_LINES, ids=["sharing", "cofactor", "multiple", "former 1", "former 2"])
@pytest.mark.parametrize("is_known", [False, True], ids=["new", "known"])
def test_the_last_prior_work_of_numbers_that_share_counts(engine, pair, is_known):
    number = product(P80, Q80)
    first, second = (str(number * multiple) for multiple in pair)
    if is_known:
        load(engine, f"number,factors\n{first},{P20 if pair[0] == P20 else ''}\n{second},\n")
        if P20 in pair:
            submit(engine, result(str(number * P20), str(P20), curves=0))
    table = f"number,prior_work\n{first},t30\n{second},t20\n"
    load(engine, table)
    assert_sound(engine)
    if is_known or P20 not in pair:
        assert levels_of_all(engine) == [pytest.approx(20, abs=0.1)]
    loaded = everything(engine)
    assert numbers_of(load(engine, table)) == (2, 0, 2, 0, 0)
    assert everything(engine) == loaded


def test_prior_work_stays_with_the_values_that_it_was_run_on(engine):
    number = product(P80, Q80)
    load(engine, f"number,prior_work\n{number * P20},t30\n")
    submit(engine, result(str(number * P20), str(P20), curves=0))
    load(engine, f"number,prior_work\n{number * 10},t20\n")
    both = composite(engine, str(number * 10)).current_t_level
    assert both > 30.0001  # t20 adds next to nothing to t30
    # The list says of both numbers what earlier lists said.
    for lines in (f"{number * 10},t20\n{number * P20},t30\n", f"{number * P20},t30\n{number * 10},t20\n"):
        assert numbers_of(load(engine, f"number,prior_work\n{lines}")) == (2, 0, 2, 0, 0)
    assert composite(engine, str(number * 10)).current_t_level == both
    # Another list replaces the prior work on both values that the number has had.
    assert numbers_of(load(engine, f"number,prior_work\n{number * P20},t25\n")) == (1, 0, 1, 1, 0)
    assert composite(engine, str(number * 10)).current_t_level == pytest.approx(25, abs=0.1)
    assert_sound(engine)


def test_prior_work_on_a_former_cofactor_counts_for_the_number_that_had_it(engine):
    former = product(P40, P80, Q80)
    number = former * P20
    load(engine, f"{number}\n")
    submit(engine, result(str(number), str(P20), curves=0))
    submit(engine, result(str(number), str(P40), curves=0, sigma="1:5"))
    load(engine, f"number,prior_work\n{former},t30\n")
    assert_sound(engine)
    assert composite(engine, str(number)).current_t_level == pytest.approx(30, abs=0.1)
    run_jobs(engine)
    assert composite(engine, str(former)).target_id == composite(engine, str(number)).target_id
    load(engine, f"number,prior_work\n{former},t35\n")
    assert levels_of_all(engine) == [pytest.approx(35, abs=0.1)]
    assert_sound(engine)


def test_prior_work_of_a_number_counts_for_its_parts(engine):
    part = product(P40, P80)
    number = product(part, Q80, prime(81))
    load(engine, f"number,factors\n{number},{part}\n")
    assert numbers_of(load(engine, f"number,prior_work\n{number},t30\n")) == (1, 0, 1, 1, 0)
    assert_sound(engine)
    load(engine, f"number,factors\n{number},{Q80} {prime(81)}\n")
    assert composite(engine, str(number)).current_composite == "1"
    # Only the part is left, so the prior work is that on the whole number.
    for times_changed in (1, 0):
        assert numbers_of(load(engine, f"number,prior_work\n{number},t35\n")) == (1, 0, 1, times_changed, 0)
        assert composite(engine, str(part)).current_t_level == pytest.approx(35, abs=0.1)
    assert_sound(engine)


@pytest.mark.parametrize("is_first", [True, False], ids=["part first", "part last"])
def test_prior_work_of_a_number_that_is_a_part_of_another_one_counts(engine, is_first):
    part = product(P40, P80)
    number = product(part, Q80, prime(81))
    lists = [f"number,prior_work\n{part},t30\n", f"number,factors\n{number},{part}\n"]
    for one in lists if is_first else lists[::-1]:
        load(engine, one)
    run_jobs(engine)
    assert composite(engine, str(part)).current_t_level == pytest.approx(30, abs=0.01)
    assert composite(engine, str(number)).current_t_level == 0
    for times_changed in (1, 0):
        assert numbers_of(load(engine, f"number,prior_work\n{part},t35\n")) == (1, 0, 1, times_changed, 0)
        assert composite(engine, str(part)).current_t_level == pytest.approx(35, abs=0.01)
    assert_sound(engine)


@pytest.mark.parametrize("factor", [P80, None], ids=["divided", "not divided"])
def test_prior_work_of_finished_numbers_is_not_stored(engine, factor):
    number = product(P80, Q80)
    load(engine, f"{number}\n{360}\n")
    if factor:
        submit(engine, result(str(number), str(factor)))
    report = load(engine, f"number,prior_work\n{number},t30\n360,t30\n")
    assert report.updated == (0 if factor else 1)
    assert scalar(engine, "SELECT count(*) FROM value_effort WHERE prior_curves > 0") == (0 if factor else 1)
    assert_sound(engine)


def test_a_number_with_a_finished_cofactor_gets_its_factors(engine):
    number = product(P80, Q80)
    load(engine, f"{number * 6}\n")
    submit(engine, result(str(number * 6), str(P80)))
    report = load(engine, f"{number * 10}\n{number}\n")
    assert {job.kind for job in report.to_publish} == {"share_factors"}
    assert_sound(engine)
    run_jobs(engine)
    assert scalar(engine, "SELECT count(*) FROM composites WHERE NOT is_fully_factored") == 0
    assert_sound(engine)


def test_the_primality_of_a_shared_cofactor_is_known_to_new_numbers(engine):
    load(engine, "2^7001+1\n")
    run_sql(engine, "UPDATE composites SET is_prime = false")
    run_sql(engine, "UPDATE targets SET is_prime = false")
    load(engine, "5*2^7001+5\n")
    assert rows(engine, "SELECT DISTINCT is_prime FROM composites") == [(False,)]
    assert composite(engine, "5*2^7001+5").target_id == composite(engine, "2^7001+1").target_id
    assert_sound(engine)


def test_given_fields_of_known_numbers_are_updated_and_others_stay(engine):
    load(engine, "number,priority,snfs_difficulty,has_snfs_form\n2^1277-1,5,90,true\n")
    before = composite(engine, "2^1277-1")
    assert before.target_t_level == effort.target_t_level(385, 90)
    report = load(engine, "number,target_t_level\n2^1277-1,55\n", project="Cunningham")
    assert numbers_of(report) == (1, 0, 1, 1, 0)
    after = composite(engine, "2^1277-1")
    assert (after.priority, after.snfs_difficulty, after.has_snfs_form) == (5, 90, True)
    assert (after.target_t_level, after.explicit_target_t_level) == (55, 55)
    assert after.target_set_at > before.target_set_at
    assert after.p1_target_b1 > before.p1_target_b1
    # `priority` is for new numbers only; `known_priority` is for registered ones.
    assert numbers_of(load(engine, "2^1277-1\n", priority=9)) == (1, 0, 1, 0, 0)
    assert numbers_of(load(engine, "2^1277-1\n15\n", priority=9, known_priority=9)) == (2, 1, 1, 1, 0)
    assert rows(engine, "SELECT priority FROM composites") == [(9,), (9,)]
    assert_sound(engine)


def test_a_lower_target_that_is_reached_ends_leases(engine):
    load(engine, "number,prior_work\n2^1277-1,t40\n")
    lease(engine, composite(engine, "2^1277-1").id, curves=10)
    load(engine, "number,target_t_level\n2^1277-1,35\n")
    assert rows(engine, "SELECT status FROM work_assignments") == [("completed",)]
    assert not composite(engine, "2^1277-1").ecm_eligible
    assert_sound(engine)


def test_prior_work_is_added_once_and_replaced_by_a_later_list(engine):
    number = str(product(P80, Q80))
    load(engine, f"number,prior_work\n{number},5208@11e6;100/200@1e6\n")
    assert rows(engine, "SELECT b1, b2, prior_curves FROM value_effort ORDER BY 1, 2") == [
        (10**6, -1, 100),
        (10**6, 0, 100),
        (11 * 10**6, -1, 5208),
    ]
    submit(engine, result(number, b1=11_000_000, curves=10))
    level = composite(engine, number).current_t_level
    for _ in range(2):
        assert numbers_of(load(engine, f"number,prior_work\n{number},100/200@1e6;5208@11e6\n")) == (1, 0, 1, 0, 0)
        assert composite(engine, number).current_t_level == level
    assert numbers_of(load(engine, f"number,prior_work\n{number},t30\n")) == (1, 0, 1, 1, 0)
    assert scalar(engine, "SELECT curves FROM value_effort WHERE curves > 0") == 10
    assert composite(engine, number).current_t_level < level
    assert_sound(engine)


def test_a_known_number_gets_the_factors_of_the_list(engine):
    number = product(mpz(7), P20, P80, Q80)
    submit(engine, result(str(number)))
    held = lease(engine, composite(engine, str(number)).id, curves=10)
    report = load(engine, f"number,factors\n{number},{P20}\n")
    assert numbers_of(report) == (1, 0, 1, 1, 0)
    assert leaves(engine, str(number)) == [("7", True), (str(P20), True)]
    assert numbers_of(load(engine, f"number,factors\n{number},{P20}\n")) == (1, 0, 1, 0, 0)
    finished = f"number,factors,is_fully_factored\n{number},{P20} {P80},yes\n"
    assert numbers_of(load(engine, finished)) == (1, 0, 1, 1, 0)
    assert composite(engine, str(number)).is_fully_factored
    assert scalar(engine, "SELECT status FROM work_assignments WHERE id = :id", id=held) == "completed"
    assert_sound(engine)


def test_missing_projects_are_created_and_get_the_numbers(engine):
    report = load(engine, "number,project\n15,A\n21,\n33,B\n", project="rest")
    assert numbers_of(report) == (3, 3, 0, 0, 0)
    members = "SELECT p.name, c.number FROM projects p JOIN project_composites m ON m.project_id = p.id"
    members += " JOIN composites c ON c.id = m.composite_id ORDER BY 1"
    assert rows(engine, members) == [("A", "15"), ("B", "33"), ("rest", "21")]


def test_a_load_is_in_the_audit_log(engine):
    load(engine, "15\n", name="first.txt", actor=Actor("tester", "r1"))
    (event,) = rows(engine, "SELECT * FROM admin_events")
    assert (event.actor, event.action, event.target, event.request_id) == ("tester", "load", "list first.txt", "r1")
    assert event.after["new_composites"] == 1


def test_one_list_is_stored_at_a_time(engine):
    with unit_of_work(engine, "turn") as connection:
        connection.execute(select(func.pg_advisory_xact_lock(LOAD_LOCK)))
        with pytest.raises(LoadInProgressError, match="Another list"):
            load(engine, "15\n")
    assert load(engine, "15\n").new == 1


def test_a_number_that_a_result_registers_in_between_is_loaded_once(engine):
    number = product(P80, Q80)
    entered, done = threading.Event(), []

    def import_it():
        entered.set()
        done.append(load(engine, f"{number}\n15\n"))

    with unit_of_work(engine, "register") as connection:
        registry.register(connection, str(number), mpz(number), is_prime=False)
        thread = threading.Thread(target=import_it)
        thread.start()
        entered.wait()
        # The load does not see the number yet, and then waits for this unit of work when it inserts the row.
        while not waits_for_a_lock(engine):
            assert thread.is_alive()
    thread.join()
    assert numbers_of(done[0]) == (2, 1, 1, 0, 0)
    assert scalar(engine, "SELECT count(*) FROM composites") == 2
    assert_sound(engine)


def waits_for_a_lock(engine):
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return scalar(engine, waits)


def test_a_target_of_a_number_that_a_result_registers_in_between_is_not_left_over(engine):
    number = product(P20, P80, Q80)
    done = []
    thread = threading.Thread(target=lambda: done.append(load(engine, f"{number}\n")))
    with unit_of_work(engine, "register") as connection:
        new_id = registry.register(connection, str(number), mpz(number), is_prime=False)
        registry.lock_group(connection, new_id)
        members = families.load_family(connection, [new_id], SETTINGS.max_digits)
        families.use_divisors(connection, members, [Divisor(mpz(P20))])
        thread.start()
        while not waits_for_a_lock(engine):
            assert thread.is_alive()
    thread.join()
    assert numbers_of(done[0]) == (1, 0, 1, 0, 0)
    assert scalar(engine, "SELECT count(*) FROM targets") == 1
    assert_sound(engine)


def test_a_load_that_ends_in_a_deadlock_is_stored_again(engine, monkeypatch):
    """A result registers its number and then the target; a load inserts the target first."""
    number = product(P80, Q80)
    has_targets, has_composite = threading.Event(), threading.Event()
    insert_composites = staging._COMPOSITES

    def text_after_events(sql):
        if sql == insert_composites and not has_targets.is_set():
            has_targets.set()
            assert has_composite.wait(20)
        return text(sql)

    monkeypatch.setattr(staging, "text", text_after_events)
    seen, done = [], []
    thread = threading.Thread(
        target=lambda: done.append(
            load(engine, f"15\n{number}\n", progress=lambda stage, count: seen.append((stage, count)))
        )
    )
    thread.start()
    assert has_targets.wait(20)
    with unit_of_work(engine, "register") as connection:
        insert = "INSERT INTO composites (number, value_sha256, current_composite, digit_length, target_t_level)"
        connection.execute(
            text(f"{insert} VALUES (:number, sha256(convert_to(:number, 'UTF8')), :number, 160, 50)"),
            {"number": str(number)},
        )
        has_composite.set()
        # The server ends the one of the two that waited first.
        while not waits_for_a_lock(engine):
            assert thread.is_alive()
        targets.find_or_add(connection, sha256(str(number)), 160, False)
        connection.rollback()
    thread.join()
    assert numbers_of(done[0]) == (2, 2, 0, 0, 0)
    assert sum(count for stage, count in seen if stage == loading.STORED) == 2
    assert_sound(engine)


def test_a_number_can_be_registered_while_a_load_has_its_target(engine, monkeypatch):
    """Only one of the two may end in a deadlock: results are applied again, as loads are stored again."""
    number = product(P80, Q80)
    has_targets, goes_on = threading.Event(), threading.Event()
    insert_composites = staging._COMPOSITES
    ended, done = [], []

    def text_after_events(sql):
        if sql == insert_composites and not has_targets.is_set():
            has_targets.set()
            assert goes_on.wait(20)
        return text(sql)

    def registering():
        try:
            with unit_of_work(engine, "register") as connection:
                registry.register(connection, str(number), mpz(number), is_prime=False)
        except OperationalError as error:
            ended.append(error.orig.pgcode)
        else:
            ended.append("registered")

    def load_it():
        done.append(load(engine, f"{number}\n"))

    monkeypatch.setattr(staging, "text", text_after_events)
    threads = [threading.Thread(target=load_it), threading.Thread(target=registering)]
    threads[0].start()
    assert has_targets.wait(20)
    threads[1].start()
    while not waits_for_a_lock(engine):
        assert threads[1].is_alive()
    goes_on.set()
    for thread in threads:
        thread.join(20)
    assert len(done) == 1
    assert ended in (["registered"], ["40P01"])
    assert scalar(engine, "SELECT count(*) FROM composites") == scalar(engine, "SELECT count(*) FROM targets") == 1
    assert_sound(engine)


def test_the_number_of_processes_and_chunks_does_not_change_the_result(engine, monkeypatch):
    monkeypatch.setattr("coordinator.loading.staging.CHUNK", 700)
    text = "".join(f"{n}\n" for n in range(10**60 + 1, 10**60 + 2501))
    seen = []
    report = load(engine, text, processes=2, progress=lambda stage, count: seen.append((stage, count)))
    assert (report.total, report.new + report.existing) == (2500, 2500)
    for stage in (loading.CHECKED, loading.STORED):
        assert sum(count for reported, count in seen if reported == stage) == 2500
    assert numbers_of(load(engine, text, processes=2))[1:4] == (0, 2500, 0)
    assert_sound(engine)
