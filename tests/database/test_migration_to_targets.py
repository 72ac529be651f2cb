"""The migration of databases from before targets: values of attempts, merged targets, and what stops it half way."""

import os
import random
import subprocess
import sys
import threading
import uuid
from collections import Counter
from contextlib import contextmanager
from itertools import count

import pytest
from alembic import command
from old_databases import OLD_REVISION, OldDatabase
from pipeline import (
    SETTINGS,
    apply_in_batches,
    assert_sound,
    composite,
    receive,
    result,
    rows,
    run_sql,
    scalar,
)
from primes import prime, product
from sqlalchemy import make_url, text
from sqlalchemy.exc import ProgrammingError
from test_loading import load, numbers_of

from coordinator import effort
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites.values import sha256
from coordinator.housekeeping import eligibility_refresh, schema_upgrade, target_conversion
from coordinator.housekeeping.schema_upgrade import bring_up_to_date
from coordinator.reading import invariants
from coordinator.results import batches
from ingest.commands import up
from models import migrate
from models.engine import make_engine

A, B, C, D = prime(20), prime(21), prime(22), prime(23)
LARGE = prime(60) * prime(61)
OTHER = prime(62) * prime(63)
PART = prime(44) * prime(45)  # 88 digits: too large to be split here


@pytest.fixture(scope="session")
def make_old_database(postgres):
    """Returns a function that creates a database of the old revision, or a copy of another one, and returns its URL."""
    names = (f"old_{n}" for n in count())

    def url_of(name):
        return make_url(postgres.url).set(database=name).render_as_string(hide_password=False)

    def make(template=None):
        name = next(names)
        source = "" if template is None else f" TEMPLATE {make_url(template).database} STRATEGY FILE_COPY"
        engine = make_engine(postgres.url)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name}{source}"))
        engine.dispose()
        if template is None:
            engine = make_engine(url_of(name))
            migrate.upgrade_schema(engine, OLD_REVISION)
            engine.dispose()
        return url_of(name)

    return make


@pytest.fixture(scope="session")
def empty_old_database(make_old_database):
    return make_old_database()


@pytest.fixture
def old(make_old_database, empty_old_database):
    """An old database to fill; `old.url` is its URL."""
    url = make_old_database(empty_old_database)
    engine = make_engine(url)
    with engine.connect() as connection:
        database = OldDatabase(connection)
        database.url = url
        yield database
    engine.dispose()


def fill(old):
    """Fill an old database with every kind of row; returns the numbers by name."""
    numbers = {}
    numbers["one"] = one = old.add_number(A * LARGE, A, priority=3)
    numbers["two"] = two = old.add_number(B * LARGE, B, priority=5, explicit_target_t_level=45.0)
    numbers["cofactor itself"] = itself = old.add_number(LARGE, tested=False, snfs_difficulty=100)
    numbers["whole"] = whole = old.add_number(C * OTHER, written=f"{C}*{OTHER}")
    numbers["untouched"] = old.add_number(D * OTHER, D)
    # A number with a composite factor that a child works on.
    numbers["split"] = split = old.add_number(PART * OTHER * D)
    numbers["part"] = part = old.add_number(PART, parent=split)
    old.connection.execute(
        text("UPDATE composites SET current_composite = :left, digit_length = :digits WHERE id = :id"),
        {"left": str(OTHER * D), "digits": len(str(OTHER * D)), "id": split.id},
    )
    split.cofactor = OTHER * D
    split.had.append(split.cofactor)
    alias = {"hash": sha256(str(split.cofactor)), "id": split.id}
    old.connection.execute(text("INSERT INTO composite_aliases VALUES (:hash, :id, 'cofactor')"), alias)
    old.add_factor(split, PART, part)
    finished = product(A, B, C, D)
    between = (B * C * D, C * D)
    numbers["finished"] = finished = old.add_number(finished, A, B, C, D, values_between=between)
    numbers["finished at once"] = old.add_number(A * B, A, B)
    numbers["prime cofactor"] = prime_left = old.add_number(A * prime(50), A)

    old.add_run(one, curves=10)
    old.add_run(one, LARGE, curves=20)
    old.add_run(one, LARGE, written=f"({one.value})/{A}", curves=3)
    old.add_run(one, written="what is this", curves=4)
    old.add_run(two, curves=30)
    old.add_run(two, curves=1000, voided=True)
    old.add_run(itself, curves=40, b1=250_000)
    old.add_run(itself, curves=1, b1=10**9, method="pm1")
    old.add_run(whole, curves=5)
    old.add_run(whole, C * OTHER, curves=6)
    stage1 = old.add_run(whole, curves=50, b2=0, superseded_curves=20)
    old.add_residue(whole, stage1)
    old.connection.execute(
        text(
            "UPDATE ecm_attempts SET residue_id = 1, superseding_curves = 20"
            " WHERE id = (SELECT min(id) FROM ecm_attempts WHERE composite_id = :id)"
        ),
        {"id": whole.id},
    )
    old.add_run(split, curves=70)
    old.add_run(split, split.cofactor, curves=7)
    old.add_run(part, curves=9)
    old.add_run(finished, curves=11)
    old.add_run(finished, C * D, curves=12)
    old.add_run(prime_left, curves=13)
    old.add_prior_work(one, 100)
    old.add_prior_work(two, 200)
    old.add_prior_work(part, 300)  # inherited
    old.add_prior_work(numbers["untouched"], 50, b1=3_000_000)
    for number, hold in ((one, "parked"), (two, "paused"), (part, "parked")):
        old.connection.execute(
            text("UPDATE composites SET hold = :hold, hold_reason = :reason, held_at = now() WHERE id = :id"),
            {"hold": hold, "reason": f"reason of {number.id}", "id": number.id},
        )
    old.add_lease(one)
    old.add_lease(itself, client="carol")
    old.add_lease(split, None)
    old.add_lease(finished, closed=True)
    old.connection.execute(
        text("UPDATE ecm_attempts SET curves_sha256 = sha256(id::text::bytea) WHERE voided_at IS NULL AND id % 2 = 0")
    )
    recalculate = "INSERT INTO recalculations (only_missing, total) VALUES (false, 3)"
    old.connection.execute(text(recalculate))
    old.connection.execute(
        text("INSERT INTO recalculated_efforts VALUES (1, :id, '', '', 0)"),
        {"id": one.id},
    )
    old.finish()
    return numbers


@pytest.fixture
def small_chunks(monkeypatch):
    """Every chunk has a few rows, so that there are many commits."""
    monkeypatch.setattr(target_conversion, "ATTEMPTS", 3)
    monkeypatch.setattr(target_conversion, "COMPOSITES", 2)
    monkeypatch.setattr(target_conversion, "TARGETS", 2)
    monkeypatch.setattr(target_conversion, "LINKED_TARGETS", 2)
    monkeypatch.setattr(target_conversion, "TEXTS", 1)
    monkeypatch.setattr(eligibility_refresh, "REFRESH_BATCH", 2)


@contextmanager
def engine_of(url):
    engine = make_engine(url, pool_size=3)
    yield engine
    engine.dispose()


# What must be the same however the migration went. (Ids and the time of the conversion may differ.)
SAME = {
    "composites": """
        SELECT c.*, t.value_sha256 AS target FROM composites c LEFT JOIN targets t ON t.id = c.target_id ORDER BY c.id
    """,
    "targets": "SELECT * FROM targets ORDER BY value_sha256",
    "attempts": "SELECT a.*, v.value FROM ecm_attempts a JOIN worked_values v ON v.id = a.value_id ORDER BY a.id",
    "sums": """
        SELECT v.value, e.* FROM value_effort e JOIN worked_values v ON v.id = e.value_id
        ORDER BY v.value, b1, b2, parametrization
    """,
    "sources": """
        SELECT t.value_sha256, v.value FROM target_sources s JOIN targets t ON t.id = s.target_id
        JOIN worked_values v ON v.id = s.value_id ORDER BY 1, 2
    """,
    "leases": """
        SELECT w.*, t.value_sha256 AS target FROM work_assignments w LEFT JOIN targets t ON t.id = w.target_id
        ORDER BY w.composite_id, w.created_at
    """,
    "residues": "SELECT * FROM ecm_residues ORDER BY id",
    "recalculations": "SELECT state, error FROM recalculations ORDER BY id",
    "owed work": "SELECT name FROM owed_work",
    "revision": "SELECT version_num FROM alembic_version",
}
DIFFERENT = ("target_id", "value_id", "target_set_at", "closed_at")


def content(url):
    """Return the content of a migrated database, without what may differ."""
    with engine_of(url) as engine:
        return {
            name: [
                {
                    column: bytes(value) if isinstance(value, memoryview) else value
                    for column, value in row._mapping.items()
                    if column not in DIFFERENT and not (name == "targets" and column == "id")
                }
                for row in rows(engine, statement)
            ]
            for name, statement in SAME.items()
        }


def sums_of(engine):
    """Return the stored curves and prior curves by value."""
    statement = (
        "SELECT v.value, sum(e.curves) AS curves, sum(e.prior_curves) AS prior FROM value_effort e"
        " JOIN worked_values v ON v.id = e.value_id GROUP BY v.value"
    )
    return {int(row.value): (int(row.curves), int(row.prior)) for row in rows(engine, statement)}


def sources_of(engine, number):
    """Return the values whose curves count for the target of a number."""
    statement = (
        "SELECT v.value FROM target_sources s JOIN worked_values v ON v.id = s.value_id"
        " JOIN composites c ON c.target_id = s.target_id WHERE c.id = :id"
    )
    return {int(row.value) for row in rows(engine, statement, id=number.id)}


def test_everything_is_converted(old):
    numbers = fill(old)
    bring_up_to_date(old.url)
    with engine_of(old.url) as engine:
        assert_sound(engine)
        row = {name: composite(engine, number.id) for name, number in numbers.items()}
        sums = sums_of(engine)
        sources = {name: sources_of(engine, number) for name, number in numbers.items()}
        leases = rows(engine, "SELECT * FROM work_assignments ORDER BY composite_id")
        recalculations = rows(engine, "SELECT state, finished_at FROM recalculations")
        owed = scalar(engine, "SELECT count(*) FROM owed_work")
        assert scalar(engine, "SELECT version_num FROM alembic_version") == migrate.newest_revision()

    one, two, whole = (numbers[name] for name in ("one", "two", "whole"))
    split, finished = numbers["split"], numbers["finished"]
    # Each run is on the value that its client meant; what cannot be read was run on the number.
    assert sums == {
        one.value: (14, 0),
        LARGE: (63, 200),  # the larger of the prior works of two numbers
        two.value: (30, 0),
        whole.value: (11 + 30, 0),
        split.value: (70, 0),
        split.cofactor: (7, 0),
        OTHER: (0, 50),
        PART: (9, 0),
        finished.value: (11, 0),
        C * D: (12, 0),
        numbers["prime cofactor"].value: (13, 0),
    }
    # Three numbers have one unfinished value, and the curves of all.
    assert row["one"].target_id == row["two"].target_id == row["cofactor itself"].target_id
    assert sources["one"] == {one.value, two.value, LARGE}
    assert row["one"].attempt_count == row["cofactor itself"].attempt_count == 7
    assert row["one"].pm1_b1 == 10**9
    assert row["one"].target_t_level == row["cofactor itself"].target_t_level == 45.0
    with engine_of(old.url) as engine:
        priority = "SELECT t.priority FROM targets t JOIN composites c ON c.target_id = t.id WHERE c.id = :id"
        assert scalar(engine, priority, id=one.id) == 5
    assert (row["one"].hold, row["one"].hold_reason) == ("paused", f"reason of {two.id}")
    assert (row["one"].open_leases, row["one"].ecm_eligible) == (2, False)
    assert row["cofactor itself"].is_prime is False
    runs = [(50_000, -1, 3, 14 + 23 + 30), (250_000, -1, 3, 40), (11_000, -1, 1, 200)]
    assert row["one"].current_t_level == pytest.approx(effort.t_level(effort.effort_of(runs)))
    # The part has the curves of the whole, which its inherited prior work stood for, and its own.
    assert sources["part"] == {split.value, PART}
    assert row["part"].attempt_count == 2
    assert row["part"].hold == "parked"
    assert sources["split"] == {split.value, split.cofactor}
    assert row["whole"].open_residues == 1
    assert sources["untouched"] == {split.cofactor, split.value, OTHER}
    # Finished numbers show the effort that was spent on them.
    assert row["finished"].is_finished
    assert row["finished"].value_sha256 == sha256(str(finished.value))
    assert sources["finished"] == {finished.value, C * D}
    assert row["finished"].attempt_count == 2
    assert sources["prime cofactor"] == {numbers["prime cofactor"].value}
    assert row["finished at once"].target_id is None
    assert [lease.target_id for lease in leases] == [
        row["one"].target_id,
        row["one"].target_id,
        row["split"].target_id,
        None,
    ]
    assert [row.state for row in recalculations] == ["failed"]
    assert owed == 0


def test_the_last_value_of_a_finished_number_may_be_unfinished_elsewhere(old):
    """The job that would have used the factors on the other number had not run yet."""
    finished = old.add_number(A * B * C * D, A, B, C, D, values_between=(B * C * D,))
    old.add_run(finished, B * C * D, curves=10)
    other = old.add_number(prime(30) * B * C * D, prime(30))
    both = old.add_number(prime(31) * finished.value, prime(31))
    lost = old.add_number(B * C * D * prime(40), B, C, D, prime(40), values_between=(B * C * D,))
    old.add_run(lost, B * C * D, curves=10, b1=1_000_000)
    old.finish()
    bring_up_to_date(old.url)
    with engine_of(old.url) as engine:
        assert_sound(engine)
        assert composite(engine, finished.id).target_id is None  # all its values are unfinished elsewhere
        assert composite(engine, other.id).attempt_count == 2
        assert composite(engine, both.id).attempt_count == 0
        shown = composite(engine, lost.id)
        assert (shown.is_finished, shown.attempt_count) == (True, 2)
        assert sources_of(engine, lost) == {B * C * D}


def test_prior_work_of_numbers_that_share_counts_once(old, small_chunks):
    """The largest of them counts, also if they are not converted together; a list replaces it."""
    runs = {2: 100, 3: 5208, 5: 5208, 7: 200}
    numbers = [old.add_number(multiple * LARGE, multiple) for multiple in runs]
    for number, curves in zip(numbers, runs.values(), strict=True):
        old.add_prior_work(number, curves, b1=11_000_000)
    old.add_prior_work(numbers[0], 10, b1=50_000)  # not with the largest
    old.finish()
    bring_up_to_date(old.url)
    with engine_of(old.url) as engine:
        assert_sound(engine)
        assert sums_of(engine) == {LARGE: (0, 5208)}
        level = composite(engine, numbers[0].id).current_t_level
        assert level == pytest.approx(effort.t_level(effort.effort_of([(11_000_000, -1, 1, 5208)])))
        listed = [(numbers[0], 100), (numbers[1], 7), (numbers[2], 5208)]
        table = "".join(f"{number.value},{curves}@11e6\n" for number, curves in listed)
        assert numbers_of(load(engine, f"number,prior_work\n{table}")) == (3, 0, 3, 0, 0)
        assert numbers_of(load(engine, f"number,prior_work\n{numbers[3].value},300@11e6\n")) == (1, 0, 1, 1, 0)
        assert sums_of(engine)[LARGE] == (0, 300)
        assert_sound(engine)


def split_into_parts(old, *parts, left=1):
    """Add a number that was divided into composite parts and `left`; returns it and its parts."""
    split = old.add_number(product(*parts) * left)
    children = [old.add_number(part, parent=split) for part in parts]
    for child in children:
        old.add_factor(split, child.value, child)
    change = "UPDATE composites SET current_composite = :left, digit_length = :digits WHERE id = :id"
    old.connection.execute(text(change), {"left": str(left), "digits": len(str(left)), "id": split.id})
    if left > 1:
        split.cofactor = left
        split.had.append(left)
        alias = {"hash": sha256(str(left)), "id": split.id}
        old.connection.execute(text("INSERT INTO composite_aliases VALUES (:hash, :id, 'cofactor')"), alias)
    return split, children


def test_parts_keep_the_prior_work_of_their_numbers(old):
    """What parts have inherited is prior work and curves of their numbers: these curves count for them anyway."""
    whole, (part,) = split_into_parts(old, PART, left=OTHER)
    old.add_run(whole, curves=40, b1=11_000)
    old.add_prior_work(whole, 100)
    old.add_prior_work(part, 140)
    in_parts, (first, second) = split_into_parts(old, prime(46) * prime(47), prime(48) * prime(49))
    old.add_prior_work(in_parts, 300)
    old.add_prior_work(first, 300)
    old.finish()
    bring_up_to_date(old.url)
    with engine_of(old.url) as engine:
        assert_sound(engine)
        assert sums_of(engine) == {whole.value: (40, 0), OTHER: (0, 100), PART: (0, 100), in_parts.value: (0, 300)}
        assert composite(engine, part.id).current_t_level == composite(engine, whole.id).current_t_level > 0
        assert composite(engine, first.id).current_t_level == composite(engine, second.id).current_t_level > 0


def test_a_list_gives_prior_work_to_a_migrated_number_of_which_only_parts_are_left(old):
    split, parts = split_into_parts(old, PART, OTHER)
    old.finish()
    bring_up_to_date(old.url)
    with engine_of(old.url) as engine:
        assert composite(engine, split.id).target_id is None
        for times_changed in (1, 0):
            report = load(engine, f"number,prior_work\n{split.value},t30\n")
            assert numbers_of(report) == (1, 0, 1, times_changed, 0)
        assert [composite(engine, part.id).current_t_level for part in parts] == [pytest.approx(30, abs=0.1)] * 2
        assert_sound(engine)


def random_families(old, seed):
    """Fill an old database with families that share cofactors, split parts, and runs on all their values."""
    random_ = random.Random(seed)
    primes = [prime(digits) for digits in range(48, 60)]
    made = {}
    for _ in range(8):
        parts = random_.sample(primes, random_.randint(2, 5))
        if product(*parts) in made:
            continue
        found = random_.sample(parts, random_.randint(0, len(parts)))
        if len(found) == len(parts) - 1:
            found = parts  # the last part is prime
        between, left = [], product(*parts)
        for factor in found[:-1]:
            left //= factor
            between.append(left)
        number = old.add_number(
            product(*parts),
            *found,
            written=random_.choice([None, "*".join(map(str, parts))]),
            tested=random_.random() < 0.8,
            values_between=tuple(value for value in between if value != 1),
        )
        made[number.value] = number
        if random_.random() < 0.3:
            old.add_prior_work(number, random_.randint(1, 100))
        if not found and len(parts) == 5 and product(*parts[:3]) not in made:
            child = old.add_number(product(*parts[:3]), parent=number)
            made[child.value] = child
            old.add_factor(number, child.value, child)
            left = product(*parts[3:])
            old.connection.execute(
                text("UPDATE composites SET current_composite = :left, digit_length = :digits WHERE id = :id"),
                {"left": str(left), "digits": len(str(left)), "id": number.id},
            )
            number.cofactor = left
            number.had.append(left)
            alias = {"hash": sha256(str(left)), "id": number.id}
            old.connection.execute(text("INSERT INTO composite_aliases VALUES (:hash, :id, 'cofactor')"), alias)
            old.add_prior_work(child, 5)
    for _ in range(30):
        number = random_.choice(old.numbers)
        value = random_.choice(number.had)
        old.add_run(
            number,
            value,
            written=random_.choice([None, None, f"{value}*1"]),
            curves=random_.randint(0, 50),
            b1=random_.choice([11_000, 50_000]),
            voided=random_.random() < 0.1,
        )
    for number in old.numbers:
        if number.cofactor > 1 and random_.random() < 0.4:
            is_unfinished = "SELECT NOT is_fully_factored FROM composites WHERE id = :id"
            if old.connection.execute(text(is_unfinished), {"id": number.id}).scalar_one():
                old.add_lease(number, random_.choice([None, 10]))
    old.finish()


def assert_each_run_counts_once(old, engine):
    """Compare the sums of values and targets with those of the runs, which are known here."""
    by_value = Counter()
    for row in rows(engine, "SELECT id, voided_at FROM ecm_attempts"):
        run = next(run for run in old.runs if run.id == row.id)
        by_value[run.value] += 0 if row.voided_at else run.curves
    stored = {value: curves for value, (curves, _) in sums_of(engine).items() if curves}
    assert stored == {value: curves for value, curves in by_value.items() if curves}
    for number in old.numbers:
        row = composite(engine, number.id)
        if row.target_id is None or row.is_finished:
            continue
        related = {number.value, *number.had}
        for other in old.numbers:
            if number.cofactor in other.had or other is number.parent:
                related.update(other.had)
        expected = {run.value for run in old.runs if run.value in related and run.value % number.cofactor == 0}
        assert expected <= sources_of(engine, number)


@pytest.mark.parametrize("seed", range(8))
def test_random_families_are_converted(old, seed, small_chunks):
    random_families(old, seed)
    bring_up_to_date(old.url)
    with engine_of(old.url) as engine:
        assert_sound(engine)
        assert_each_run_counts_once(old, engine)


# Stopped half way -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_migration_that_is_killed_between_any_two_commits_is_finished_by_the_next_ones(
    old, make_old_database, small_chunks, monkeypatch
):
    """Each process commits once; the next one goes on, is killed in the middle of a transaction, and so on."""
    fill(old)
    expected_url = make_old_database(old.url)
    bring_up_to_date(expected_url)
    commits = 0

    def dying(real):
        @contextmanager
        def transaction(*arguments, **named):
            nonlocal commits
            with real(*arguments, **named) as made:
                yield made
                if commits == 1:
                    raise Killed
            commits += 1

        return transaction

    upgrade_schema = migrate.upgrade_schema

    def upgrade_or_die(engine, revision="head"):
        nonlocal commits
        if commits == 1:
            raise Killed
        upgrade_schema(engine, revision)
        commits += 1

    monkeypatch.setattr(schema_upgrade, "unit_of_work", dying(unit_of_work))
    monkeypatch.setattr(migrate, "upgrade_schema", upgrade_or_die)
    processes = 0
    while True:
        commits = 0
        processes += 1
        try:
            bring_up_to_date(old.url)
        except Killed:
            continue
        break
    assert processes > 30
    assert content(old.url) == content(expected_url)


# The second argument is the function that ends the process, the third the call at which it does.
KILLED = """
import os, sys
from coordinator.housekeeping import {module}
real, calls = {module}.{function}, 0
def die(*arguments, **named):
    global calls
    calls += 1
    if calls == {call}:
        os._exit(9)
    return real(*arguments, **named)
{module}.{function} = die
from ingest.cli import main
main(["migrate"])
"""


def run_migrate(url, program="from ingest.cli import main; main(['migrate'])"):
    """Run a program with this DATABASE_URL; returns the finished process."""
    environment = os.environ | {"DATABASE_URL": url}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_migration_that_is_killed_before_the_refresh_is_finished_by_the_next_one(old, make_old_database):
    """Today's case: the schema was new, but the eligibility was never computed, and nothing noticed."""
    fill(old)
    expected_url = make_old_database(old.url)
    bring_up_to_date(expected_url)
    # The function that a step runs is in a table, so its first statement ends the process.
    program = KILLED.format(module="eligibility_refresh", function="select", call=1)
    assert run_migrate(old.url, program).returncode == 9
    with engine_of(old.url) as engine:
        assert rows(engine, "SELECT name FROM owed_work") == [("refresh_eligibility",)]
        assert scalar(engine, "SELECT version_num FROM alembic_version") != migrate.newest_revision()
        assert scalar(engine, "SELECT count(*) FROM targets WHERE ecm_eligible") == 0
    finished = run_migrate(old.url)
    assert (finished.returncode, finished.stdout) == (0, f"The schema is at {migrate.newest_revision()}.\n")
    assert content(old.url) == content(expected_url)
    with engine_of(old.url) as engine:
        assert_sound(engine)
        assert scalar(engine, "SELECT count(*) FROM targets WHERE ecm_eligible") > 0


def test_up_finishes_a_migration_before_anything_starts(old):
    fill(old)
    program = KILLED.format(module="target_conversion", function="_add_numbers", call=2)
    assert run_migrate(old.url, program).returncode == 9

    class Supervised:
        environment = {"DATABASE_URL": old.url}
        started = False

        def start(self):
            pass

        def start_programs(self):
            with engine_of(old.url) as engine:
                assert scalar(engine, "SELECT count(*) FROM owed_work") == 0
                assert invariants.violations(engine, max_digits=SETTINGS.max_digits) == []
            self.started = True

    supervisor = Supervised()
    up._bring_up(supervisor)
    assert supervisor.started


def test_two_processes_migrate_one_after_the_other(old, make_old_database, small_chunks):
    fill(old)
    expected_url = make_old_database(old.url)
    bring_up_to_date(expected_url)
    said, errors = [], []

    def migrate_too():
        try:
            bring_up_to_date(old.url, lambda description, share: said.append((description, share)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=migrate_too) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert said.count(("waiting for another process that migrates", None)) == 1
    # Each step came to its end once.
    assert [description for description, share in said if share == 1.0] == sorted(
        (description for description, share in said if share == 1.0),
        key=[step.description for step in schema_upgrade.STEPS.values()].index,
    )
    assert content(old.url) == content(expected_url)


def test_nothing_is_owed_by_a_database_without_numbers(old):
    bring_up_to_date(old.url)
    bring_up_to_date(old.url)
    with engine_of(old.url) as engine:
        assert scalar(engine, "SELECT count(*) FROM owed_work") == 0
        assert migrate.missing_revisions(engine) == []


def test_the_schema_alone_is_not_upgraded_beside_numbers_that_are_to_be_converted(old):
    old.add_number(LARGE)
    old.finish()
    with pytest.raises(Exception, match="ecm-coordinator migrate"):
        migrate.upgrade(old.url)
    with engine_of(old.url) as engine:
        assert scalar(engine, "SELECT version_num FROM alembic_version") == OLD_REVISION


def test_a_conversion_is_not_undone(old):
    old.add_number(LARGE)
    old.finish()
    bring_up_to_date(old.url)
    config = migrate.alembic_config()
    with engine_of(old.url) as engine:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            with pytest.raises(Exception, match="restore a backup"):
                command.downgrade(config, OLD_REVISION)
        assert_sound(engine)


# Beside other processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_shared", [False, True], ids=["one number", "shared cofactor"])
def test_a_result_that_comes_into_a_half_converted_database_waits_and_counts_once(old, is_shared):
    """Processes of the new version were started after a migration had been killed."""
    one = old.add_number(A * LARGE, A)
    if is_shared:
        old.add_number(B * LARGE, B)
    old.add_run(one, curves=10)
    old.finish()
    with engine_of(old.url) as engine:
        migrate.upgrade_schema(engine, "0012")
        waits = receive(engine, result(str(one.value), curves=7, parametrization=3)).submission_id
        with pytest.raises(ProgrammingError):
            batches.apply_waiting(engine, SETTINGS, uuid.uuid4(), lambda ids, jobs: None)
        bring_up_to_date(old.url)
        assert apply_in_batches(engine, waits, SETTINGS).state == "applied"
        assert_sound(engine)
        assert scalar(engine, "SELECT sum(curves) FROM value_effort") == 17


def test_numbers_that_were_deleted_before_the_conversion_are_nothing_to_wait_for(old):
    old.add_number(A * LARGE, A)
    old.finish()
    with engine_of(old.url) as engine:
        migrate.upgrade_schema(engine, "0012")
        run_sql(engine, "TRUNCATE composites CASCADE")
        bring_up_to_date(old.url)
        assert migrate.missing_revisions(engine) == []
