"""Every foreign key has an index: without one, PostgreSQL reads the whole table to delete a row that it refers to."""

import pytest
from pipeline import run_sql
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

# For each foreign key its table, its columns, and the valid B-tree indexes that begin with these columns, in any order.
# An index is of use only if it has all rows with a key: it has no condition, or only that the key is not null.
KEYS_AND_INDEXES = """
WITH keys AS (
    SELECT c.oid, c.conrelid, c.conkey::smallint[] AS columns, c.conname, c.conrelid::regclass::text AS table_name,
           (SELECT string_agg(a.attname, ', ' ORDER BY k.place)
            FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, place)
            JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum) AS column_names,
           (SELECT array_agg(format('(%I IS NOT NULL)', a.attname)::text)
            FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey)) AS not_null
    FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
    WHERE c.contype = 'f' AND n.nspname = 'public'
), indexes AS (
    SELECT i.indrelid, (i.indkey::smallint[])[0:i.indnkeyatts - 1] AS columns,  -- a slice begins with 1
           pg_get_expr(i.indpred, i.indrelid) AS condition
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
    WHERE i.indisvalid AND i.indisready AND m.amname = 'btree'
)
SELECT table_name, column_names FROM keys k
WHERE NOT EXISTS (
    SELECT FROM indexes i
    WHERE i.indrelid = k.conrelid
      AND (SELECT array_agg(key ORDER BY key) FROM unnest(i.columns[1:cardinality(k.columns)]) key)
        = (SELECT array_agg(key ORDER BY key) FROM unnest(k.columns) key)
      AND (i.condition IS NULL OR i.condition = ANY(k.not_null))
)
ORDER BY 1, 2
"""


def keys_without_an_index(engine):
    with engine.connect() as connection:
        return [f"{row.table_name} ({row.column_names})" for row in connection.execute(text(KEYS_AND_INDEXES))]


def test_every_foreign_key_has_an_index(engine):
    assert keys_without_an_index(engine) == []


@pytest.mark.parametrize(
    ("index", "is_usable"),
    [
        (None, False),
        ("(a, b)", True),
        ("(b, a)", True),
        ("(a, b, c)", True),
        ("(a)", False),
        ("(a) INCLUDE (b)", False),
        ("(c, a, b)", False),
        ("(a, c, b)", False),
        ("(a, (b + 0))", False),
        ("(a, b) WHERE a IS NOT NULL", True),
        ("(a, b) WHERE c IS NOT NULL", False),
        ("(a, b) WHERE a > 0", False),
        ("(a, b) WHERE a IS NULL", False),
    ],
)
def test_a_foreign_key_without_a_usable_index_is_found(engine, index, is_usable):
    """What the test above relies on; PostgreSQL itself would use exactly these indexes."""
    create = "CREATE TABLE referring (a bigint, b bigint, c bigint, FOREIGN KEY (a, b) REFERENCES referred (a, b))"
    run_sql(engine, "CREATE TABLE referred (a bigint, b bigint, PRIMARY KEY (a, b))")
    run_sql(engine, create)
    if index is not None:
        run_sql(engine, f"CREATE INDEX ON referring {index}")
    assert keys_without_an_index(engine) == ([] if is_usable else ["referring (a, b)"])


def test_an_invalid_index_does_not_count(engine):
    run_sql(engine, "CREATE TABLE referring (a bigint REFERENCES projects)")
    run_sql(engine, "INSERT INTO referring VALUES (NULL), (NULL)")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(IntegrityError):  # an interrupted build leaves the same
            connection.execute(text("CREATE UNIQUE INDEX CONCURRENTLY ON referring (a) NULLS NOT DISTINCT"))
    assert keys_without_an_index(engine) == ["referring (a)"]


def test_deleting_reads_no_whole_table(engine):
    """The statements by which PostgreSQL checks what refers to a deleted row, for each key, with the planner's word."""
    statement = """
    SELECT c.conname, c.conrelid::regclass::text AS table_name, a.attname AS column_name,
           format_type(a.atttypid, a.atttypmod) AS type_name
    FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
    WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace
    """
    with engine.connect() as connection:
        keys = connection.execute(text(statement)).all()
        assert len(keys) > 20
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        for key in keys:
            check = f"SELECT 1 FROM ONLY {key.table_name} x WHERE $1 = {key.column_name} FOR KEY SHARE OF x"
            connection.execute(text(f"PREPARE {key.conname} ({key.type_name}) AS {check}"))
            plan = "\n".join(connection.execute(text(f"EXPLAIN EXECUTE {key.conname} (NULL)")).scalars())
            assert f"Index Cond: ({key.column_name} = $1)" in plan, f"{key.table_name} ({key.column_name}): {plan}"
