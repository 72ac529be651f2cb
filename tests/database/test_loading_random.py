"""Random lists in every format, with and without bad lines: a load is all or nothing, and a second one no change.

Lists of numbers that share cofactors give the same targets, however they are ordered and divided into lists, and the
state that an oracle computes, which knows the primes of all numbers and applies the lists and results one by one.
"""

import csv
import io
import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline import SETTINGS, assert_sound, empty, result, rows, run_jobs, scalar, submit
from primes import prime
from test_loading import everything, load, load_json, numbers_of

from coordinator import effort
from coordinator.loading.load import InvalidNumbersError
from coordinator.numbers.expressions import decimal, evaluate_number
from coordinator.reading import invariants

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


# Unfinished values that numbers share, each with the prior work that lists give for it.
PARTS = {PRIMES[6] * PRIMES[7]: "t20", PRIMES[6] * int(prime(62)): "100@1e6", PRIMES[6] ** 2 * PRIMES[7]: "t25"}
MULTIPLES = [1, 2, 3 * 7, 1009, PRIMES[4], PRIMES[5], 2 * PRIMES[5], PRIMES[4] * PRIMES[5]]
sharing = st.fixed_dictionaries(
    {"part": st.sampled_from(sorted(PARTS)), "multiple": st.sampled_from(MULTIPLES)},
    optional={
        "priority": st.integers(-5, 5),
        "target_t_level": st.integers(5, 60),
        "has_prior_work": st.booleans(),
        "is_divided": st.booleans(),
    },
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
    # Every number of the lists is one of its own, or a part that is too large to be split here and has a parent.
    listed = "SELECT count(*) FROM composites WHERE parent_id IS NULL"
    assert scalar(engine, listed) <= len(values(items) | values(before))
    assert_sound(engine)
    loaded = everything(engine)
    assert numbers_of(store(engine, form, items)) == (len(items), 0, len(items), 0, 0)
    assert everything(engine) == loaded


def as_item(drawn):
    """Return the fields of a line; its multiple is a given factor if `is_divided`, else the server finds small ones."""
    number = drawn["part"] * drawn["multiple"]
    item = {"number": str(number)} | {name: drawn[name] for name in ("priority", "target_t_level") if name in drawn}
    if drawn.get("is_divided", True) and drawn["multiple"] > 1:
        item["factors"] = [str(drawn["multiple"])]
    if drawn.get("has_prior_work"):
        item["prior_work"] = PARTS[drawn["part"]]
    return item


def state(engine):
    """Return what each number and each target has, by its value."""
    numbers = rows(
        engine,
        "SELECT number, current_composite, digit_length, is_prime, is_fully_factored, priority, target_t_level,"
        " explicit_target_t_level, round(current_t_level::numeric, 6), attempt_count FROM composites ORDER BY number",
    )
    found = rows(
        engine,
        "SELECT value_sha256, digit_length, is_prime, is_finished, priority, target_t_level,"
        " round(current_t_level::numeric, 6), attempt_count, ecm_eligible, pm1_eligible, p1_target_b1 FROM targets"
        " ORDER BY value_sha256",
    )
    return [tuple(map(str, row)) for row in numbers], [(bytes(row[0]), *row[1:]) for row in found]


@given(data=st.data())
@settings(QUICK, max_examples=8)
def test_the_order_of_lists_does_not_matter_to_numbers_that_share(engine, data):
    drawn = data.draw(
        st.lists(sharing, min_size=2, max_size=8, unique_by=lambda one: one["part"] * one["multiple"]), label="numbers"
    )
    items = [as_item(one) for one in drawn]
    curves = data.draw(st.booleans(), label="curves between the lists")
    states = []
    for _ in range(2):
        empty(engine)
        ordered = data.draw(st.permutations(items), label="order")
        lists = [[] for _ in range(data.draw(st.integers(1, 3), label="lists"))]
        for item in ordered:
            lists[data.draw(st.sampled_from(range(len(lists))), label="list")].append(item)
        for one in filter(None, lists):
            load_json(engine, *one)
            assert_sound(engine)
        if curves:
            submit(engine, result(items[0]["number"], curves=10))
        run_jobs(engine)
        assert_sound(engine)
        different = "SELECT target_id FROM composites WHERE target_id IS NOT NULL GROUP BY 1"
        assert rows(engine, different + " HAVING count(DISTINCT current_t_level) > 1") == []
        states.append(state(engine))
        loaded = everything(engine)
        assert numbers_of(load_json(engine, *items))[1:] == (0, len(items), 0, 0)
        assert everything(engine) == loaded
    assert states[0] == states[1]


# An oracle ------------------------------------------------------------------------------------------------------------

# c = P * Q, and MIDDLE * c, for which lists give MIDDLE or not. The server finds the small factors of their multiples.
MIDDLE, P, Q, R = PRIMES[5], PRIMES[6], PRIMES[7], int(prime(62))
UNDIVIDED = [P * Q, MIDDLE * P * Q, P * R]
FEW = [1, 3, 5, 3 * 5, 2 * 3 * 3]
# The runs that each text of prior work means: (B1, B2, parametrization, curves).
PRIOR_WORK = {
    "3000@5e4": [(50_000, -1, 1, 3000)],
    "100@1e6;40/50@25e4": [(10**6, -1, 1, 100), (250_000, -1, 1, 40), (250_000, 0, 1, 10)],
}
value = st.builds(lambda part, multiple: part * multiple, st.sampled_from(UNDIVIDED), st.sampled_from(FEW))
line = st.fixed_dictionaries(
    {"number": value},
    optional={
        "priority": st.integers(-5, 5),
        "target_t_level": st.integers(5, 60),
        "prior_work": st.sampled_from(sorted(PRIOR_WORK)),
    },
)
lines = st.lists(line, min_size=1, max_size=5)
step = st.one_of(
    st.tuples(st.just("load"), lines),
    st.tuples(st.just("load"), lines),
    st.tuples(st.sampled_from(["run on the number", "run on the cofactor"]), st.integers(1, 90)),
    st.tuples(st.just("find"), st.sampled_from([MIDDLE, P])),
)


class Known:
    """What the oracle knows of a number: the primes that were divided out, and the values that it has had."""

    def __init__(self, number, found):
        self.number = number
        self.found = {small for small in (2, 3, 5) if number % small == 0} | found
        # The server divides by small primes first, so a number has had this value even if the list gives MIDDLE.
        undivided = number
        for small in (2, 3, 5):
            while undivided % small == 0:
                undivided //= small
        self.had = {number, undivided, self.cofactor}
        self.priority, self.target_t_level = 0, None

    @property
    def cofactor(self):
        left = self.number
        for factor in self.found:
            while left % factor == 0:
                left //= factor
        return left

    @property
    def is_finished(self):
        return self.cofactor in (1, MIDDLE, P, Q, R)


class ListOracle:
    """Applies lists and results to numbers in memory; `is_given`: lists name the factor MIDDLE."""

    def __init__(self, is_given):
        self.is_given = is_given
        self.numbers = {}
        self.prior_work = {}  # by value
        self.curves = Counter()  # by value

    def load(self, items):
        """Apply a list; returns how many of its numbers are new."""
        before = len(self.numbers)
        for item in items:
            given_factors = {MIDDLE} if self.is_given and item["number"] % MIDDLE == 0 else set()
            own = self.numbers.setdefault(item["number"], Known(item["number"], given_factors))
            own.priority = item.get("priority", own.priority)
            own.target_t_level = item.get("target_t_level", own.target_t_level)
        last = {}
        for item in items:
            own = self.numbers[item["number"]]
            if "prior_work" in item and not own.is_finished:
                last[own.cofactor] = own, PRIOR_WORK[item["prior_work"]]
        changed = [(own, runs) for own, runs in last.values() if not self._is_known(own, runs)]
        for own, _ in changed:
            for had in own.had:
                self.prior_work.pop(had, None)
        self.prior_work |= {own.cofactor: runs for own, runs in changed}
        self.share()
        return len(self.numbers) - before

    def _is_known(self, own, runs):
        """Return whether one value of a number has this prior work, and no value that is only its own has other."""
        others = {had for other in self.numbers.values() if other is not own for had in other.had}
        different = [had for had in own.had - others if self.prior_work.get(had, runs) != runs]
        return any(self.prior_work.get(had) == runs for had in own.had) and not different

    def find(self, own, factor):
        own.found.add(factor)
        own.had.add(own.cofactor)
        self.share()

    def share(self):
        """Use the factors of each number on all that had a value in common with it, until nothing changes."""
        is_changed = True
        while is_changed:
            is_changed = False
            for own in self.numbers.values():
                for other in self.numbers.values():
                    new = {factor for factor in other.found - own.found if own.number % factor == 0}
                    if new and own.had & other.had:
                        own.found |= new
                        own.had.add(own.cofactor)
                        is_changed = True

    def sharing(self, value):
        return [own for own in self.numbers.values() if own.cofactor == value]

    def level(self, value):
        """Return the t-level of an unfinished value: that of all runs on it, and on multiples that its numbers had."""
        runs = Counter()
        for had in {had for own in self.numbers.values() if value in own.had for had in own.had}:
            if had % value == 0:
                runs[50_000, -1, 1] += self.curves[had]
                for b1, b2, parametrization, curves in self.prior_work.get(had, []):
                    runs[b1, b2, parametrization] += curves
        return effort.t_level(effort.effort_of([(*run, curves) for run, curves in sorted(runs.items()) if curves]))


def compare(engine, oracle):
    """Compare every number and every target with the oracle."""
    stored = {int(row.number): row for row in rows(engine, "SELECT * FROM composites")}
    assert stored.keys() == oracle.numbers.keys()
    targets = {row.id: row for row in rows(engine, "SELECT * FROM targets")}
    unfinished = {}
    for number, own in oracle.numbers.items():
        row = stored[number]
        assert (row.is_fully_factored, row.priority) == (own.is_finished, own.priority)
        assert row.explicit_target_t_level == own.target_t_level
        if not own.is_finished:
            assert int(row.current_composite) == own.cofactor
            unfinished.setdefault(own.cofactor, set()).add(row.target_id)
            assert row.current_t_level == pytest.approx(oracle.level(own.cofactor), abs=1e-6)
    for value, ids in unfinished.items():
        (target_id,) = ids
        sharing = oracle.sharing(value)
        usual = effort.target_t_level(len(str(value)))
        levels = [usual if own.target_t_level is None else own.target_t_level for own in sharing]
        target = targets[target_id]
        assert (target.is_finished, target.priority) == (False, max(own.priority for own in sharing))
        assert target.target_t_level == pytest.approx(max(levels))
    assert sum(not target.is_finished for target in targets.values()) == len(unfinished)


@given(data=st.data(), is_given=st.booleans(), steps=st.lists(step, min_size=2, max_size=6))
@settings(QUICK, max_examples=12)
def test_lists_of_numbers_that_share_are_what_an_oracle_computes(engine, data, is_given, steps):
    empty(engine)
    oracle = ListOracle(is_given)
    for place, (kind, what) in enumerate(steps):
        if kind == "load":
            items = [{**item, "number": str(item["number"])} for item in what]
            for item in items:
                if is_given and int(item["number"]) % MIDDLE == 0:
                    item["factors"] = [str(MIDDLE)]
            new = oracle.load(what)
            report = load_json(engine, *items)
            assert (report.total, report.new, report.existing) == (len(what), new, len(what) - new)
        elif oracle.numbers:
            number = data.draw(st.sampled_from(sorted(oracle.numbers)), label="number")
            own = oracle.numbers[number]
            if own.is_finished:
                continue
            if kind == "find":
                if own.cofactor % what == 0:
                    submit(engine, result(str(number), str(what), curves=1, parametrization=1), key=str(place))
                    oracle.curves[number] += 1
                    oracle.find(own, what)
            else:
                on = number if kind == "run on the number" else own.cofactor
                submit(engine, result(str(on), curves=what, parametrization=1), key=str(place))
                oracle.curves[on] += what
        assert invariants.violations(engine, max_digits=SETTINGS.max_digits) == []
        run_jobs(engine)
        assert invariants.violations(engine, max_digits=SETTINGS.max_digits) == []
        compare(engine, oracle)
