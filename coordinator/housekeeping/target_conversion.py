"""Conversion of a database from before targets (revision 0011), in which effort and work belonged to composites.

Each function converts some rows after an id, in a unit of work of schema_upgrade.py, and returns the id of the last one
(None: there was none). They run in this order:

 1. `convert_attempts` finds the value that each attempt was run on, by the text that its submission has, and sums the
    curves of each value;
 2. `convert_prior_work` gives the prior work of a list to the cofactor of its number, as a list does now. Several
    numbers with one cofactor were often given the same prior work: the largest counts, not the sum. Parts had inherited
    the curves of their numbers as prior work: curves that were submitted for the numbers count for the parts anyway, so
    only what their numbers have as prior work is kept;
 3. `point_unfinished` makes one target for each unfinished value, with the holds of its composites, and points the
    composites and their open leases to it;
 4. `point_finished` gives a finished number a finished target, if there was work on it, so that its effort stays
    visible: its last value with work that is not an unfinished value of another number;
 5. `link_sources` finds for each target the values whose curves count for it;
 6. `compute_effort` computes what these curves give, in targets and composites.

The eligibility of the targets follows (eligibility_refresh.py). Memory is bounded by the rows of one call.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import gmpy2
from gmpy2 import mpz
from sqlalchemy import Connection, bindparam, select, text
from sqlalchemy.dialects.postgresql import ARRAY, insert

from coordinator import effort
from coordinator.composites import ledger, superseding, targets
from coordinator.composites.holds import PAUSED
from coordinator.composites.targets import IS_UNFINISHED
from coordinator.composites.values import sha256
from coordinator.numbers.expressions import ExpressionError, decimal, evaluate_stored
from models.tables import Target, TargetSource, WorkedValue
from models.types import AnyRow, EffortVector

# The rows of one call. The targets of `link_sources` may have as many candidates as their families have members.
ATTEMPTS, COMPOSITES, TARGETS, LINKED_TARGETS = 50_000, 5_000, 5_000, 1_000
# Texts that are in memory at a time, which may have 50,000 characters each.
TEXTS = 200
# The most that the setting MAX_DIGITS allows: a smaller limit held when these numbers were accepted.
MAX_DIGITS = 1_000_000

COFACTOR_SHA256 = "sha256(convert_to(c.current_composite, 'UTF8'))"


# 1. Attempts ----------------------------------------------------------------------------------------------------------

# A worker that ran beside a half-done conversion has stored the values of its attempts, and added their curves.
_RUNS = """
CREATE TEMP TABLE runs ON COMMIT DROP AS
SELECT a.id, a.composite_id, a.submission_id, c.value_sha256 AS number_sha256, w.written_sha256,
       CASE k.kind WHEN 'number' THEN c.value_sha256 WHEN 'cofactor' THEN w.written_sha256 END AS value_sha256
FROM (SELECT * FROM ecm_attempts WHERE id > :after AND value_id IS NULL ORDER BY id LIMIT :attempts) a
JOIN composites c ON c.id = a.composite_id
JOIN submissions s ON s.id = a.submission_id
CROSS JOIN LATERAL (
    SELECT sha256(convert_to(coalesce(s.payload->>'composite', ''), 'UTF8')) AS written_sha256) w
LEFT JOIN composite_aliases k ON k.composite_id = c.id AND k.value_sha256 = w.written_sha256
"""
# Texts that are no alias: spellings of a cofactor, or spellings beyond the number of those that are kept.
_UNKNOWN_TEXTS = """
SELECT DISTINCT ON (r.composite_id, r.written_sha256) r.composite_id, r.written_sha256,
       coalesce(s.payload->>'composite', '') AS written
FROM runs r JOIN submissions s ON s.id = r.submission_id
WHERE r.value_sha256 IS NULL
ORDER BY r.composite_id, r.written_sha256
"""
_CREATE_EVALUATED = """
CREATE TEMP TABLE evaluated (composite_id bigint, written_sha256 bytea, value_sha256 bytea, value text) ON COMMIT DROP
"""
_ADD_EVALUATED = "INSERT INTO evaluated VALUES (:composite_id, :written_sha256, :value_sha256, :value)"
_USE_EVALUATED = """
UPDATE runs r SET value_sha256 = CASE k.kind WHEN 'number' THEN r.number_sha256 ELSE k.value_sha256 END
FROM evaluated e JOIN composite_aliases k ON k.composite_id = e.composite_id AND k.value_sha256 = e.value_sha256
WHERE r.composite_id = e.composite_id AND r.written_sha256 = e.written_sha256 AND r.value_sha256 IS NULL
"""
_USE_NUMBERS = "UPDATE runs SET value_sha256 = number_sha256 WHERE value_sha256 IS NULL"
# A cofactor is an alias in decimal only, so a text with its SHA-256 is its decimal text.
_ADD_COFACTORS = """
INSERT INTO worked_values (value_sha256, value)
SELECT r.value_sha256, CASE WHEN r.value_sha256 = r.written_sha256
    THEN (SELECT s.payload->>'composite' FROM submissions s WHERE s.id = r.submission_id) ELSE e.value END
FROM (SELECT DISTINCT ON (value_sha256) * FROM runs WHERE value_sha256 <> number_sha256 ORDER BY value_sha256, id) r
LEFT JOIN evaluated e ON e.composite_id = r.composite_id AND e.written_sha256 = r.written_sha256
WHERE NOT EXISTS (SELECT FROM worked_values v WHERE v.value_sha256 = r.value_sha256)
"""
_NUMBERS_OF_RUNS = "SELECT composite_id FROM runs WHERE value_sha256 = number_sha256"
# With the range of ids, PostgreSQL does not read the attempts before it.
_STORE_VALUES = """
UPDATE ecm_attempts a SET value_id = v.id FROM runs r JOIN worked_values v ON v.value_sha256 = r.value_sha256
WHERE a.id = r.id AND a.id > :after AND a.id <= :last
"""
_ADD_SUMS = """
INSERT INTO value_effort (value_id, b1, b2, parametrization, curves)
SELECT value_id, coalesce(b1, 0), coalesce(b2, 0), coalesce(parametrization, 0), sum(curves - superseded_curves)
FROM ecm_attempts
WHERE id > :after AND id <= :last AND method = 'ecm' AND voided_at IS NULL AND id IN (SELECT id FROM runs)
GROUP BY 1, 2, 3, 4 HAVING sum(curves - superseded_curves) <> 0
ON CONFLICT (value_id, b1, b2, parametrization) DO UPDATE SET curves = value_effort.curves + excluded.curves
"""


def convert_attempts(connection: Connection, after: int) -> int | None:
    """Store the values of some attempts, and add their curves to the sums of these values."""
    run = connection.execute
    run(text(_RUNS), {"after": after, "attempts": ATTEMPTS})
    run(text("ANALYZE runs"))
    last_id: int | None = run(text("SELECT max(id) FROM runs")).scalar_one()
    if last_id is None:
        run(text("CREATE INDEX IF NOT EXISTS ecm_attempts_value ON ecm_attempts (value_id, id)"))
        run(text("ANALYZE ecm_attempts, worked_values, value_effort"))
        return None
    run(text(_CREATE_EVALUATED))
    for rows in _stream(connection, _UNKNOWN_TEXTS):
        evaluated = [values for row in rows if (values := _evaluate(row)) is not None]
        if evaluated:
            run(text(_ADD_EVALUATED), evaluated)
    run(text(_USE_EVALUATED))
    run(text(_USE_NUMBERS))
    run(text(_ADD_COFACTORS))
    _add_numbers(connection, _NUMBERS_OF_RUNS)
    run(text(_STORE_VALUES), {"after": after, "last": last_id})
    run(text(_ADD_SUMS), {"after": after, "last": last_id})
    return last_id


def _evaluate(row: AnyRow) -> dict[str, Any] | None:
    """Return a row of `evaluated`; None if the text is no number, as in submissions that were entered by hand."""
    try:
        value = decimal(evaluate_stored(row.written, MAX_DIGITS))
    except ExpressionError:
        return None
    key = {"composite_id": row.composite_id, "written_sha256": bytes(row.written_sha256)}
    return {**key, "value_sha256": sha256(value), "value": value}


def _add_numbers(connection: Connection, composite_ids: str) -> None:
    """Add the numbers of the composites that the SQL text `composite_ids` selects to the worked values."""
    missing = f"""
    SELECT c.id, c.number, c.value_sha256 FROM composites c WHERE c.id IN ({composite_ids})
    AND NOT EXISTS (SELECT FROM worked_values v WHERE v.value_sha256 = c.value_sha256)
    """
    add = insert(WorkedValue).on_conflict_do_nothing(index_elements=[WorkedValue.value_sha256])
    for rows in _stream(connection, missing):
        connection.execute(add, [{"value_sha256": bytes(row.value_sha256), "value": _number(row)} for row in rows])


def _number(row: AnyRow) -> str:
    """Return the number of a composite in decimal. Raises ValueError for a row whose number is not its own."""
    written: str = row.number
    if sha256(written) == bytes(row.value_sha256):
        return written
    value = decimal(evaluate_stored(written, MAX_DIGITS))
    if sha256(value) != bytes(row.value_sha256):
        raise ValueError(f"composite {row.id}: value_sha256 is another number's")
    return value


def _stream(connection: Connection, statement: str, **parameters: Any) -> Iterator[list[AnyRow]]:
    """Yield the rows of a statement, TEXTS at a time."""
    streamed = text(statement).execution_options(stream_results=True, yield_per=TEXTS)
    yield from (list(part) for part in connection.execute(streamed, parameters).partitions())


# 2. Prior work --------------------------------------------------------------------------------------------------------

# The composites with prior work, and the values that it counts for: the cofactor, or the number if there is none. If
# only parts of a number are left, its prior work counts for them, and they need none of their own.
_NUMBERS_WITH_PRIOR_WORK = f"""
CREATE TEMP TABLE numbers ON COMMIT DROP AS
SELECT c.id, c.parent_id, {IS_UNFINISHED} AS has_cofactor,
       CASE WHEN {IS_UNFINISHED} THEN {COFACTOR_SHA256} ELSE c.value_sha256 END AS value_sha256
FROM composites c LEFT JOIN composites parent ON parent.id = c.parent_id
WHERE c.id > :after AND (c.parent_id IS NULL OR {IS_UNFINISHED.replace("c.", "parent.")})
  AND EXISTS (SELECT FROM composite_effort e WHERE e.composite_id = c.id AND e.prior_curves > 0)
ORDER BY c.id LIMIT :composites
"""
_ADD_UNFINISHED_VALUES = """
INSERT INTO worked_values (value_sha256, value)
SELECT DISTINCT ON (n.value_sha256) n.value_sha256, c.current_composite FROM numbers n JOIN composites c USING (id)
WHERE has_cofactor ORDER BY n.value_sha256
ON CONFLICT DO NOTHING
"""
_PRIOR_WORK = """
SELECT v.id AS value_id, n.id AS composite_id, e.b1, e.b2, e.parametrization,
       CASE WHEN n.parent_id IS NULL THEN e.prior_curves ELSE least(e.prior_curves, whole.prior_curves) END AS curves
FROM numbers n JOIN worked_values v USING (value_sha256)
JOIN composite_effort e ON e.composite_id = n.id AND e.prior_curves > 0
LEFT JOIN composite_effort whole ON whole.composite_id = n.parent_id
    AND (whole.b1, whole.b2, whole.parametrization) = (e.b1, e.b2, e.parametrization)
WHERE n.parent_id IS NULL OR whole.prior_curves > 0
UNION ALL
SELECT e.value_id, 0, e.b1, e.b2, e.parametrization, e.prior_curves
FROM value_effort e JOIN worked_values v ON v.id = e.value_id
WHERE v.value_sha256 IN (SELECT value_sha256 FROM numbers) AND e.prior_curves > 0
ORDER BY 1, 2, 3, 4, 5
"""
_DROP_PRIOR_WORK = "UPDATE value_effort SET prior_curves = 0 WHERE value_id = ANY(:ids) AND prior_curves > 0"
_ADD_PRIOR_WORK = """
INSERT INTO value_effort (value_id, b1, b2, parametrization, prior_curves)
VALUES (:value_id, :b1, :b2, :parametrization, :curves)
ON CONFLICT (value_id, b1, b2, parametrization) DO UPDATE SET prior_curves = excluded.prior_curves
"""
# (B1, B2, parametrization, curves)
PriorRun = tuple[int, int, int, int]


def convert_prior_work(connection: Connection, after: int) -> int | None:
    """Give the prior work of some composites to their values; of several with one value, the largest counts."""
    connection.execute(text(_NUMBERS_WITH_PRIOR_WORK), {"after": after, "composites": COMPOSITES})
    connection.execute(text(_ADD_UNFINISHED_VALUES))
    _add_numbers(connection, "SELECT id FROM numbers WHERE NOT has_cofactor")
    # By value and by composite; 0 stands for what the value has from composites before.
    given: dict[int, dict[int, list[PriorRun]]] = {}
    for row in connection.execute(text(_PRIOR_WORK)):
        run = (row.b1, int(row.b2), row.parametrization, row.curves)
        given.setdefault(row.value_id, {}).setdefault(row.composite_id, []).append(run)
    changed = {}
    for value_id, by_composite in given.items():
        # Of equal ones the first is taken.
        largest = max(by_composite, key=lambda one: (_level_of(tuple(by_composite[one])), -one))
        if largest != 0:
            changed[value_id] = by_composite[largest]
    columns = ("value_id", "b1", "b2", "parametrization", "curves")
    rows = [dict(zip(columns, (value_id, *run), strict=True)) for value_id, runs in changed.items() for run in runs]
    if rows:
        connection.execute(text(_DROP_PRIOR_WORK), {"ids": list(changed)})
        connection.execute(text(_ADD_PRIOR_WORK), rows)
    last_id: int | None = connection.execute(text("SELECT max(id) FROM numbers")).scalar_one()
    return last_id


@lru_cache(1000)
def _level_of(runs: tuple[PriorRun, ...]) -> float:
    return effort.t_level(effort.effort_of(runs))


# 3. and 4. Targets ----------------------------------------------------------------------------------------------------

_OWN_COLUMNS = """
    c.id, c.is_prime, c.priority, c.snfs_difficulty, c.explicit_target_t_level, c.hold, c.hold_reason, c.held_at,
    c.resumed_at
"""
_UNFINISHED = f"""
SELECT {_OWN_COLUMNS}, {COFACTOR_SHA256} AS target_sha256, length(c.current_composite) AS digits, false AS is_finished
FROM composites c WHERE c.id > :after AND {IS_UNFINISHED} ORDER BY c.id LIMIT :composites
"""
_FINISHED = f"""
SELECT {_OWN_COLUMNS}, c.value_sha256, {COFACTOR_SHA256} AS cofactor_sha256
FROM composites c
WHERE c.id > :after AND NOT ({IS_UNFINISHED})
  AND (EXISTS (SELECT FROM ecm_attempts a WHERE a.composite_id = c.id)
       OR EXISTS (SELECT FROM composite_effort e WHERE e.composite_id = c.id))
ORDER BY c.id LIMIT :composites
"""
# The smallest of a finished number's values with work is the last one.
_LAST_VALUES = """
SELECT DISTINCT ON (k.composite_id) k.composite_id, v.value_sha256, length(v.value) AS digits
FROM composite_aliases k JOIN worked_values v ON v.value_sha256 = k.value_sha256
WHERE k.composite_id = ANY(:ids)
  AND NOT EXISTS (SELECT FROM targets t WHERE t.value_sha256 = v.value_sha256 AND NOT t.is_finished)
ORDER BY k.composite_id, length(v.value), v.value COLLATE "C"
"""
_NUMBER_OF = "SELECT id, number, value_sha256 FROM composites WHERE id = :id"
_POINT = """
WITH pointed AS (
    UPDATE composites c SET target_id = t.id
    FROM unnest(CAST(:ids AS bigint[]), CAST(:hashes AS bytea[])) AS chosen (id, target_sha256)
    JOIN targets t ON t.value_sha256 = chosen.target_sha256
    WHERE c.id = chosen.id
    RETURNING c.id, c.target_id)
UPDATE work_assignments w SET target_id = pointed.target_id
FROM pointed WHERE w.composite_id = pointed.id AND w.closed_at IS NULL
"""
_STORED = (
    "value_sha256",
    "digit_length",
    "is_prime",
    "is_finished",
    "priority",
    "target_t_level",
    "hold",
    "hold_reason",
    "held_at",
    "resumed_at",
)
_HOLD = ("hold", "hold_reason", "held_at")


def point_unfinished(connection: Connection, after: int) -> int | None:
    """Point some unfinished composites, and their open leases, to the targets of their cofactors."""
    rows = connection.execute(text(_UNFINISHED), {"after": after, "composites": COMPOSITES}).all()
    _point(connection, [dict(row._mapping) for row in rows])
    last_id: int | None = rows[-1].id if rows else None
    return last_id


def point_finished(connection: Connection, after: int) -> int | None:
    """Point some finished composites that had work to a finished target, if one of their values can be one."""
    rows = connection.execute(text(_FINISHED), {"after": after, "composites": COMPOSITES}).all()
    if not rows:
        connection.execute(text("CREATE INDEX IF NOT EXISTS composites_target ON composites (target_id)"))
        connection.execute(text("ANALYZE composites, targets"))
        return None
    last_values = {
        row.composite_id: (bytes(row.value_sha256), row.digits)
        for row in connection.execute(text(_LAST_VALUES), {"ids": [row.id for row in rows]})
    }
    unfinished = select(Target.value_sha256).where(
        Target.value_sha256.in_([row.value_sha256 for row in rows]), ~Target.is_finished
    )
    taken = {bytes(value) for value in connection.execute(unfinished).scalars()}
    pointed = []
    for row in rows:
        if row.id in last_values:
            target_sha256, digits = last_values[row.id]
        elif bytes(row.value_sha256) not in taken:
            number = connection.execute(text(_NUMBER_OF), {"id": row.id}).one()
            target_sha256, digits = bytes(row.value_sha256), len(_number(number))
        else:
            continue
        is_prime = row.is_prime if target_sha256 == bytes(row.cofactor_sha256) else False
        own = {"target_sha256": target_sha256, "digits": digits, "is_finished": True, "is_prime": is_prime}
        pointed.append({**row._mapping, **own})
    _point(connection, pointed)
    last_id: int = rows[-1].id
    return last_id


def _point(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Insert the targets of composites, or merge them with those that are there; point the composites to them."""
    if not rows:
        return
    hashes = [bytes(row["target_sha256"]) for row in rows]
    columns = [getattr(Target, name) for name in _STORED]
    stored = connection.execute(select(*columns).where(Target.value_sha256.in_(hashes))).mappings()
    merged = {bytes(row["value_sha256"]): dict(row) for row in stored}
    for key, row in zip(hashes, rows, strict=True):
        merged[key] = _merge(merged.get(key), key, row)
    add = insert(Target)
    changed = {name: add.excluded[name] for name in _STORED if name != "value_sha256"}
    add = add.on_conflict_do_update(index_elements=[Target.value_sha256], set_=changed)
    none = effort.no_effort()
    connection.execute(add, [{**target, "effort": none} for target in merged.values()])
    connection.execute(text(_POINT), {"ids": [row["id"] for row in rows], "hashes": hashes})


def _merge(target: dict[str, Any] | None, value_sha256: bytes, composite: dict[str, Any]) -> dict[str, Any]:
    """Return a target as it is with one composite more: the largest priority and t-level, and the strictest hold."""
    level = effort.target_t_level(
        composite["digits"], composite["snfs_difficulty"], composite["explicit_target_t_level"]
    )
    own = {
        "value_sha256": value_sha256,
        "digit_length": composite["digits"],
        "is_prime": composite["is_prime"],
        "is_finished": composite["is_finished"],
        "priority": composite["priority"],
        "target_t_level": level,
        **{name: composite[name] for name in (*_HOLD, "resumed_at")},
    }
    if target is None:
        return own
    if target["hold"] == PAUSED or (target["hold"] and own["hold"] != PAUSED):
        own |= {name: target[name] for name in _HOLD}
    resumed = [at for at in (target["resumed_at"], own["resumed_at"]) if at]
    return own | {
        # One of them may not be tested yet.
        "is_prime": target["is_prime"] if own["is_prime"] is None else own["is_prime"],
        "priority": max(target["priority"], own["priority"]),
        "target_t_level": max(target["target_t_level"], own["target_t_level"]),
        "resumed_at": max(resumed, default=None),
    }


# 5. Sources -----------------------------------------------------------------------------------------------------------

# The composites that have or had the value of a target, the numbers on whose factors they work, the families of all
# these, and the composites that had a value in common with one of them: each value that they have had may be a multiple
# of the target's.
_CANDIDATES = """
WITH owners AS (
    SELECT t.id AS target_id, c.id AS composite_id FROM targets t JOIN composites c ON c.target_id = t.id
    WHERE t.id = ANY(:ids)
    UNION
    SELECT t.id, k.composite_id FROM targets t JOIN composite_aliases k ON k.value_sha256 = t.value_sha256
    WHERE t.id = ANY(:ids)
), with_wholes AS (
    SELECT target_id, composite_id FROM owners
    UNION
    SELECT o.target_id, f.composite_id FROM owners o JOIN factors f ON f.child_composite_id = o.composite_id
), roots AS (
    SELECT DISTINCT w.target_id, coalesce(c.parent_id, c.id) AS root_id
    FROM with_wholes w JOIN composites c ON c.id = w.composite_id
), members AS (
    SELECT target_id, root_id AS composite_id FROM roots
    UNION ALL
    SELECT r.target_id, c.id FROM roots r JOIN composites c ON c.parent_id = r.root_id
), related AS (
    SELECT target_id, composite_id FROM members
    UNION
    SELECT m.target_id, other.composite_id
    FROM members m JOIN composite_aliases k ON k.composite_id = m.composite_id
    JOIN composite_aliases other ON other.value_sha256 = k.value_sha256
)
SELECT t.id AS target_id, v.id AS value_id,
       bool_or(v.value_sha256 = t.value_sha256 OR t.is_finished AND c.target_id = t.id) AS is_source
FROM related r JOIN targets t ON t.id = r.target_id
JOIN composites c ON c.id = r.composite_id
JOIN composite_aliases k ON k.composite_id = c.id
JOIN worked_values v ON v.value_sha256 = k.value_sha256
GROUP BY t.id, v.id
"""
_TARGET_TEXTS = """
SELECT DISTINCT ON (t.id) t.id AS target_id, t.value_sha256, v.value, c.id, c.number, c.current_composite
FROM targets t JOIN composites c ON c.target_id = t.id
LEFT JOIN worked_values v ON v.value_sha256 = t.value_sha256
WHERE t.id = ANY(:ids) ORDER BY t.id, c.id
"""


# Otherwise each call reads whole tables, and the migration takes four times as long with twice as many numbers.
_WHOLE_TABLE_PLANS = ("enable_hashjoin", "enable_mergejoin", "enable_seqscan")


def link_sources(connection: Connection, after: int) -> int | None:
    """Find the values whose curves count for some targets: multiples of the targets' values.

    All values of a finished number count for its target, whose only purpose is to show them.
    """
    ids = _next_targets(connection, after, LINKED_TARGETS)
    if not ids:
        return None
    for name in _WHOLE_TABLE_PLANS:
        connection.execute(text(f"SET LOCAL {name} = off"))
    sources: list[tuple[int, int]] = []
    others: list[tuple[int, int]] = []
    for row in connection.execute(text(_CANDIDATES), {"ids": ids}):
        (sources if row.is_source else others).append((row.target_id, row.value_id))
    own_values: dict[int, mpz] = {}
    for rows in _stream(connection, _TARGET_TEXTS, ids=sorted({target_id for target_id, _ in others})):
        own_values |= {row.target_id: mpz(_target_text(row)) for row in rows}
    by_value: dict[int, list[int]] = {}
    for target_id, value_id in others:
        by_value.setdefault(value_id, []).append(target_id)
    worked = "SELECT id, value FROM worked_values WHERE id = ANY(:ids)"
    for rows in _stream(connection, worked, ids=sorted(by_value)):
        for row in rows:
            value = mpz(row.value)
            dividing = (target for target in by_value[row.id] if gmpy2.is_divisible(value, own_values[target]))
            sources += [(target_id, row.id) for target_id in dividing]
    if sources:
        link = [{"target_id": target_id, "value_id": value_id} for target_id, value_id in sorted(sources)]
        connection.execute(insert(TargetSource).on_conflict_do_nothing(), link)
    return ids[-1]


def _target_text(row: AnyRow) -> str:
    """Return the value of a target in decimal: a worked value, or the cofactor or the number of its composites."""
    if row.value is not None:
        return cast(str, row.value)
    if sha256(row.current_composite) == bytes(row.value_sha256):
        return cast(str, row.current_composite)
    return _number(row)


def _next_targets(connection: Connection, after: int, most: int) -> list[int]:
    following = select(Target.id).where(Target.id > after).order_by(Target.id).limit(most)
    return list(connection.execute(following).scalars())


# 6. Effort ------------------------------------------------------------------------------------------------------------

_STORE_EFFORT = text("""
UPDATE targets t SET effort = n.effort, current_t_level = n.current_t_level, attempt_count = n.attempt_count,
    last_attempt_at = n.last_attempt_at, pm1_b1 = n.pm1_b1, pp1_b1 = n.pp1_b1
FROM unnest(
    CAST(:id AS bigint[]), CAST(:effort AS bytea[]), CAST(:current_t_level AS double precision[]),
    CAST(:attempt_count AS bigint[]), CAST(:last_attempt_at AS timestamptz[]), CAST(:pm1_b1 AS bigint[]),
    CAST(:pp1_b1 AS bigint[])) AS n (id, effort, current_t_level, attempt_count, last_attempt_at, pm1_b1, pp1_b1)
WHERE t.id = n.id
""").bindparams(bindparam("effort", type_=ARRAY(EffortVector)))

# A cofactor that was not tested for one number, but for another one that has it, too.
_SHARE_PRIMALITY = """
UPDATE composites c SET is_prime = t.is_prime FROM targets t
WHERE t.id = ANY(:ids) AND c.target_id = t.id AND NOT t.is_finished AND c.is_prime IS DISTINCT FROM t.is_prime
"""


def compute_effort(connection: Connection, after: int) -> int | None:
    """Compute the effort of some targets and the number of their open residues, and copy them to their composites."""
    ids = _next_targets(connection, after, TARGETS)
    if not ids:
        return None
    superseding.recount_open_residues(connection, ids)
    computed = ledger.compute(connection, ids)
    new = {name: [getattr(own, name) for own in computed.values()] for name in ledger.TargetEffort._fields}
    connection.execute(_STORE_EFFORT, {"id": list(computed), **new})
    connection.execute(text(_SHARE_PRIMALITY), {"ids": ids})
    targets.copy_to_composites(connection, ids)
    return ids[-1]
