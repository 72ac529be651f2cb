"""Random lists in every format, with and without bad lines: a load is all or nothing, and a second one no change."""

import csv
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline import assert_sound, empty, scalar
from primes import prime
from test_loading import everything, load, load_json, numbers_of

from coordinator.loading.load import InvalidNumbersError
from coordinator.numbers.expressions import decimal, evaluate_number

PRIMES = [2, 3, 7, 1009, int(prime(8)), int(prime(20)), int(prime(60)), int(prime(61))]
BAD = ["x", "2^^3", "0", "1", "-7", "=1+1", "@A1", "1/2", "9^9^9", "007", "15\x00", "1e9", "2^67-1;--", "९"]

written = st.one_of(
    st.lists(st.sampled_from(PRIMES), min_size=1, max_size=5).map(lambda primes: "*".join(map(str, primes))),
    st.lists(st.sampled_from(PRIMES), min_size=1, max_size=5).map(
        lambda primes: decimal(evaluate_number("*".join(map(str, primes)), 1000))
    ),
)
good = st.fixed_dictionaries(
    {"number": written},
    optional={
        "priority": st.integers(-5, 5).map(str),
        "target_t_level": st.integers(5, 60).map(str),
        "snfs_difficulty": st.integers(20, 200).map(str),
        "prior_work": st.sampled_from(["t20", "35", "100@1e6", "10/20@5e4;5@1e6,p=3"]),
        "project": st.sampled_from(["A", "B"]),
    },
)
bad = st.fixed_dictionaries({"number": st.sampled_from(BAD)}) | st.just({"number": "15", "prior_work": "much"})
QUICK = settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def as_text(items):
    return "".join(f"# comment\n\n{item['number']}\r\n" for item in items), "list.txt"


def as_csv(items):
    target = io.StringIO()
    columns = sorted({name for item in items for name in item} | {"ignored"})
    writer = csv.DictWriter(target, columns, restval="")
    writer.writeheader()
    writer.writerows(items)
    return target.getvalue(), "list.csv"


def store(engine, form, items, **options):
    if form == "json":
        return load_json(engine, *json.loads(json.dumps(items)), **options)
    return load(engine, *(as_text if form == "text" else as_csv)(items), **options)


def values(items):
    return {evaluate_number(item["number"], 1000) for item in items}


@pytest.mark.parametrize("form", ["text", "csv", "json"])
@given(data=st.data())
@QUICK
def test_a_load_stores_all_or_nothing_and_a_second_one_changes_nothing(engine, form, data):
    empty(engine)
    before = data.draw(st.lists(good, max_size=3))
    if before:
        store(engine, form, before)
    items = data.draw(st.lists(good, min_size=1, max_size=5))
    wrong = [item for item in data.draw(st.lists(bad, max_size=3)) if form != "text" or "prior_work" not in item]
    mixed = data.draw(st.permutations(items + wrong))
    held = everything(engine)
    if wrong:
        with pytest.raises(InvalidNumbersError) as refused:
            store(engine, form, mixed)
        assert refused.value.report.invalid == len(refused.value.report.errors) == len(wrong)
        assert everything(engine) == held
    report = store(engine, form, mixed, skip_bad=True)
    assert (report.total, report.invalid) == (len(mixed), len(wrong))
    assert report.new + report.existing == len(items)
    # Every number of the lists is found, each once: as a number of its own or as what is left of another. What is left
    # of one may have a part that is too large to be split here, and is a composite of its own.
    listed = "SELECT count(*) FROM composites WHERE parent_id IS NULL"
    assert scalar(engine, listed) <= len(values(items) | values(before))
    assert_sound(engine)
    loaded = everything(engine)
    assert numbers_of(store(engine, form, items)) == (len(items), 0, len(items), 0, 0)
    assert everything(engine) == loaded
