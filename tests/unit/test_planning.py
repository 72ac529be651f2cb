"""What to run next: prices, the prior, and the choice of B1 and of how many curves, against brute force."""

import math
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator import effort
from coordinator.effort import B1_LADDER, DIGITS, planning
from coordinator.effort.planning import (
    Plan,
    PlanRequest,
    expected_factors,
    p1_b1,
    plan_curves,
    seconds_per_curve,
    value_per_second,
)
from models.limits import MAX_CURVES

LEASE = PlanRequest(60, 3600)
GREEDY = PlanRequest(0.001, 3600)


def log_floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


runs = st.tuples(st.sampled_from(B1_LADDER), st.sampled_from([-1, 0]), st.just(1), st.integers(0, 100_000))
efforts = st.lists(runs, max_size=4).map(effort.effort_of)
any_digits = st.one_of(st.integers(41, 250), st.integers(41, 50_000))
plan_requests = st.tuples(log_floats(1e-3, 1e5), log_floats(1e-3, 1e7), log_floats(0.01, 100)).map(
    lambda fields: PlanRequest(*fields)
)
bounds = st.tuples(log_floats(100, 1e12).map(int), st.sampled_from([-1, 0, 10**9]))


def at_level(level: float) -> np.ndarray:
    """The effort of a number at this t-level."""
    return effort.effort_of([effort.curves_of_t_level(level)])


def after(vector: np.ndarray, plan: Plan) -> np.ndarray:
    return effort.add_curves(vector, plan.curves, plan.b1, plan.b2, plan.parametrization)


# The formulas of effort.md in plain floats, which is not how the planner computes them.


def found_by(vector: np.ndarray, digits: int, b1: int, curves: float, b2: int = -1) -> float:
    """The number of factors that these curves are expected to find."""
    total = 0.0
    for d, done, p in zip(range(10, 101), vector, effort.success_probability(b1, b2, 1), strict=True):
        if d <= digits // 2:
            total += math.log(d / (d - 1)) * math.exp(-done) * (1 - (1 - float(p)) ** curves)
    return total


def found_per_second(vector: np.ndarray, digits: int, target: float, b1: int, *, seconds: float, b2: int = -1) -> float:
    """The expected factors per second over the shortest lease."""
    price = seconds_per_curve(b1, b2, digits)
    try:
        needed = effort.curves_to_reach(vector, target, b1, b2, 1)
    except ValueError:
        needed = math.inf
    curves = max(1.0, min(needed, seconds / price))
    return found_by(vector, digits, b1, curves, b2) / (curves * price)


@pytest.mark.parametrize(
    ("digits", "microseconds"),
    [(100, 0.8), (160, 1.2), (250, 2.1), (385, 3.8), (600, 10), (1200, 34), (2400, 103)],
)
def test_prices_agree_with_the_table(digits: int, microseconds: float):
    assert seconds_per_curve(1_000_000, 0, digits) == pytest.approx(microseconds, rel=1e-12)
    assert seconds_per_curve(11_000, -1, digits) == pytest.approx(0.011 * microseconds * 2.2, rel=1e-12)


def test_prices_between_the_table_and_beyond_it():
    def stage1(digits: int) -> float:
        return seconds_per_curve(1_000_000, 0, digits)

    assert stage1(126) == pytest.approx(0.8 * 1.26 ** (math.log(1.2 / 0.8) / math.log(1.6)), rel=1e-9)
    slope = math.log(1.2 / 0.8) / math.log(1.6)
    assert stage1(50) == pytest.approx(0.8 * 0.5**slope, rel=1e-9), "and so does the first"
    assert stage1(9600) / stage1(4800) == pytest.approx(103 / 34, rel=1e-9), "the last slope goes on"
    prices = [stage1(digits) for digits in (1, 10, 46, 99, 100, 101, 161, 1000, 2401, 50_000)]
    assert prices == sorted(prices)
    assert prices[0] > 0
    assert math.isfinite(prices[-1])


def test_stage_2_costs_less_beside_a_long_stage_1_and_grows_with_the_root_of_b2():
    for b1 in B1_LADDER:
        stage1, both = seconds_per_curve(b1, 0, 150), seconds_per_curve(b1, -1, 150)
        assert both / stage1 - 1 == pytest.approx(1.2 * (b1 / 11_000) ** -0.12, rel=1e-9)
        given = seconds_per_curve(b1, 4 * effort.default_b2(b1), 150)
        assert given - stage1 == pytest.approx(2 * (both - stage1), rel=1e-6)


def test_a_b2_up_to_b1_is_no_stage_2():
    for b2 in (1, 49_999, 50_000):
        assert seconds_per_curve(50_000, b2, 150) == seconds_per_curve(50_000, 0, 150)
    assert seconds_per_curve(50_000, 50_001, 150) > seconds_per_curve(50_000, 0, 150)


@pytest.mark.parametrize(("digits", "largest"), [(46, 23), (47, 23), (95, 47), (150, 75), (200, 100), (50_000, 100)])
def test_the_prior_ends_at_half_the_digits(digits: int, largest: int):
    expected = expected_factors(digits)
    assert expected.shape == DIGITS.shape
    assert np.all((expected > 0) == (largest >= DIGITS))
    # log(d / (d-1)) from 10 on adds up to log(largest / 9): 1.0 in every factor of e, as for random integers.
    assert expected.sum() == pytest.approx(math.log(largest / 9), rel=1e-12)


def test_nothing_is_expected_of_a_number_too_short_for_a_factor_in_range():
    assert not expected_factors(19).any()
    assert value_per_second(effort.no_effort(), 19) == 0


def test_shared_arrays_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        expected_factors(150)[0] = 1


@pytest.mark.parametrize("digits", [95, 120, 150])
def test_b1_rises_with_the_effort(digits: int):
    vector, walked = effort.no_effort(), []
    target = effort.target_t_level(digits)
    while plan := plan_curves(vector, digits, target, GREEDY):
        walked.append(plan.b1)
        vector = after(vector, plan)
    assert walked == sorted(walked)
    steps = list(dict.fromkeys(walked))
    assert steps == list(B1_LADDER[: len(steps)]), "from the first, and none passed over"
    assert len(steps) >= 5
    assert target <= effort.t_level(vector) < target + 0.3


def test_a_lease_of_some_length_passes_over_the_smallest_curves():
    first = plan_curves(effort.no_effort(), 150, 46.15, LEASE)
    assert first is not None
    assert first.b1 > 2_000
    assert first.seconds >= LEASE.least - seconds_per_curve(first.b1, -1, 150)


CASES = [
    (digits, share, least, b2)
    for digits in (95, 120, 150, 180, 400)
    for share in (0.0, 0.3, 0.7, 0.95)
    for least in (0.001, 60.0, 3600.0)
    for b2 in (-1, 0)
]


@pytest.mark.parametrize(("digits", "share", "least", "b2"), CASES)
def test_no_other_b1_is_better_over_the_same_seconds(digits: int, share: float, least: float, b2: int):
    target = effort.target_t_level(digits)
    vector = at_level(share * target)
    plan = plan_curves(vector, digits, target, PlanRequest(least, 7200, b2=b2))
    assert plan is not None
    worth = {b1: found_per_second(vector, digits, target, b1, seconds=least, b2=b2) for b1 in B1_LADDER}
    assert worth[plan.b1] >= max(worth.values()) * (1 - 1e-9)


def test_a_plan_ends_where_the_next_curve_of_another_b1_is_better():
    """Compared with a search that adds one curve at a time."""
    for share in (0.0, 0.4, 0.6, 0.8):
        vector = at_level(share * 35)
        plan = plan_curves(vector, 114, 35, PlanRequest(0.001, 1e6))
        assert plan is not None
        step = effort.curve_effort(plan.b1, -1, 1)

        def best_after(curves: int) -> int:
            done = vector + curves * step  # noqa: B023
            return max(B1_LADDER, key=lambda b1: found_by(done, 114, b1, 1) / seconds_per_curve(b1, -1, 114))

        needed = effort.curves_to_reach(vector, 35, plan.b1, -1, 1)
        curves = 1
        while curves < needed and best_after(curves + 1) <= plan.b1:
            curves += 1
        assert plan.curves == curves


@settings(deadline=None, max_examples=300)
@given(efforts, any_digits, st.floats(10, 85), plan_requests)
def test_a_plan_fits_the_request_and_the_target(vector, digits, target, request_):
    before = vector.copy()
    plan = plan_curves(vector, digits, target, request_)
    assert np.array_equal(vector, before)
    assert (plan is None) == (effort.t_level(vector) >= target)
    if plan is None:
        return
    assert plan.b1 in B1_LADDER
    assert (plan.b2, plan.parametrization) == (-1, 1)
    assert plan.seconds == pytest.approx(plan.curves * seconds_per_curve(plan.b1, -1, digits))
    assert 1 <= plan.curves <= MAX_CURVES
    assert plan.curves == 1 or plan.seconds <= request_.most * request_.speed * (1 + 1e-9)
    try:
        needed = effort.curves_to_reach(vector, target, plan.b1, -1, 1)
    except ValueError:
        return
    assert plan.curves <= needed


@settings(deadline=None, max_examples=100)
@given(efforts, any_digits, st.floats(10, 85), plan_requests, bounds)
def test_a_requested_b1_is_used(vector, digits, target, request_, asked):
    b1, b2 = asked
    plan = plan_curves(vector, digits, target, request_._replace(b1=b1, b2=b2))
    if plan is None:
        assert effort.t_level(vector) >= target
        return
    assert (plan.b1, plan.b2) == (b1, b2)
    assert plan.curves == 1 or plan.seconds <= request_.most * request_.speed * (1 + 1e-9)
    effort.add_curves(vector, plan.curves, plan.b1, plan.b2, plan.parametrization)


def test_a_requested_b1_that_cannot_reach_the_target_gets_the_requested_time():
    with pytest.raises(ValueError, match="take a larger B1"):
        effort.curves_to_reach(effort.no_effort(), 80, 1_000, -1, 1)
    plan = plan_curves(effort.no_effort(), 260, 80, PlanRequest(60, 3600, b1=1_000))
    assert plan is not None
    assert plan.b1 == 1_000
    assert 3600 - plan.seconds / plan.curves < plan.seconds <= 3600
    endless = plan_curves(effort.no_effort(), 260, 80, PlanRequest(60, 1e12, b1=100))
    assert endless is not None
    assert endless.curves == MAX_CURVES, "what an effort vector can take"


def test_a_requested_b1_stops_at_the_target():
    plan = plan_curves(effort.no_effort(), 95, 20, PlanRequest(60, 1e6, b1=11_000))
    assert plan is not None
    assert (plan.b1, plan.curves) == (11_000, effort.curves_to_reach(effort.no_effort(), 20, 11_000, -1, 1))


def test_stage_1_only():
    vector = at_level(30)
    plan = plan_curves(vector, 150, 46.15, LEASE._replace(b2=0))
    both = plan_curves(vector, 150, 46.15, LEASE)
    assert plan is not None
    assert both is not None
    assert plan.b2 == 0
    assert plan.seconds == pytest.approx(plan.curves * plan.b1 * 1e-6 * seconds_per_curve(1_000_000, 0, 150))
    assert plan.b1 >= both.b1
    assert plan.seconds > both.seconds, "without a stage 2 it takes longer until a larger B1 is better"


def test_a_faster_client_gets_more_for_the_same_time():
    slow = plan_curves(at_level(40), 180, 55, PlanRequest(60, 3600, speed=0.5))
    fast = plan_curves(at_level(40), 180, 55, PlanRequest(60, 3600, speed=4.0))
    assert slow is not None
    assert fast is not None
    assert slow.b1 == fast.b1
    assert fast.curves == pytest.approx(8 * slow.curves, rel=0.05)
    assert slow.seconds <= 1800
    assert fast.seconds <= 4 * 3600
    for level in (0.0, 20.0, 40.0):
        same = plan_curves(at_level(level), 180, 55, PlanRequest(600, 36_000))
        assert plan_curves(at_level(level), 180, 55, PlanRequest(60, 3600, speed=10.0)) == same


def test_at_the_target_there_is_no_plan():
    vector = effort.effort_of([(11_000, -1, 1, 107)])
    reached = effort.t_level(vector)
    assert plan_curves(vector, 95, reached, LEASE) is None
    more = plan_curves(vector, 95, reached + 0.01, LEASE)
    assert more is not None
    assert effort.t_level(after(vector, more)) >= reached + 0.01


@settings(deadline=None, max_examples=150)
@given(efforts, st.integers(41, 3000), runs)
@example(effort.effort_of([(11_000_000, -1, 1, 205), (2_900_000_000, 0, 1, 1475)]), 41, (43_000_000, -1, 1, 95))
def test_value_falls_as_work_is_done(vector, digits, run):
    before = value_per_second(vector, digits)
    done = value_per_second(vector + effort.effort_of([run]), digits)
    assert 0 <= done <= before * (1 + 1e-9)
    assert math.isfinite(before)


def test_value_depends_on_size_and_effort():
    fresh, worked = effort.no_effort(), at_level(28)
    assert value_per_second(fresh, 95) > 1_000 * value_per_second(worked, 95)
    assert value_per_second(fresh, 95) > value_per_second(fresh, 400), "the same chance for a higher price"
    assert value_per_second(worked, 400) < value_per_second(worked, 95)
    # Being composite says something: a short number of which little is left must have what is left.
    nearly_done = value_per_second(at_level(22), 46)
    assert nearly_done > 3 * found_per_second(at_level(22), 46, 85, 50_000, seconds=0)


def test_the_value_is_the_best_of_the_ladder():
    for digits, level in ((95, 0), (120, 25), (180, 45)):
        vector = at_level(level)
        left = sum(math.log(d / (d - 1)) * math.exp(-vector[d - 10]) for d in range(10, digits // 2 + 1))
        best = max(found_by(vector, digits, b1, 1) / seconds_per_curve(b1, -1, digits) for b1 in B1_LADDER)
        assert value_per_second(vector, digits) == pytest.approx(best / (1 - math.exp(-left)), rel=1e-9)


@pytest.mark.parametrize(
    ("target", "b1"),
    [
        (10, 11_000),
        (15, 11_000),
        (15.1, 50_000),
        (20, 50_000),
        (30, 1_000_000),
        (46.15, 110_000_000),
        (55, 260_000_000),
        (75, 25_000_000_000),
        (85, 25_000_000_000),
    ],
)
def test_p1_goes_one_step_further_than_the_customary_b1(target: float, b1: int):
    assert p1_b1(target) == b1


def test_customary_b1_rises_in_steps_of_five_digits():
    levels, bounds = zip(*planning.CUSTOMARY_B1, strict=True)
    assert levels == tuple(range(15, 81, 5))
    assert list(bounds) == sorted(set(bounds))


@pytest.mark.parametrize("digits", [46, 50_000])
def test_very_short_and_very_long_numbers(digits: int):
    target = effort.target_t_level(digits)
    vector = effort.no_effort()
    plan = plan_curves(vector, digits, target, LEASE)
    assert plan is not None
    assert plan.curves >= 1
    assert plan.curves == 1 or plan.seconds <= LEASE.most
    assert 0 < value_per_second(vector, digits) < 1e4
    done = after(vector, plan)
    assert effort.t_level(done) > 0
    assert value_per_second(done, digits) < value_per_second(vector, digits)


def test_a_number_without_expected_factors_gets_the_cheapest_way_to_its_target():
    """With a target set by hand, beyond half the digits: curves would have found every possible factor before."""
    vector = effort.effort_of([(11_000_000, -1, 1, 10**9)])
    assert value_per_second(vector, 60) == 0
    plan = plan_curves(vector, 60, 75, LEASE)
    assert plan is not None
    prices = {}
    for b1 in B1_LADDER[8:]:
        needed = effort.curves_to_reach(vector, 75, b1, -1, 1)
        prices[b1] = needed * seconds_per_curve(b1, -1, 60)
    assert prices[plan.b1] == min(prices.values())


def test_a_plan_takes_less_than_a_millisecond():
    cases = [(at_level(level), digits) for digits in (95, 150, 200) for level in (5.0, 15.0, 25.0)]
    for vector, digits in cases:
        plan_curves(vector, digits, effort.target_t_level(digits), LEASE)
    # Processor time, the best of several: the machine may be busy with something else.
    best = math.inf
    for _ in range(10):
        started = time.thread_time()
        for vector, digits in cases * 2:
            plan_curves(vector, digits, effort.target_t_level(digits), LEASE)
        best = min(best, (time.thread_time() - started) / (2 * len(cases)))
    assert best < 1e-3
