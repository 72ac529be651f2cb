"""bench/planner.py: the planner against the ladder, and whether what the simulation counts is right."""

import itertools
import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner

from bench import planner
from coordinator import effort
from coordinator.effort import planning


@pytest.mark.parametrize("digits", [95, 120])
def test_the_planner_is_nowhere_behind_the_ladder(digits: int):
    ours, usual = planner.one_number(planner.planned, digits), planner.one_number(planner.ladder, digits)
    assert ours["target_s"] <= usual["target_s"]
    assert ours["per_hour"] >= usual["per_hour"]


def test_the_ladder_is_the_customary_one():
    """So many curves a level as everybody runs, less what the levels below have done of it already."""
    curves: dict[int, int] = {}
    vector = effort.no_effort()
    while plan := planner.ladder(vector, 130, 40):
        curves[plan.b1] = curves.get(plan.b1, 0) + plan.curves
        vector = effort.add_curves(vector, plan.curves, plan.b1, plan.b2, plan.parametrization)
    assert list(curves) == [11_000, 50_000, 250_000, 1_000_000, 3_000_000]
    assert curves[11_000] == pytest.approx(107, abs=1)
    for b1, alone in ((50_000, 261), (250_000, 513), (1_000_000, 1071), (3_000_000, 2753)):
        assert 0.8 * alone < curves[b1] < alone
    assert effort.t_level(vector) == pytest.approx(40, abs=0.01)


def test_b1_by_size_is_one_b1():
    vector, bounds = effort.no_effort(), set()
    while plan := planner.by_size(vector, 120, effort.target_t_level(120)):
        bounds.add(plan.b1)
        assert plan.seconds <= planner.LEASES.most
        vector = effort.add_curves(vector, plan.curves, plan.b1, plan.b2, plan.parametrization)
    assert bounds == {3_000_000}


def test_the_chance_found_goes_from_nothing_to_certainty():
    start = effort.effort_of([(11_000, -1, 1, 107)])
    levels = [start + k * effort.curve_effort(3_000_000, -1, 1) for k in (0, 1, 100, 10_000, 10**7, 10**9)]
    chances = planner.chance_found(start, np.array(levels), 60)
    assert chances[0] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(chances) >= 0)
    assert chances[-1] == pytest.approx(1)


def test_the_chance_found_is_that_of_drawn_numbers():
    """Factors drawn at random, numbers without any passed over: how many have one found?"""
    digits, done = 60, effort.effort_of([(50_000, -1, 1, 100)])
    draws = np.random.default_rng(1).poisson(planning.expected_factors(digits), size=(100_000, effort.DIGITS.size))
    composite = draws[draws.any(axis=1)]
    missed_all = np.exp(-(composite @ done))
    expected = planner.chance_found(effort.no_effort(), done[None, :], digits)[0]
    assert 1 - missed_all.mean() == pytest.approx(expected, abs=0.005)


def test_the_chance_found_grows_at_the_planners_value():
    for digits, level in ((120, 33), (180, 50)):
        vector = effort.effort_of([effort.curves_of_t_level(level)])
        rates = []
        for b1 in effort.B1_LADDER:
            after = vector + effort.curve_effort(b1, -1, 1)
            found = planner.chance_found(vector, after[None, :], digits)[0]
            rates.append(found / planning.seconds_per_curve(b1, -1, digits))
        assert max(rates) == pytest.approx(planning.value_per_second(vector, digits), rel=0.01)


def test_leases_follow_each_other_and_cost_less_where_a_factor_may_have_been_found():
    whole = list(planner.leases(planner.planned, 120, effort.no_effort()))
    assert whole[0].found[0] == pytest.approx(0, abs=1e-12)
    for one, next_one in itertools.pairwise(whole):
        assert next_one.found[0] == pytest.approx(one.found[-1])
        assert np.all(np.diff(one.seconds) > 0)
    for lease in whole:
        seconds = lease.seconds[-1]
        assert (1 - lease.found[-1]) * seconds <= lease.expected_seconds() <= (1 - lease.found[0]) * seconds


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(planner, "REGISTRY", 30)
    monkeypatch.setattr(planner, "SIZES", (95, 120))
    monkeypatch.setattr(planner, "HOURS", (0.5, 2))
    planner.registry_ways.cache_clear()
    yield
    planner.registry_ways.cache_clear()


@pytest.mark.usefixtures("small")
def test_the_registry_is_always_the_same_and_has_work_left():
    assert len(planner.registry()) == 30
    for (digits, vector), (again, same) in zip(planner.registry(), planner.registry(), strict=True):
        assert digits == again
        assert 90 <= digits <= 200
        assert np.array_equal(vector, same)
        assert 15 <= effort.t_level(vector) < effort.target_t_level(digits) + 0.01


@pytest.mark.usefixtures("small")
def test_best_first_finds_more_than_smallest_first():
    ways = planner.registry_ways()
    for hours, found in ways.values():
        assert hours == sorted(hours)
        assert found == sorted(found)
        assert found[-1] < 30
    by_two = {name: float(np.interp(2, *way)) for name, way in ways.items()}
    assert by_two["planner, best first"] == max(by_two.values())
    assert by_two["planner, best first"] > 1.1 * by_two["ladder, smallest first"]


@pytest.mark.usefixtures("small")
def test_the_command_prints_tables_figures_and_a_chart(tmp_path):
    target = tmp_path / "planner.svg"
    shown = CliRunner().invoke(planner.simulate, ["--chart", str(target)])
    assert shown.exit_code == 0, shown.output
    assert "planner, best first" in shown.output
    root = ET.parse(target).getroot()
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "B1 by size, smallest first" in words
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        assert all(math.isfinite(float(x)) for point in line.attrib["points"].split() for x in point.split(","))
    figures = json.loads(CliRunner().invoke(planner.simulate, ["--json"]).output)
    assert figures["kept"] is True
    assert set(figures["numbers"]) == {"95", "120"}


def test_falling_behind_the_ladder_is_not_kept(monkeypatch):
    monkeypatch.setattr(planner, "SIZES", (95,))
    monkeypatch.setattr(planner, "registry_ways", dict)
    monkeypatch.setitem(planner.CHOICES, "planner", planner.ladder)
    assert planner.measure()["kept"], "as good is good enough"
    monkeypatch.setitem(planner.CHOICES, "planner", planner.greedy)
    monkeypatch.setattr(planner, "GREEDY", planning.PlanRequest(60, 3600, b1=11_000_000))
    assert not planner.measure()["kept"]
