"""Lists: what passes the filters, in order, page by page, as reading the whole table and sorting it gives."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline import SETTINGS, result, rows, run_sql, scalar, submit
from primes import prime, product
from sqlalchemy import text

from coordinator.base import cursors
from coordinator.base.cursors import InvalidCursorError
from coordinator.base.errors import NotFoundError
from coordinator.numbers.expressions import ExpressionError
from coordinator.reading import batch_lookup, clients, factors, projects, search
from coordinator.reading.batch_lookup import ProgressFilters
from coordinator.reading.search import CompositeFilters

MOST = SETTINGS.max_digits
COUNT = 400
FILL = """
INSERT INTO composites (number, value_sha256, current_composite, digit_length, is_prime, is_fully_factored, priority,
    snfs_difficulty, target_t_level, current_t_level, created_at)
SELECT CASE WHEN i % 3 = 0 THEN '2^' || i || '-1' ELSE (10::numeric ^ 30 + i)::text END,
    sha256(i::text::bytea), (10::numeric ^ 30 + i)::text, 80 + i % 7,
    CASE WHEN i % 11 = 0 THEN NULL ELSE i % 13 = 0 END, i % 13 = 0 OR i % 17 = 0 AND i % 11 <> 0, i % 4,
    CASE WHEN i % 5 = 0 THEN 60 + i % 30 END, CASE WHEN i % 19 = 0 THEN 0 ELSE 20 + i % 5 END, (i * 7 % 300) / 10.0,
    '2026-01-01T00:00:00Z'::timestamptz + interval '1 hour' * (i % 50)
FROM generate_series(1, :count) AS i
"""
JOIN = "INSERT INTO project_composites (project_id, composite_id) SELECT :project, id FROM composites WHERE id % 3 = 1"


@pytest.fixture(scope="module")
def filled(make_database):
    """An engine for a database with COUNT numbers of all kinds, every third in the project `third`."""
    from models.engine import make_engine

    engine = make_engine(make_database())
    run_sql(engine, FILL, count=COUNT)
    run_sql(engine, "INSERT INTO projects (name) VALUES ('third'), ('empty')")
    run_sql(engine, JOIN, project=scalar(engine, "SELECT id FROM projects WHERE name = 'third'"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE composites"))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def table(filled):
    """All rows of the table."""
    members = {row.composite_id for row in rows(filled, "SELECT composite_id FROM project_composites")}
    return [(row, row.id in members) for row in rows(filled, "SELECT * FROM composites")]


def state_of(row):
    if row.is_fully_factored:
        return "prime" if row.is_prime else "fully_factored"
    return "unknown" if row.is_prime is None else "composite"


def tenths(value):
    return math.floor(value * 10)


def hundredths(row):
    if row.target_t_level <= 0:
        return 100
    return math.floor(min(row.current_t_level / row.target_t_level, 100) * 100)


KEYS = {
    "id": lambda row: row.id,
    "digits": lambda row: row.digit_length,
    "t_level": lambda row: tenths(row.current_t_level),
    "progress": hundredths,
    "priority": lambda row: row.priority,
    "created": lambda row: row.created_at,
}


def passes(row, is_member, filters):
    bounds = (
        (row.digit_length, filters.min_digits, filters.max_digits, 1),
        (tenths(row.current_t_level), filters.min_t_level, filters.max_t_level, 10),
        (hundredths(row), filters.min_progress, filters.max_progress, 100),
        (row.priority, filters.min_priority, filters.max_priority, 1),
    )
    for value, least, most, parts in bounds:
        if least is not None and value < math.ceil(round(least * parts, 6)):
            return False
        if most is not None and value > math.floor(round(most * parts, 6)):
            return False
    if filters.state is not None and state_of(row) != filters.state:
        return False
    if filters.project is not None and not (is_member and filters.project == "third"):
        return False
    return filters.text is None or row.number.startswith(filters.text)


def expected(table, filters, sort, descending):
    passing = [row for row, is_member in table if passes(row, is_member, filters)]
    return [row.id for row in sorted(passing, key=lambda row: (KEYS[sort](row), row.id), reverse=descending)]


def walk(engine, filters, *, limit=100, **how):
    """The ids on all pages, one page after the other."""
    found, cursor = [], None
    while True:
        page = search.list_composites(engine, filters, limit=limit, cursor=cursor, max_digits=MOST, **how)
        assert len(page.rows) == limit or page.next is None
        found += [row.id for row in page.rows]
        cursor = page.next
        if cursor is None:
            return found


def maybe(strategy):
    return st.none() | strategy


ANY_FILTERS = st.builds(
    CompositeFilters,
    state=maybe(st.sampled_from(["composite", "unknown", "prime", "fully_factored"])),
    min_digits=maybe(st.integers(79, 88)),
    max_digits=maybe(st.integers(79, 88)),
    min_t_level=maybe(st.floats(0, 31)),
    max_t_level=maybe(st.sampled_from([0.0, 0.3, 2.9, 12.34, 29.9])),
    min_progress=maybe(st.sampled_from([0.0, 0.29, 0.5, 0.57, 1.0, 1.4])),
    max_progress=maybe(st.floats(0, 2)),
    min_priority=maybe(st.integers(-1, 4)),
    max_priority=maybe(st.integers(-1, 4)),
    project=maybe(st.sampled_from(["third", "empty"])),
    text=maybe(st.sampled_from(["2^", "2^3", "1000", "nothing", "2^%", "2_"])),
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    filters=ANY_FILTERS,
    sort=st.sampled_from(list(search.SORTS)),
    descending=st.booleans(),
    limit=st.integers(20, 150),
    ways=st.tuples(st.sampled_from([1, 20, 20_000]), st.sampled_from([0, 1 / 3, 2])),
)
def test_pages_are_those_of_the_whole_table_sorted(filled, table, filters, *, sort, descending, limit, ways):
    before = search.MAX_SCANNED, search.FEW
    # Each of the three ways to a page has its turn.
    search.MAX_SCANNED, search.FEW = ways
    try:
        found = walk(filled, filters, sort=sort, descending=descending, limit=limit)
    finally:
        search.MAX_SCANNED, search.FEW = before
    assert found == expected(table, filters, sort, descending)


def test_pages_are_stable_while_numbers_are_added_and_deleted(engine):
    run_sql(engine, FILL, count=60)
    first = search.list_composites(engine, CompositeFilters(), sort="priority", limit=20, max_digits=MOST)
    seen = [row.id for row in first.rows]
    run_sql(engine, "DELETE FROM composites WHERE id = ANY(:ids)", ids=seen[-3:])
    run_sql(engine, FILL.replace("sha256(i::text", "sha256((-i)::text").replace("'2^'", "'3^'"), count=1)
    second = search.list_composites(
        engine, CompositeFilters(), sort="priority", limit=100, cursor=first.next, max_digits=MOST
    )
    others = {row.id for row in rows(engine, "SELECT id FROM composites")} - set(seen)
    assert {row.id for row in second.rows} == others
    assert second.next is None


def test_a_cursor_continues_only_its_own_list(filled):
    page = search.list_composites(filled, CompositeFilters(), sort="digits", limit=5, max_digits=MOST)
    for filters, sort, cursor in (
        (CompositeFilters(min_digits=81), "digits", page.next),
        (CompositeFilters(), "priority", page.next),
        (CompositeFilters(), "digits", page.next[:-2]),
        (CompositeFilters(), "digits", "naïve"),
        (CompositeFilters(), "digits", ""),
    ):
        with pytest.raises(InvalidCursorError):
            search.list_composites(filled, filters, sort=sort, cursor=cursor, max_digits=MOST)
    for place in ([2**64 - 1, 1], ["x", 1], [True, 1], [1], {"a": 1}):
        forged = cursors.encode("q", place)
        with pytest.raises(InvalidCursorError):
            cursors.decode("q", forged, (int, int))
    with pytest.raises(InvalidCursorError):
        cursors.decode("q", cursors.encode("q", ["a\0b"]), (str,))
    with pytest.raises(InvalidCursorError):
        cursors.parse_time("yesterday")


def test_a_search_finds_any_value_a_number_has_had(engine):
    p, q, r = prime(12), prime(30), prime(40)
    submit(engine, result(str(product(p, q, r)), str(p)))
    composite_id = scalar(engine, "SELECT id FROM composites WHERE parent_id IS NULL")
    for word in (str(product(p, q, r)), str(product(q, r)), f"{product(p, q, r)} + 0", str(product(p, q, r))[:9]):
        page = search.list_composites(engine, CompositeFilters(text=word), max_digits=MOST)
        assert [row.id for row in page.rows] == [composite_id], word
    assert search.list_composites(engine, CompositeFilters(text=str(r)[:9] + "7"), max_digits=MOST).rows == []
    with pytest.raises(NotFoundError):
        search.list_composites(engine, CompositeFilters(project="nowhere"), max_digits=MOST)


def test_a_search_with_too_many_matches_is_marked_as_cut(filled, monkeypatch):
    monkeypatch.setattr(search, "MAX_MATCHES", 50)
    assert search.list_composites(filled, CompositeFilters(text="1000"), max_digits=MOST).is_cut
    assert not search.list_composites(filled, CompositeFilters(text="2^39"), max_digits=MOST).is_cut


# Many at once ---------------------------------------------------------------------------------------------------------


def test_many_numbers_are_found_in_one_query_by_any_value(engine):
    p, q, r = prime(12), prime(30), prime(40)
    submit(engine, result("2^1277-1"))
    submit(engine, result(str(product(p, q, r)), str(p)))
    numbers = ["2^1277-1", str(2**1277 - 1), "2 ^ 1277 - 1", "7^55+", str(product(q, r)), "12", str(product(p, q, r))]
    found = batch_lookup.read_batch_status(engine, numbers, MOST)
    assert [status.number for status in found] == numbers
    first, second = (row.id for row in rows(engine, "SELECT id FROM composites ORDER BY id"))
    assert [status.row and status.row.id for status in found] == [first, first, first, None, second, None, second]
    assert [status.problem is not None for status in found] == [False] * 3 + [True] + [False] * 3
    assert batch_lookup.read_batch_status(engine, [], MOST) == []


def difficulty(row):
    return row.digit_length if row.snfs_difficulty is None else row.snfs_difficulty


@pytest.mark.parametrize(
    ("chosen", "test"),
    [
        (ProgressFilters(), lambda row, member: True),
        (ProgressFilters(project="third"), lambda row, member: member),
        (ProgressFilters(min_priority=2), lambda row, member: row.priority >= 2),
        (ProgressFilters(min_difficulty=70, max_difficulty=82), lambda row, member: 70 <= difficulty(row) <= 82),
        (ProgressFilters(project="third", min_priority=1), lambda row, member: member and row.priority >= 1),
    ],
)
@pytest.mark.parametrize("include_factored", [False, True])
def test_the_nearest_to_their_targets(filled, table, chosen, test, include_factored):
    chosen = ProgressFilters(**{**chosen.__dict__, "include_factored": include_factored})
    found = batch_lookup.top_progress(filled, chosen, limit=25, max_digits=MOST)
    mine = [row for row, member in table if test(row, member) and (include_factored or not row.is_fully_factored)]
    best = sorted(mine, key=lambda row: (hundredths(row), row.id), reverse=True)[:25]
    assert {row.id for row in found} == {row.id for row in best}
    shares = [-1.0 if row.progress is None else row.progress for row in found]
    assert shares == sorted(shares, reverse=True)


def test_the_nearest_among_named_numbers(engine):
    submit(engine, result("2^1277-1", curves=10))
    submit(engine, result("2^1619-1", curves=1000))
    submit(engine, result("2^1753-1", curves=10_000))
    named = ProgressFilters(numbers=[str(2**1277 - 1), "2^1619 - 1", "3^3^"])
    found = batch_lookup.top_progress(engine, named, limit=10, max_digits=MOST)
    assert [row.number for row in found] == ["2^1619-1", "2^1277-1"]
    with pytest.raises(NotFoundError):
        batch_lookup.top_progress(engine, ProgressFilters(project="nowhere"), limit=10, max_digits=MOST)


# Factors, projects, clients -------------------------------------------------------------------------------------------


@pytest.fixture
def found(engine):
    """Three factors of two numbers by two clients, and what was left of the numbers; their ids by value."""
    number = str(product(prime(15), prime(25), prime(70), prime(71)))
    other = str(product(prime(20), prime(60), prime(61)))
    submit(engine, result(number, (str(prime(15)), "1:17"), project="first"))
    submit(engine, result(number, str(prime(25)), client="bob", method="pm1"))
    submit(engine, result(other, str(prime(20)), client="bob"))
    return number, other


def walk_factors(engine, limit=1, **how):
    filters = factors.FactorListFilters(**{name: how.pop(name) for name in list(how) if name != "order"})
    values, cursor = [], None
    while True:
        page = factors.list_factors(engine, filters, limit=limit, cursor=cursor, max_digits=MOST, **how)
        values += [int(row.factor) for row in page.rows]
        cursor = page.next
        if cursor is None:
            return values


@pytest.mark.parametrize("looked_at", [1, 2, 20_000])
def test_pages_of_factors(engine, found, monkeypatch, looked_at):
    monkeypatch.setattr(factors, "MAX_SCANNED", looked_at)
    number, _ = found
    assert walk_factors(engine) == [prime(20), prime(25), prime(15)]
    assert walk_factors(engine, order="largest") == [prime(25), prime(20), prime(15)]
    assert walk_factors(engine, number=number) == [prime(25), prime(15)]
    assert walk_factors(engine, client_id="bob", order="largest") == [prime(25), prime(20)]
    assert walk_factors(engine, project="first") == [prime(25), prime(15)]
    assert walk_factors(engine, min_digits=16, max_digits=20) == [prime(20)]
    assert walk_factors(engine, min_digits=20, order="largest", only_prime=True) == [prime(25), prime(20)]
    for wrong in ({"number": "17"}, {"project": "nowhere"}):
        with pytest.raises(NotFoundError):
            walk_factors(engine, **wrong)
    with pytest.raises(ExpressionError):
        walk_factors(engine, number="2^")


def test_a_factor_names_its_finder_and_method(engine, found):
    page = factors.list_factors(
        engine, factors.FactorListFilters(client_id="alice"), limit=10, cursor=None, max_digits=MOST
    )
    (row,) = page.rows
    assert (row.number, row.factor, row.client_id, row.method) == (found[0], str(prime(15)), "alice", "ecm")
    assert (row.b1, row.b2, row.parametrization, row.sigma) == (50_000, -1, 1, "17")
    assert factors.read_factor(engine, row.id) == row
    with pytest.raises(NotFoundError):
        factors.read_factor(engine, row.id + 1000)


def test_an_export_has_every_factor_once(engine, found, monkeypatch):
    monkeypatch.setattr(factors, "EXPORTED_AT_ONCE", 2)

    def exported(**chosen):
        return [int(row.factor) for batch in factors.export_factors(engine, **chosen) for row in batch]

    assert exported() == [prime(15), prime(25), prime(20)]
    assert exported(project="first") == [prime(15), prime(25)]
    assert exported(client_id="bob") == [prime(25), prime(20)]
    assert exported(since=datetime.now(UTC) + timedelta(hours=1)) == []
    with pytest.raises(NotFoundError):
        factors.export_factors(engine, project="nowhere")


def test_projects_and_clients_page_by_page(engine):
    for name in ("b", "a", "c"):
        submit(engine, result(str(product(prime(30), prime(31, ord(name)))), project=name, client=name))
    page = projects.list_projects(engine, limit=2)
    assert [(row.name, row.composites) for row in page.rows] == [("a", 1), ("b", 1)]
    rest = projects.list_projects(engine, limit=2, cursor=page.next)
    assert [row.name for row in rest.rows] == ["c"]
    assert rest.next is None
    assert projects.read_project(engine, name="c").id == projects.read_project(engine, project_id=rest.rows[0].id).id
    run_sql(engine, "INSERT INTO clients SELECT name, now(), now() + interval '1 s' * ascii(name) FROM projects")
    for order, names in (("name", ["a", "b", "c"]), ("last_seen", ["c", "b", "a"])):
        first = clients.list_clients(engine, order=order, limit=2)
        second = clients.list_clients(engine, order=order, limit=2, cursor=first.next)
        assert [row.name for row in [*first.rows, *second.rows]] == names
        assert second.next is None
    with pytest.raises(InvalidCursorError):
        clients.list_clients(engine, order="name", cursor=first.next)
