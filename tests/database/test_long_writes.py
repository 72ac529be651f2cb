"""Loading, recalculating and voiding: their statements, what they do without locks, and what moves meanwhile."""

import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic, sleep

import pytest
from gmpy2 import mpz
from pipeline import SETTINGS, assert_sound, composite, rows, run_jobs, run_sql, scalar, submit
from pipeline import result as body
from primes import prime, product
from sqlalchemy import event, select, text
from test_loading import load, load_json, waits_for_a_lock

from config.settings import Settings
from coordinator import effort
from coordinator.administration import deletions, edits, recalculation
from coordinator.base.audit import Actor
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import lease_lifecycle, planned_effort, registry, targets
from coordinator.leases import claims
from coordinator.leases.work_request import WorkRequest
from coordinator.loading import staging, upsert
from coordinator.loading.load import LoadConflictError
from models.tables import Target

ACTOR = Actor("tester")
A, B, C, D = prime(50), prime(60), prime(70), prime(80)
NUMBERS = [str(2**1061 - 1), str(A * B * C), *(str(2**n - 1) for n in (1297, 1301, 1303))]
ALWAYS = {"since": datetime(2000, 1, 1, tzinfo=UTC), "until": datetime(2100, 1, 1, tzinfo=UTC)}


def count_statements(engine, write):
    """Call `write`, and return how many statements the database executed for it."""
    counted = []

    def count(*arguments):
        parameters, is_many = arguments[3], arguments[5]
        counted.append(len(parameters) if is_many else 1)

    event.listen(engine, "before_cursor_execute", count)
    try:
        write()
    finally:
        event.remove(engine, "before_cursor_execute", count)
    return sum(counted)


def some_numbers(amount):
    return [str(2**n - 1) for n in range(1061, 1061 + 2 * amount, 2)]


def void(engine, client="alice"):
    return deletions.void_attempts(engine, ACTOR, client, **ALWAYS, program=None, reason="test")


@contextmanager
def before_locks(monkeypatch, action):
    """While the block runs, call `action` once after a long write has computed and before it locks anything."""
    compute, calls = planned_effort.compute, []

    def compute_and_act(connection):
        compute(connection)
        if not calls:
            calls.append(True)
            action()

    with monkeypatch.context() as patch:
        patch.setattr(planned_effort, "compute", compute_and_act)
        yield
    assert calls


@contextmanager
def during_writing(monkeypatch, action):
    """While the block runs, call `action` under the locks of a long write."""
    store, calls = planned_effort.store, []

    def act_and_store(connection, target_ids):
        calls.append(True)
        action()
        return store(connection, target_ids)

    with monkeypatch.context() as patch:
        patch.setattr(planned_effort, "store", act_and_store)
        yield
    assert calls


# The number of statements --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"prior_work": "100@50000"}, {"priority": 7}, {"target_t_level": 41.0}, {"snfs_difficulty": 100, "project": "p"}],
    ids=lambda fields: next(iter(fields)),
)
def test_the_statements_of_a_list_do_not_depend_on_the_number_of_known_numbers(engine, fields):
    load(engine, "\n".join(some_numbers(40)))
    run_jobs(engine)
    counted = set()
    for amount, place in ((10, 0), (20, 1), (40, 2)):
        given = {name: value + place if isinstance(value, int | float) else value for name, value in fields.items()}
        given |= {"prior_work": f"{100 + place}@50000"} if "prior_work" in fields else {}
        listed = [{"number": number, **given} for number in some_numbers(amount)]
        counted.add(count_statements(engine, lambda listed=listed: load_json(engine, *listed)))
    assert len(counted) == 1, counted
    assert_sound(engine)


def test_the_statements_of_voiding_and_recalculating_do_not_depend_on_the_number_of_numbers(engine):
    counted = {"void": set(), "recalculate": set()}
    for amount in (3, 6, 12):
        for number in some_numbers(amount):
            submit(engine, body(number, client=f"client{amount}"))
        ids = [composite(engine, number).target_id for number in some_numbers(amount)]
        run_sql(engine, "UPDATE targets SET current_t_level = 1 WHERE id = ANY(:ids)", ids=ids)
        recalculate = count_statements(engine, lambda: recalculation.recalculate_all(engine, ACTOR))
        counted["recalculate"].add(recalculate)
        counted["void"].add(count_statements(engine, lambda amount=amount: void(engine, f"client{amount}")))
    assert [len(counts) for counts in counted.values()] == [1, 1], counted
    assert_sound(engine)


def test_the_eligibility_of_many_targets_takes_as_many_statements_as_that_of_few(engine):
    load(engine, "\n".join(some_numbers(40)))
    counted = set()
    for amount in (10, 40):
        ids = rows(engine, "SELECT id FROM targets ORDER BY id LIMIT :n", n=amount)
        run_sql(engine, "UPDATE targets SET work_value = 0, ecm_eligible = NOT ecm_eligible")

        def refresh(ids=ids):
            with unit_of_work(engine, "refresh") as connection:
                lease_lifecycle.refresh_eligibility(connection, [row.id for row in ids])

        counted.add(count_statements(engine, refresh))
    assert len(counted) == 1


# Locks and transactions ----------------------------------------------------------------------------------------------


def lock_everything(engine):
    """Lock all numbers and targets at once; raises an error if another transaction has a lock on one of them."""
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '100ms'"))
        connection.execute(text("SELECT FROM composites FOR UPDATE"))
        connection.execute(text("SELECT FROM targets FOR UPDATE"))


WRITES = {
    "load": lambda engine: load_json(engine, *({"number": number, "prior_work": "100@50000"} for number in NUMBERS)),
    "void": void,
    "recalculate": lambda engine: recalculation.recalculate_all(engine, ACTOR),
}


@pytest.fixture(params=WRITES)
def write(engine, request):
    """A long write that changes the effort of all NUMBERS, each of which has an attempt."""
    for number in NUMBERS:
        submit(engine, body(number))
    if request.param == "recalculate":
        run_sql(engine, "UPDATE targets SET current_t_level = 1")
    return WRITES[request.param]


def test_nothing_is_locked_and_no_transaction_is_open_while_effort_is_computed(engine, write, monkeypatch):
    plan, states = planned_effort._plan, []

    def plan_slowly(target):
        lock_everything(engine)
        states.extend(
            rows(
                engine,
                "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'",
            )
        )
        return plan(target)

    monkeypatch.setattr(planned_effort, "_plan", plan_slowly)
    write(engine)
    assert states == []
    assert_sound(engine)


def test_a_result_for_another_number_does_not_wait_for_a_long_write(engine, write, monkeypatch):
    other = str(2**1307 - 1)
    submit(engine, body(other, client="bob"))
    if write is WRITES["recalculate"]:  # which finds nothing wrong with the other one
        run_sql(engine, "UPDATE targets SET current_t_level = 1 WHERE attempt_count > 0")
        recalculation.recalculate_composite(engine, ACTOR, composite(engine, other).id)
    run_sql(engine, f"ALTER DATABASE {engine.url.database} SET lock_timeout = '500ms'")
    engine.dispose()
    with during_writing(monkeypatch, lambda: submit(engine, body(other, client="bob", curves=7))):
        write(engine)
    assert composite(engine, other).attempt_count == 2
    assert_sound(engine)


def test_no_transaction_is_idle_while_a_list_is_read_and_checked(engine):
    longest = []
    over = threading.Event()

    def sample():
        while not over.is_set():
            longest.extend(
                rows(
                    engine,
                    "SELECT extract(epoch FROM clock_timestamp() - state_change) AS seconds FROM pg_stat_activity"
                    " WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
                )
            )
            sleep(0.05)

    def slowly():
        for place in range(2002):
            if place in (1000, 2000):  # at the beginning of a batch
                sleep(1.2)
            yield str(10**60 + place)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        from coordinator.loading.list_formats import InputRow
        from coordinator.loading.load import load_numbers

        numbers = (InputRow(place, number) for place, number in enumerate(slowly(), 1))
        load_numbers(engine, numbers, max_digits=10_000, actor=ACTOR, source="slow", processes=0)
    finally:
        over.set()
        thread.join()
    assert max((row.seconds for row in longest), default=0) < 1


# What moves between computing and writing ----------------------------------------------------------------------------


def lease(engine):
    claims.claim(engine, WorkRequest("carol", shared=True, composite=NUMBERS[0]), Settings())


MEANWHILE = {
    "a result": lambda engine: submit(engine, body(NUMBERS[0], curves=33)),
    "a result of another client": lambda engine: submit(engine, body(NUMBERS[0], client="bob", curves=33)),
    "P-1": lambda engine: submit(engine, body(NUMBERS[0], client="bob", method="pm1", b1=10**9, curves=1)),
    "a lease": lease,
    "a factor": lambda engine: submit(engine, body(NUMBERS[1], str(A))),
    "a priority": lambda engine: edits.set_priority(engine, ACTOR, composite(engine, NUMBERS[2]).id, 9),
    "voiding": void,
    "deletion": lambda engine: deletions.delete_composite(
        engine, ACTOR, composite(engine, NUMBERS[3]).id, SETTINGS.max_digits
    ),
}


@pytest.mark.parametrize("moves", MEANWHILE)
def test_what_moves_between_computing_and_writing_is_not_lost(engine, write, moves, monkeypatch):
    with before_locks(monkeypatch, lambda: MEANWHILE[moves](engine)):
        write(engine)
    assert_sound(engine)
    moved = "SELECT DISTINCT prior_curves FROM value_effort WHERE prior_curves > 0"
    if write is WRITES["load"]:
        assert [row.prior_curves for row in rows(engine, moved)] == [100]
    if write is WRITES["void"]:
        left = {"a result of another client": 1, "P-1": 1}.get(moves, 0)
        assert scalar(engine, "SELECT count(*) FROM ecm_attempts WHERE voided_at IS NULL") == left


def test_numbers_that_did_not_move_are_not_computed_under_the_locks(engine, write, monkeypatch):
    def fails(*arguments):
        raise AssertionError("computed under the locks")

    def forbid():
        for name in ("compute_vectors", "compute"):
            monkeypatch.setattr(planned_effort.ledger, name, lambda connection, ids, *rest: fails() if ids else {})
        monkeypatch.setattr(upsert.lease_lifecycle.eligibility, "compute_eligibility", fails)

    with before_locks(monkeypatch, forbid):
        write(engine)
    monkeypatch.undo()
    assert_sound(engine)


def test_a_value_that_another_number_had_is_computed_again_when_a_listed_number_comes_to_have_it(engine, monkeypatch):
    """The list gives prior work for N = a b c, whose factor a is found meanwhile: then it counts for b c."""
    whole, part = str(A * B * C), str(B * C)
    load_json(engine, {"number": whole}, {"number": part, "prior_work": "5@50000"})
    with before_locks(monkeypatch, lambda: submit(engine, body(whole, str(A), client="bob"))):
        load_json(engine, {"number": whole, "prior_work": "77@50000"})
    assert composite(engine, whole).target_id == composite(engine, part).target_id
    assert scalar(engine, "SELECT sum(prior_curves) FROM value_effort") == 77
    assert_sound(engine)


# Deadlocks -----------------------------------------------------------------------------------------------------------


def test_a_result_that_finds_a_number_of_the_list_and_the_list_do_not_deadlock(engine, monkeypatch):
    """The list has X = a b, which is new, and N = a b c d, which is known; a result finds c d on N."""
    new, known = A * B, product(A, B, C, D)
    load(engine, str(known))
    insert_composites, errors, stored = staging._COMPOSITES, [], []

    def find():
        try:
            submit(engine, body(str(known), str(C * D)))
        except Exception as error:
            errors.append(error)

    finding = threading.Thread(target=find)

    def text_beside_the_result(sql):
        if sql == insert_composites and not stored:
            stored.append(True)
            finding.start()
            until = monotonic() + 10
            while not waits_for_a_lock(engine) and finding.is_alive() and monotonic() < until:
                sleep(0.01)
        return text(sql)

    monkeypatch.setattr(staging, "text", text_beside_the_result)
    seen = []
    report = load_json(
        engine,
        {"number": str(new)},
        {"number": str(known), "prior_work": "100@50000"},
        progress=lambda stage, count: seen.append(count),
    )
    finding.join()
    assert (errors, min(seen) >= 0, report.new, report.updated) == ([], True, 1, 1)
    run_jobs(engine)
    assert composite(engine, str(known)).current_composite == str(new)
    assert composite(engine, str(known)).target_id == composite(engine, str(new)).target_id
    assert_sound(engine)


@pytest.mark.parametrize("state", ["40P01", "40001", "55P03"])
def test_a_load_in_conflict_with_others_is_stored_again(engine, state, monkeypatch):
    load(engine, NUMBERS[0])
    lock_known_numbers, attempts = upsert.lock_known_numbers, []

    def fail_twice(connection):
        attempts.append(True)
        lock_known_numbers(connection)
        if len(attempts) < 3:
            connection.execute(text(f"DO $$ BEGIN RAISE 'in conflict' USING ERRCODE = '{state}'; END $$"))

    monkeypatch.setattr(upsert, "lock_known_numbers", fail_twice)
    seen = []
    report = load_json(
        engine,
        *({"number": number, "prior_work": "100@50000"} for number in NUMBERS),
        progress=lambda stage, count: seen.append((stage, count)),
    )
    assert (len(attempts), report.new, report.existing, report.updated) == (3, 4, 1, 1)
    assert sum(count for stage, count in seen if stage == "stored") == 5
    assert_sound(engine)


def test_a_load_in_conflict_with_others_at_every_attempt_says_so(engine, monkeypatch):
    def fail(connection):
        connection.execute(text("DO $$ BEGIN RAISE 'in conflict' USING ERRCODE = '40P01'; END $$"))

    monkeypatch.setattr(upsert, "lock_known_numbers", fail)
    with pytest.raises(LoadConflictError, match="changing numbers of the list in all 5 attempts"):
        load(engine, NUMBERS[0])
    assert scalar(engine, "SELECT count(*) FROM composites") == 0


def test_a_failed_load_leaves_its_connection_usable(engine, monkeypatch):
    def fails(connection):
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(upsert, "lock_known_numbers", fails)
        with pytest.raises(RuntimeError, match="no more"):
            load(engine, NUMBERS[0])
    assert scalar(engine, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    assert load(engine, NUMBERS[0]).new == 1


# Target t-levels -----------------------------------------------------------------------------------------------------


def test_the_database_computes_the_target_t_level_of_every_size_as_python_does(engine):
    level = targets.LISTED_TARGET.format(explicit="NULL", snfs="snfs")
    sizes = rows(
        engine,
        text(
            f"SELECT t.digit_length AS digits, snfs, {level} AS level FROM generate_series(1, 400) t (digit_length),"
            " (SELECT NULL::integer UNION ALL SELECT generate_series(10, 390, 19)) listed (snfs)"
        ).bindparams(**targets.TARGET_LEVELS),
    )
    assert len(sizes) == 400 * 22
    assert all(row.level == effort.target_t_level(row.digits, row.snfs) for row in sizes)


def test_the_largest_target_t_level_and_priority_of_the_numbers_of_a_target_count(engine):
    part = B * C
    load_json(
        engine,
        {"number": str(part), "priority": 3},
        {"number": str(part * A), "factors": [str(A)], "priority": 1, "target_t_level": 50.0},
    )
    load_json(engine, {"number": str(part), "priority": 0}, {"number": str(part * A), "target_t_level": 20.0})
    row = rows(engine, select(Target.priority, Target.target_t_level))
    assert row == [(1, effort.target_t_level(len(str(part))))]
    with unit_of_work(engine, "register") as connection:
        registry.register(connection, "7", mpz(7), is_prime=True)
    assert_sound(engine)
