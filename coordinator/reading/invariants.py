"""The invariants of docs/architecture.md, which hold at every commit, checked on a live database.

One REPEATABLE READ snapshot, which locks nothing, is read. SQL checks what it can; the rows for all other checks are
streamed, so the memory is bounded by the largest tree of factors and not by the number of composites.
"""

from collections.abc import Callable, Iterator
from itertools import groupby, islice
from typing import Any, NamedTuple

import gmpy2
import numpy as np
from gmpy2 import mpz
from sqlalchemy import Connection, Engine, Row, select, text

from coordinator import effort
from coordinator.composites import eligibility, lease_lifecycle, ledger
from coordinator.composites.values import sha256
from coordinator.numbers.arithmetic import digit_count, is_probable_prime
from coordinator.numbers.expressions import ExpressionError, decimal, evaluate_stored, shorten
from models.tables import Composite, Factor, Target, TargetSource, WorkAssignment, WorkedValue

# A primality test of 300 digits takes a millisecond; the stored primality of larger values is not checked.
PRIMALITY_CHECKED_DIGITS = 300
BATCH = 500
# Vectors are sums of the same terms in another order.
RELATIVE_ERROR = 1e-9


class Violation(NamedTuple):
    """A row that breaks an invariant: the invariant's name, the table, the row's id, and a description."""

    invariant: str
    table: str
    id: Any
    detail: str


def violations(
    engine: Engine,
    *,
    max_digits: int,
    overlap: float = 1.0,
    most: int = 1000,
    progress: Callable[[str, int], None] = lambda stage, rows: None,
) -> list[Violation]:
    """Return the violations, at most `most` of them; [] for a sound database.

    `overlap` is the multiple of its remaining need that a target may have out on leases. `progress` is called with
    the name of a stage and the number of further rows that were checked in it.
    """
    found: list[Violation] = []
    with engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True) as connection:
        for violation in _all(connection, max_digits, overlap, progress):
            found.append(violation)
            if len(found) >= most:
                break
    return found


def _all(
    connection: Connection, max_digits: int, overlap: float, progress: Callable[[str, int], None]
) -> Iterator[Violation]:
    for invariant, table, statement in STATEMENTS:
        progress("statements", 1)
        for row in connection.execute(text(statement)):
            yield Violation(invariant, table, row.id, row.detail)
    yield from _numbers(connection, max_digits, progress)
    yield from _effort(connection, progress)
    yield from _leases(connection, overlap)


# (invariant, table, SQL that selects id and detail of the rows that break it)
STATEMENTS = (
    (
        "settled once",
        "submissions",
        "SELECT id, format('state %s with settled_at %s', state, coalesce(settled_at::text, 'null')) AS detail"
        " FROM submissions WHERE (state = 'received') = (settled_at IS NOT NULL)",
    ),
    (
        "settled once",
        "submissions",
        "SELECT id, format('state %s has no outcome or composite', state) AS detail FROM submissions"
        " WHERE state IN ('applied', 'duplicate') AND (outcome IS NULL OR composite_id IS NULL)",
    ),
    (
        "settled once",
        "submissions",
        "SELECT id, format('state %s has no reason', state) AS detail FROM submissions"
        " WHERE state IN ('rejected', 'failed') AND (reason IS NULL OR detail IS NULL)",
    ),
    (
        "settled once",
        "submissions",
        "SELECT s.id, format('state %s, but its answer names attempt %s of composite %s, which does not exist',"
        " s.state, s.outcome->>'attempt_id', s.composite_id) AS detail"
        " FROM submissions s LEFT JOIN ecm_attempts a"
        # The curves of a duplicate may have been recorded for another number with the same cofactor.
        " ON a.id = (s.outcome->>'attempt_id')::bigint AND (a.composite_id = s.composite_id OR s.state = 'duplicate')"
        " WHERE s.state IN ('applied', 'duplicate') AND a.id IS NULL",
    ),
    (
        "one attempt",
        "submissions",
        "SELECT s.id, format('applied, but attempt %s is not its own', s.attempt_id) AS detail"
        " FROM submissions s LEFT JOIN ecm_attempts a ON a.id = s.attempt_id AND a.submission_id = s.id"
        " WHERE s.state = 'applied' AND a.id IS NULL",
    ),
    (
        "one attempt",
        "ecm_attempts",
        "SELECT min(id) AS id, format('submission %s has %s attempts', submission_id, count(*)) AS detail"
        " FROM ecm_attempts GROUP BY submission_id HAVING count(*) > 1",
    ),
    (
        "no trace",
        "ecm_attempts",
        "SELECT a.id, format('its submission %s is %s', s.id, s.state) AS detail"
        " FROM ecm_attempts a JOIN submissions s ON s.id = a.submission_id WHERE s.state <> 'applied'",
    ),
    (
        "effort",
        "composites",
        "SELECT c.id, format('t-level %s of %s and %s attempts up to %s, but its target has %s of %s and %s up to %s',"
        " c.current_t_level, c.target_t_level, c.attempt_count, coalesce(c.last_attempt_at::text, 'never'),"
        " t.current_t_level, t.target_t_level, t.attempt_count, coalesce(t.last_attempt_at::text, 'never')) AS detail"
        " FROM composites c JOIN targets t ON t.id = c.target_id"
        " WHERE (c.current_t_level, c.target_t_level, c.attempt_count)"
        " <> (t.current_t_level, t.target_t_level, t.attempt_count)"
        " OR c.last_attempt_at IS DISTINCT FROM t.last_attempt_at",
    ),
    (
        "effort",
        "targets",
        # The time of the last attempt may be a moment later than that of its row.
        "SELECT t.id, format('attempt_count is %s with the last at %s, but %s attempts count for it, the last at %s',"
        " t.attempt_count, coalesce(t.last_attempt_at::text, 'null'), coalesce(a.n, 0), coalesce(a.last::text, 'null'))"
        " AS detail FROM targets t LEFT JOIN"
        " (SELECT s.target_id, count(*) AS n, max(a.created_at) AS last"
        " FROM target_sources s JOIN ecm_attempts a USING (value_id) WHERE a.voided_at IS NULL GROUP BY s.target_id) a"
        " ON a.target_id = t.id WHERE t.attempt_count <> coalesce(a.n, 0)"
        " OR (t.last_attempt_at IS NULL) <> (a.last IS NULL) OR t.last_attempt_at < a.last",
    ),
    (
        "effort",
        "target_sources",
        # Also if it is finished: all its targets divide the number itself. _NOT_COUNTING has the other values.
        "SELECT c.target_id AS id, format('curves on value %s, which is the number of composite %s, do not count',"
        " v.id, c.id) AS detail FROM composites c JOIN worked_values v USING (value_sha256)"
        " WHERE c.target_id IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM target_sources s WHERE s.target_id = c.target_id AND s.value_id = v.id)",
    ),
    (
        "effort",
        "worked_values",
        "SELECT id, 'value_sha256 is another value''s' AS detail FROM worked_values"
        " WHERE value_sha256 <> sha256(convert_to(value, 'UTF8'))",
    ),
    (
        "effort",
        "worked_values",
        # A number that never gets this cofactor again may still have had it.
        "SELECT v.id, 'it has no attempt, counts for no target, and no composite has had it' AS detail"
        " FROM worked_values v WHERE NOT EXISTS (SELECT FROM ecm_attempts a WHERE a.value_id = v.id)"
        " AND NOT EXISTS (SELECT FROM target_sources s WHERE s.value_id = v.id)"
        " AND NOT EXISTS (SELECT FROM composite_aliases a WHERE a.value_sha256 = v.value_sha256)",
    ),
    (
        "one target",
        "targets",
        "SELECT t.id, 'no composite points to it' AS detail FROM targets t"
        " WHERE NOT EXISTS (SELECT FROM composites c WHERE c.target_id = t.id)",
    ),
    (
        "one target",
        "composites",
        "SELECT c.id, format('its cofactor is unfinished, but its target %s has another value or is finished',"
        " coalesce(c.target_id::text, 'missing')) AS detail"
        " FROM composites c LEFT JOIN targets t ON t.id = c.target_id"
        " WHERE c.current_composite <> '1' AND c.is_prime IS NOT TRUE AND NOT c.is_fully_factored AND (t.id IS NULL"
        " OR t.is_finished OR t.value_sha256 <> sha256(convert_to(c.current_composite, 'UTF8'))"
        " OR t.is_prime IS DISTINCT FROM c.is_prime)",
    ),
    (
        "one target",
        "targets",
        "SELECT t.id, 'it is not finished, but the cofactors of its composites are' AS detail"
        " FROM targets t JOIN composites c ON c.target_id = t.id GROUP BY t.id HAVING NOT t.is_finished"
        " AND bool_and(c.current_composite = '1' OR c.is_prime IS TRUE OR c.is_fully_factored)",
    ),
    (
        "one target",
        "targets",
        "SELECT min(id) AS id, format('%s targets have the same value', count(*)) AS detail"
        " FROM targets GROUP BY value_sha256 HAVING count(*) > 1",
    ),
    (
        "one target",
        "targets",
        "SELECT DISTINCT t.id, format('digit_length is %s, its value has %s digits', t.digit_length,"
        " length(c.current_composite)) AS detail FROM targets t JOIN composites c ON c.target_id = t.id"
        " WHERE t.value_sha256 = sha256(convert_to(c.current_composite, 'UTF8'))"
        " AND t.digit_length <> length(c.current_composite)",
    ),
    (
        "one target",
        "work_assignments",
        # Any number of clients may have a number of its curves each.
        "SELECT target_id AS id, format('%s open leases of all of it: %s', count(*), string_agg(id::text, ', '))"
        " AS detail FROM work_assignments WHERE closed_at IS NULL AND method = 'ecm' AND curves IS NULL"
        " GROUP BY target_id HAVING count(*) > 1",
    ),
    (
        "one target",
        "work_assignments",
        "SELECT target_id AS id, format('%s open reservations of it: %s', count(*), string_agg(id::text, ', '))"
        " AS detail FROM work_assignments WHERE closed_at IS NULL AND method NOT IN ('ecm', 'pm1', 'pp1', 'p1')"
        " GROUP BY target_id HAVING count(*) > 1",
    ),
    (
        "one target",
        "targets",
        "SELECT t.id, format('priority is %s, the largest of its composites is %s', t.priority, max(c.priority))"
        " AS detail FROM targets t JOIN composites c ON c.target_id = t.id"
        " GROUP BY t.id HAVING t.priority <> max(c.priority)",
    ),
    (
        "effort",
        "ecm_attempts",
        "SELECT a.id, format('%s of its curves are superseded, but stage 2 was run of %s', a.superseded_curves, d.done)"
        " AS detail FROM ecm_attempts a JOIN ("
        "  SELECT r.stage1_attempt_id AS id, coalesce(sum(s.superseding_curves), 0) AS done"
        "  FROM ecm_residues r LEFT JOIN ecm_attempts s ON s.residue_id = r.id GROUP BY r.stage1_attempt_id"
        " ) d ON d.id = a.id WHERE a.residue_id IS NULL AND a.superseded_curves <> d.done",
    ),
    (
        "effort",
        "ecm_attempts",
        # Only the residue tells which attempt gets its curves back when the other one is taken back.
        "SELECT a.id, format('%s of its curves are superseded, and it supersedes %s curves, but it has no residue',"
        " a.superseded_curves, a.superseding_curves) AS detail FROM ecm_attempts a WHERE a.residue_id IS NULL"
        " AND (a.superseding_curves > 0 OR a.superseded_curves > 0"
        " AND NOT EXISTS (SELECT FROM ecm_residues r WHERE r.stage1_attempt_id = a.id))",
    ),
    (
        "effort",
        "ecm_residues",
        "SELECT r.id, format('%s of its %s curves have had their stage 2', sum(s.superseding_curves), r.curve_count)"
        " AS detail FROM ecm_residues r JOIN ecm_attempts s ON s.residue_id = r.id"
        " GROUP BY r.id HAVING sum(s.superseding_curves) > r.curve_count",
    ),
    (
        "work",
        "targets",
        "SELECT t.id, format('open_residues is %s, but it has %s', t.open_residues, coalesce(r.n, 0)) AS detail"
        " FROM targets t LEFT JOIN ("
        "  SELECT c.target_id, count(*) AS n FROM ecm_residues r JOIN composites c ON c.id = r.composite_id"
        "  WHERE r.closed_at IS NULL GROUP BY c.target_id"
        " ) r ON r.target_id = t.id WHERE t.open_residues <> coalesce(r.n, 0)",
    ),
    (
        "work",
        "work_assignments",
        "SELECT w.id, format('its target is %s, that of composite %s is %s', w.target_id, c.id, c.target_id) AS detail"
        " FROM work_assignments w JOIN composites c ON c.id = w.composite_id"
        " WHERE w.closed_at IS NULL AND w.target_id IS DISTINCT FROM c.target_id",
    ),
    (
        "finished",
        "ecm_residues",
        "SELECT r.id, format('it waits for stage 2, but composite %s is finished', c.id) AS detail"
        " FROM ecm_residues r JOIN composites c ON c.id = r.composite_id"
        " WHERE r.closed_at IS NULL AND c.is_fully_factored",
    ),
    (
        "effort",
        "value_effort",
        "SELECT coalesce(a.value_id, e.value_id) AS id,"
        " format('B1 %s, B2 %s, parametrization %s: attempts have %s curves, the sum is %s',"
        " coalesce(a.b1, e.b1), coalesce(a.b2, e.b2), coalesce(a.parametrization, e.parametrization),"
        " coalesce(a.curves, 0), coalesce(e.curves, 0)) AS detail"
        " FROM (SELECT value_id, b1, b2, parametrization, sum(curves - superseded_curves) AS curves"
        " FROM ecm_attempts WHERE method = 'ecm' AND voided_at IS NULL"
        " GROUP BY value_id, b1, b2, parametrization) a"
        " FULL JOIN value_effort e USING (value_id, b1, b2, parametrization)"
        " WHERE coalesce(a.curves, 0) <> coalesce(e.curves, 0)",
    ),
    (
        "finished",
        "work_assignments",
        "SELECT w.id, format('status %s, but nothing is left to do on composite %s', w.status, c.id) AS detail"
        " FROM work_assignments w JOIN composites c ON c.id = w.composite_id"
        " WHERE w.closed_at IS NULL AND (c.is_fully_factored OR c.current_composite = '1')",
    ),
    (
        "finished",
        "work_assignments",
        "SELECT w.id, format('status %s, but target %s is finished', w.status, t.id) AS detail"
        " FROM work_assignments w JOIN targets t ON t.id = w.target_id WHERE w.closed_at IS NULL AND t.is_finished",
    ),
    (
        "finished",
        "factors",
        "SELECT f.id, format('a leaf of composite %s, which is fully factored, is not known to be prime', c.id)"
        " AS detail FROM factors f JOIN composites c ON c.id = f.composite_id"
        " WHERE c.is_fully_factored AND f.is_prime IS NOT TRUE"
        " AND NOT EXISTS (SELECT FROM factors below WHERE below.split_from_id = f.id)",
    ),
    (
        "finished",
        "factors",
        # A composite factor must be a composite of its own, for leases, or have a job; or its number has a job for
        # another part, for only some jobs of a number wait at a time.
        "SELECT f.id, format('a composite leaf of composite %s, with neither a composite of its own nor a job',"
        " f.composite_id) AS detail FROM factors f JOIN composites c ON c.id = f.composite_id"
        " WHERE f.is_prime IS NOT TRUE AND f.child_composite_id IS NULL AND c.parent_id IS NULL"
        " AND NOT EXISTS (SELECT FROM factors below WHERE below.split_from_id = f.id)"
        " AND f.composite_id NOT IN (SELECT other.composite_id FROM jobs j JOIN factors other ON other.id = j.target_id"
        " WHERE j.kind IN ('test_factor', 'split_factor') AND j.state <> 'done'"
        " UNION SELECT target_id FROM jobs WHERE kind = 'register_parts' AND state <> 'done')",
    ),
)


def _stream(connection: Connection, statement: Any) -> Iterator[Row[Any]]:
    return iter(connection.execution_options(stream_results=True, yield_per=BATCH).execute(statement))


class _Groups:
    """Streams the rows of a statement in the order of an id, by which it is sorted, one id at a time."""

    def __init__(self, connection: Connection, statement: Any, name: str) -> None:
        self._groups = groupby(_stream(connection, statement), key=lambda row: getattr(row, name))
        self._next: tuple[int, list[Row[Any]]] | None = None

    def rows_of(self, wanted: int) -> list[Row[Any]]:
        """Return the rows of an id; ids must ascend from call to call."""
        while self._next is None or self._next[0] < wanted:
            group = next(self._groups, None)
            if group is None:
                return []
            self._next = (group[0], list(group[1]))
        return self._next[1] if self._next[0] == wanted else []


def _numbers(connection: Connection, max_digits: int, progress: Callable[[str, int], None]) -> Iterator[Violation]:
    factors = _Groups(connection, select(Factor).order_by(Factor.composite_id, Factor.id), "composite_id")
    columns = (
        Composite.id,
        Composite.number,
        Composite.value_sha256,
        Composite.current_composite,
        Composite.digit_length,
        Composite.is_prime,
        Composite.is_fully_factored,
    )
    for seen, row in enumerate(_stream(connection, select(*columns).order_by(Composite.id)), 1):
        if seen % BATCH == 0:
            progress("numbers and their factors", BATCH)
        for invariant, detail in _number(row, factors.rows_of(row.id), max_digits):
            yield Violation(invariant, "composites", row.id, detail)


def _number(row: Row[Any], factors: list[Row[Any]], max_digits: int) -> Iterator[tuple[str, str]]:
    """Yield (invariant, description) for each fault of one composite and its tree of factors."""
    try:
        number = evaluate_stored(row.number, max_digits)
    except ExpressionError as error:
        yield "product", error.detail
        return
    if bytes(row.value_sha256) != sha256(decimal(number)):
        yield "product", "value_sha256 is another number's"
    cofactor = mpz(row.current_composite)
    below: dict[int | None, list[Row[Any]]] = {}
    for factor in factors:
        below.setdefault(factor.split_from_id, []).append(factor)
        yield from _factor(factor)
    for above, nodes in below.items():
        whole = cofactor if above is None else mpz(1)
        for node in nodes:
            whole *= mpz(node.factor) ** node.multiplicity
        expected = number if above is None else next((mpz(f.factor) for f in factors if f.id == above), None)
        if whole != expected:
            name = shorten(row.number) if above is None else f"factor {above}"
            yield "product", f"{name} is not the product of its {len(nodes)} parts and the cofactor"
    if not factors and cofactor != number:
        yield "product", f"the cofactor is {shorten(row.current_composite)}, but no factor is recorded"
    known = all(factor.is_prime is True for factor in factors if factor.id not in below)
    finished = known and (cofactor == 1 or row.is_prime is True)
    if finished != row.is_fully_factored:
        yield "finished", f"is_fully_factored is {row.is_fully_factored}, its parts say {finished}"
    if row.digit_length != digit_count(number if row.is_fully_factored else cofactor):
        yield "product", f"digit_length is {row.digit_length}"
    if cofactor > 1 and _wrong(cofactor, row.is_prime):
        yield "finished", f"is_prime is {row.is_prime}, which is wrong of the cofactor"


def _factor(factor: Row[Any]) -> Iterator[tuple[str, str]]:
    value = mpz(factor.factor)
    if value <= 1 or factor.multiplicity < 1:
        yield "product", f"factor {factor.id} is {shorten(factor.factor)}, {factor.multiplicity} times"
    if bytes(factor.factor_sha256) != sha256(factor.factor) or factor.digit_length != digit_count(value):
        yield "product", f"factor {factor.id}: factor_sha256 or digit_length is another number's"
    if _wrong(value, factor.is_prime):
        yield "finished", f"factor {factor.id}: is_prime is {factor.is_prime}, which is wrong"


def _wrong(value: mpz, is_prime: bool | None) -> bool:
    """Return whether a test shows that `is_prime` is wrong; False for a value that is too large to be tested here."""
    if is_prime is None or digit_count(value) > PRIMALITY_CHECKED_DIGITS:
        return False
    return is_probable_prime(value) != is_prime


# Values that do not count for the unfinished target of a composite, although curves were run on them and the composite,
# or a composite of which it is a part, has had them or has the attempts. Their number may be no multiple of the
# target's value: after the deletion of a factor it is a former cofactor.
_NOT_COUNTING = text("""
WITH wholes AS (
  SELECT id AS composite_id, id AS whole_id FROM composites
  UNION SELECT id, parent_id FROM composites WHERE parent_id IS NOT NULL
  UNION SELECT child_composite_id, composite_id FROM factors WHERE child_composite_id IS NOT NULL
), worked AS (
  SELECT w.composite_id, whole_id, v.id AS value_id FROM wholes w
  JOIN composite_aliases a ON a.composite_id = whole_id JOIN worked_values v USING (value_sha256)
  UNION SELECT composite_id, composite_id, value_id FROM ecm_attempts
)
SELECT t.id AS target_id, worked.composite_id, worked.whole_id, v.id, v.value
FROM worked JOIN worked_values v ON v.id = worked.value_id JOIN composites c ON c.id = worked.composite_id
JOIN targets t ON t.id = c.target_id AND NOT t.is_finished
WHERE NOT EXISTS (SELECT FROM target_sources s WHERE s.target_id = t.id AND s.value_id = v.id)
ORDER BY t.id, v.id, worked.composite_id, worked.whole_id
""")


def _effort(connection: Connection, progress: Callable[[str, int], None]) -> Iterator[Violation]:
    leased = select(WorkAssignment).where(WorkAssignment.closed_at.is_(None), WorkAssignment.target_id.is_not(None))
    open_leases = _Groups(connection, leased.order_by(WorkAssignment.target_id), "target_id")
    own = (Composite.target_id, Composite.current_composite, Composite.snfs_difficulty)
    pointing = select(*own, Composite.explicit_target_t_level).where(Composite.target_id.is_not(None))
    composites = _Groups(connection, pointing.order_by(Composite.target_id, Composite.id), "target_id")
    worked = select(TargetSource.target_id, WorkedValue.id, WorkedValue.value)
    worked = worked.join(WorkedValue, WorkedValue.id == TargetSource.value_id)
    sources = _Groups(connection, worked.order_by(TargetSource.target_id, TargetSource.value_id), "target_id")
    others = _Groups(connection, _NOT_COUNTING, "target_id")
    columns = (*lease_lifecycle.ELIGIBILITY_COLUMNS, Target.current_t_level, Target.attempt_count, Target.value_sha256)
    targets = _stream(connection, select(*columns).order_by(Target.id))
    seen = 0
    while chunk := list(islice(targets, BATCH)):
        computed = ledger.compute(connection, [row.id for row in chunk])
        for row in chunk:
            detail = computed[row.id].difference_from(row)
            if detail:
                level = f"t{row.current_t_level}, its curves give t{computed[row.id].current_t_level}"
                yield Violation("effort", "targets", row.id, f"{detail}: {level}")
            yield from _target(row, composites.rows_of(row.id), sources.rows_of(row.id), others.rows_of(row.id))
            expected = eligibility.compute_eligibility(row, open_leases.rows_of(row.id))
            stale = [
                f"{name} is {getattr(row, name)}, not {value}"
                for name, value in expected.items()
                if getattr(row, name) != value
            ]
            if stale:
                yield Violation("work", "targets", row.id, "; ".join(stale))
        seen += len(chunk)
        if len(chunk) == BATCH:
            progress("effort and eligibility", BATCH)


def _target(
    row: Row[Any], composites: list[Row[Any]], sources: list[Row[Any]], others: list[Row[Any]]
) -> Iterator[Violation]:
    """Yield what is wrong about the target t-level and the sources of one target; `others` are of _NOT_COUNTING."""
    levels = [
        effort.target_t_level(row.digit_length, own.snfs_difficulty, own.explicit_target_t_level) for own in composites
    ]
    if levels and abs(max(levels) - row.target_t_level) > RELATIVE_ERROR:
        detail = f"target_t_level is {row.target_t_level}, the largest of its composites is {max(levels)}"
        yield Violation("one target", "targets", row.id, detail)
    value = next((one.current_composite for one in composites if one.current_composite != "1"), None)
    if row.is_finished or value is None:  # the value of a finished target is not kept
        return
    for source in sources:
        if not gmpy2.is_divisible(mpz(source.value), mpz(value)):
            detail = f"curves on value {source.id} count for it, which is no multiple of its value"
            yield Violation("effort", "target_sources", row.id, detail)
    for other in others:
        if gmpy2.is_divisible(mpz(other.value), mpz(value)):
            whose = "" if other.whole_id == other.composite_id else f", a part of composite {other.whole_id},"
            detail = f"curves on value {other.id} do not count for composite {other.composite_id}{whose}"
            yield Violation("effort", "target_sources", row.id, detail)


# The need is computed for the time when the oldest of the open leases was made. Results without a lease lower it
# afterwards, and a factor or an operator may change the target; neither makes the leases too large.
_LEASED = """
SELECT * FROM (
  SELECT t.id, t.target_t_level, t.target_set_at, w.id AS lease, w.b1, w.b2, w.parametrization,
         w.curves - w.curves_submitted AS remaining, w.created_at,
         min(w.created_at) OVER (PARTITION BY t.id) AS since
  FROM work_assignments w JOIN targets t ON t.id = w.target_id
  WHERE w.closed_at IS NULL AND w.method = 'ecm' AND w.curves > w.curves_submitted) leased
WHERE target_set_at <= since
ORDER BY id, created_at, lease
"""
_SUMS_AT = """
SELECT e.b1, e.b2, e.parametrization, e.curves + e.prior_curves - coalesce(sum(a.curves - a.superseded_curves), 0)
FROM target_sources s JOIN value_effort e USING (value_id) LEFT JOIN ecm_attempts a
  ON (a.value_id, a.b1, a.b2, a.parametrization) = (e.value_id, e.b1, e.b2, e.parametrization)
  AND a.method = 'ecm' AND a.voided_at IS NULL AND a.created_at > :since
WHERE s.target_id = :target
GROUP BY e.value_id, e.b1, e.b2, e.parametrization
"""


def _leases(connection: Connection, overlap: float) -> Iterator[Violation]:
    # There are about as many open leases as clients, so all rows fit into memory.
    for target_id, group in groupby(connection.execute(text(_LEASED)).all(), key=lambda row: row.id):
        leases = list(group)
        sums = connection.execute(text(_SUMS_AT), {"target": target_id, "since": leases[0].since})
        vector = effort.effort_of([(int(b1), int(b2), param, int(curves)) for b1, b2, param, curves in sums])
        for lease in leases:
            run = (int(lease.b1), -1 if lease.b2 is None else int(lease.b2), lease.parametrization or 1)
            need = _need(vector, lease.target_t_level, run)
            # One more is allowed: the need depends on the last bits of sums, which were added up in another order.
            if lease.remaining > overlap * need + 1:
                detail = (
                    f"{lease.remaining} curves on lease {lease.lease}, where {need} were needed; {overlap:g} times "
                )
                yield Violation("bounded leases", "targets", target_id, detail + "that many are allowed")
            vector = effort.add_curves(vector, lease.remaining, *run)


def _need(vector: np.ndarray, target: float, run: tuple[int, int, int]) -> float:
    try:
        return effort.curves_to_reach(vector, target, *run)
    except ValueError:  # this B1 is too small to reach the target with any number of curves
        return float("inf")
