"""Loading numbers: all or nothing, each one validated, known ones found by any value they had and updated."""

import io
import threading

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

from config.settings import Settings
from coordinator import effort
from coordinator.base.audit import Actor
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import families, registry
from coordinator.composites.families import Divisor
from coordinator.leases import claims
from coordinator.leases.work_request import Claim, WorkRequest
from coordinator.loading import load as loading
from coordinator.loading.list_formats import InputRow, JsonFields, ListError, read_list
from coordinator.loading.load import InvalidNumbersError, LoadInProgressError, load_numbers
from coordinator.numbers.factor_tree import KNOWN, SPLIT

P20, P40, Q40, P80, Q80 = prime(20), prime(40), prime(40, 1), prime(80), prime(80, 1)
TABLES = ("composites", "composite_aliases", "composite_effort", "factors", "projects", "project_composites", "jobs")
EVERYTHING = {
    "composites": "SELECT number, current_composite, digit_length, is_prime, is_fully_factored, priority,"
    " has_snfs_form, snfs_difficulty, target_t_level, explicit_target_t_level, current_t_level, effort, ecm_eligible,"
    " pm1_eligible, pp1_eligible, p1_target_b1, planned_t_level, work_value, open_leases, xmin::text"
    " FROM composites ORDER BY id",
    "factors": "SELECT composite_id, factor, multiplicity, is_prime, split_from_id, origin FROM factors ORDER BY id",
    "aliases": "SELECT value_sha256, composite_id, kind FROM composite_aliases ORDER BY 1, 2",
    "effort": "SELECT * FROM composite_effort ORDER BY 1, 2, 3, 4",
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
    assert rows(engine, "SELECT number FROM composites WHERE ecm_eligible") == [(str(number),)]
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
    run_sql(engine, "TRUNCATE composites, composite_aliases, factors RESTART IDENTITY CASCADE")
    with unit_of_work(engine, "register") as connection:
        new_id = registry.register(connection, str(number), mpz(number), is_prime=False)
        registry.lock_family(connection, new_id)
        members = families.load_family(connection, [new_id], SETTINGS.max_digits)
        families.use_divisors(connection, members, [Divisor(mpz(p), SPLIT) for p in (2, 7, 999_983)])
    stepwise = everything(engine)
    for name in ("factors", "aliases", "effort", "jobs"):
        assert stepwise[name] == loaded[name]
    assert stepwise["composites"][0][:-1] == loaded["composites"][0][:-1]
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
    (child,) = rows(engine, "SELECT * FROM composites WHERE parent_id IS NOT NULL")
    assert child.number == str(part)
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
    assert scalar(engine, "SELECT count(*) FROM composites") == 2
    load(engine, f"{2**67 - 1}\n2**67-1\n 2^67 - 1\n")
    assert scalar(engine, "SELECT count(*) FROM composites") == 2
    assert_sound(engine)


def test_a_number_that_occurs_twice_is_loaded_once_with_its_last_fields(engine):
    table = "number,priority,prior_work\n2^251-1,1,t20\n2**251-1,,\n2^251-1,3,t25\n"
    assert numbers_of(load(engine, table)) == (3, 1, 2, 1, 0)
    row = composite(engine, "2^251-1")
    assert row.priority == 3
    assert row.current_t_level == pytest.approx(25, abs=0.01)
    assert_sound(engine)


def test_a_number_and_its_cofactor_in_one_list_are_one_composite(engine):
    number = product(P80, Q80)
    for first, second in ((number, number * 6), (number * 6, number)):
        assert numbers_of(load(engine, f"{first}\n{second}\n"))[:3] in ((2, 1, 1), (2, 0, 2))
    assert scalar(engine, "SELECT count(*) FROM composites") == 1
    assert_sound(engine)


def test_numbers_with_the_same_cofactor_share_factors(engine):
    number = product(P80, Q80)
    report = load(engine, f"{number * 6}\n{number * 10}\n")
    assert {job.kind for job in report.to_publish} == {"share_factors"}
    run_jobs(engine)
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
    assert rows(engine, "SELECT b1, b2, prior_curves FROM composite_effort ORDER BY 1, 2") == [
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
    assert scalar(engine, "SELECT curves FROM composite_effort WHERE curves > 0") == 10
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
        loading._lock_loading(connection)
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
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        while not scalar(engine, waits):
            assert thread.is_alive()
    thread.join()
    assert numbers_of(done[0]) == (2, 1, 1, 0, 0)
    assert scalar(engine, "SELECT count(*) FROM composites") == 2
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
