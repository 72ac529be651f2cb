"""Compares the planner's choice of curves with customary ones: `python -m bench.planner` prints the figures.

No curve is run: the model of docs/effort.md gives the price of curves, and the effort vectors give the exact
expectation of found factors under its prior. The planner chooses by the same model, so the figures show the value of
its choices if the model is right, and not whether the model is right.
"""

import heapq
import json
import math
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from bench.planner_chart import ChartCurve, Panel, svg
from coordinator import effort
from coordinator.effort import planning
from coordinator.effort.arrays import Array
from coordinator.effort.planning import Plan, PlanRequest
from models.limits import DEFAULT_B2

SIZES = (95, 120, 150, 180)
LEASES = PlanRequest(least=60, most=3600)
GREEDY = PlanRequest(least=0.001, most=3600)  # always the best curve, even if leases are very short
SAMPLES = 32  # points of each lease for which the chance of a factor is computed
REGISTRY, SMALLEST, LARGEST, LEAST_DONE, SEED = 200, 90, 200, 15, 4
CORES = 16
HOURS = (1, 24, 168)
SECONDS_PER_HOUR = 3600

Choice = Callable[[Array, int, float], Plan | None]  # (effort vector, digits, target) -> what to run next
Order = Callable[[Array, int], float]  # (effort vector, digits) -> the number with the least gets the next lease


def planned(vector: Array, digits: int, target: float) -> Plan | None:
    """The planner, with leases of the length that a server plans."""
    return planning.plan_curves(vector, digits, target, LEASES)


def greedy(vector: Array, digits: int, target: float) -> Plan | None:
    """The planner without a shortest lease."""
    return planning.plan_curves(vector, digits, target, GREEDY)


def ladder(vector: Array, digits: int, target: float) -> Plan | None:
    """The customary way: t20, t25, t30 ... each at its customary B1, up to the target."""
    reached = effort.t_level(vector)
    for level, b1 in planning.CUSTOMARY_B1:
        if level >= 20 and reached < min(level, target):
            return _up_to(vector, digits, min(level, target), b1)
    return None


def by_size(vector: Array, digits: int, target: float) -> Plan | None:
    """B1 by the number's size alone: the customary B1 of the target level for all curves."""
    b1 = next(b1 for level, b1 in planning.CUSTOMARY_B1 if level >= target)
    return _up_to(vector, digits, target, b1) if effort.t_level(vector) < target else None


def _up_to(vector: Array, digits: int, goal: float, b1: int) -> Plan:
    price = planning.seconds_per_curve(b1, DEFAULT_B2, digits)
    needed = effort.curves_to_reach(vector, goal, b1, DEFAULT_B2, planning.PARAMETRIZATION)
    curves = min(needed, max(1, int(LEASES.most / price)))
    return Plan(b1, DEFAULT_B2, planning.PARAMETRIZATION, curves, curves * price)


def most_value(vector: Array, digits: int) -> float:
    """work_type=best."""
    return -planning.value_per_second(vector, digits)


def smallest(_vector: Array, digits: int) -> float:
    """work_type=standard."""
    return digits


def least_done(vector: Array, _digits: int) -> float:
    """work_type=progressive."""
    return effort.t_level(vector)


CHOICES: dict[str, Choice] = {
    "planner": planned,
    "planner, no shortest lease": greedy,
    "ladder": ladder,
    "B1 by size": by_size,
}
POLICIES: dict[str, tuple[Choice, Order]] = {
    "planner, best first": (planned, most_value),
    "planner, smallest first": (planned, smallest),
    "ladder, smallest first": (ladder, smallest),
    "ladder, least done first": (ladder, least_done),
    "B1 by size, smallest first": (by_size, smallest),
}


class SimulatedLease(NamedTuple):
    """A lease on a number with this effort, with the chance of a factor at several points in time."""

    before: Array  # the effort vector
    seconds: Array  # of one core, since the lease began: 0 first, its whole length last
    found: Array  # the chance that a factor has been found by then

    def expected_seconds(self) -> float:
        """The average cost of the lease: it ends when a factor is found."""
        whole = 1 - self.found
        return float(np.sum((whole[1:] + whole[:-1]) / 2 * np.diff(self.seconds)))


def chance_found(start: Array, vectors: Array, digits: int) -> Array:
    """The chance that a factor of a composite number is found between `start` and each of these efforts, one per row.

    The model treats prime factors as independent; m of them are expected at the start and m' after the effort. The
    number has a factor with chance 1 - exp(-m); it has one and all are unfound with chance exp(-(m - m')) (1 -
    exp(-m')). As long as no factor is found, the result grows at the planner's value per second.
    """
    expected = planning.expected_factors(digits)
    at_start = float(effort.missed(start) @ expected)
    left = effort.missed(vectors) @ expected
    return 1 - np.exp(left - at_start) * np.expm1(-left) / math.expm1(-at_start)


def leases(choice: Choice, digits: int, start: Array) -> Iterator[SimulatedLease]:
    """Yield the leases that bring a number from this effort to its target."""
    vector, target = start, effort.target_t_level(digits)
    parts = np.arange(SAMPLES + 1) / SAMPLES
    while plan := choice(vector, digits, target):
        done = plan.curves * effort.curve_effort(plan.b1, plan.b2, plan.parametrization)
        yield SimulatedLease(vector, parts * plan.seconds, chance_found(start, vector + parts[:, None] * done, digits))
        vector = vector + done


def one_number(choice: Choice, digits: int) -> dict[str, float]:
    """For a number without effort: core seconds to the target and to an even chance of a factor, and factors per hour.

    The target is reached without a factor. The rate is that of many such numbers, each of which is worked on until a
    factor is found or the target is reached.
    """
    spent = expected = found = 0.0
    half = math.inf
    for lease in leases(choice, digits, effort.no_effort()):
        if found < 0.5 <= lease.found[-1]:
            half = spent + float(np.interp(0.5, lease.found, lease.seconds))
        spent += float(lease.seconds[-1])
        expected += lease.expected_seconds()
        found = float(lease.found[-1])
    return {"target_s": spent, "half_s": half, "per_hour": found / expected * SECONDS_PER_HOUR}


def registry() -> list[tuple[int, Array]]:
    """The mixed registry: the digits of each number and its initial effort, from t15 up to its target.

    Without initial effort all policies would look the same, because most numbers have a factor found in seconds.
    """
    generator = random.Random(SEED)
    numbers = []
    for _ in range(REGISTRY):
        digits = generator.randint(SMALLEST, LARGEST)
        done = generator.uniform(LEAST_DONE, effort.target_t_level(digits))
        numbers.append((digits, effort.effort_of([effort.curves_of_t_level(done)])))
    return numbers


def registry_way(choice: Choice, order: Order) -> tuple[list[float], list[float]]:
    """(hours, expected numbers with a found factor by then) while all cores work on the registry, up to the last hour.

    Each lease takes its expected time, so the hours are those of a registry that is so large that chance averages out.
    """
    hours, found = [0.0], [0.0]
    queue: list[tuple[float, int, int, SimulatedLease, Iterator[SimulatedLease]]] = []

    def enqueue(number: int, digits: int, remaining: Iterator[SimulatedLease]) -> None:
        if lease := next(remaining, None):
            heapq.heappush(queue, (order(lease.before, digits), digits, number, lease, remaining))

    for number, (digits, start) in enumerate(registry()):
        enqueue(number, digits, leases(choice, digits, start))
    while queue and hours[-1] < HOURS[-1]:
        _, digits, number, lease, remaining = heapq.heappop(queue)
        hours.append(hours[-1] + lease.expected_seconds() / CORES / SECONDS_PER_HOUR)
        found.append(found[-1] + float(lease.found[-1] - lease.found[0]))
        enqueue(number, digits, remaining)
    return hours, found


@cache
def registry_ways() -> dict[str, tuple[list[float], list[float]]]:
    """registry_way of every policy."""
    return {name: registry_way(*policy) for name, policy in POLICIES.items()}


def measure() -> dict[str, Any]:
    """Times and found factors of every choice and policy, and whether the planner is never behind the ladder."""
    numbers = {digits: {name: one_number(choice, digits) for name, choice in CHOICES.items()} for digits in SIZES}
    return {
        "numbers": numbers,
        "registry": {name: {h: float(np.interp(h, *way)) for h in HOURS} for name, way in registry_ways().items()},
        "kept": all(
            each["planner"]["target_s"] <= each["ladder"]["target_s"]
            and each["planner"]["per_hour"] >= each["ladder"]["per_hour"]
            for each in numbers.values()
        ),
    }


def report(measured: dict[str, Any]) -> str:
    """The measurements as two tables."""
    lines = ["One number, one core: to its target with nothing found; to an even chance; factors an hour, many like it"]
    heads = f"{'to target':>12} {'of ladder':>9} {'even':>9} {'an hour':>9} {'of ladder':>9}"
    lines.append(f"  {'digits':>6}  {'curves by':28} {heads}")
    for digits, choices in measured["numbers"].items():
        usual = choices["ladder"]
        for name, one in choices.items():
            lines.append(
                f"  {digits:6}  {name:28} {one['target_s']:10,.0f} s {one['target_s'] / usual['target_s']:9.3f}"
                f" {one['half_s']:7.1f} s {one['per_hour']:9.4g} {one['per_hour'] / usual['per_hour']:9.3f}"
            )
    heading = f"{REGISTRY} numbers of {SMALLEST} to {LARGEST} digits, {CORES} cores: numbers split after"
    lines.append(f"{heading:64}" + "".join(f"{hours:>7} h" for hours in HOURS) + "   an hour, over each of these")
    for name, found in measured["registry"].items():
        rates = "".join(f"{found[hours] / hours:8.3g}" for hours in HOURS)
        lines.append(f"  {name:62}" + "".join(f"{found[hours]:9.1f}" for hours in HOURS) + f"   {rates}")
    return "\n".join(lines)


FIRST_DRAWN_HOUR = 0.01
COLORS = ("#1f6fb2", "#2a9d5c", "#c0392b", "#e08e2b", "#7d5ba6")


def chart(measured: dict[str, Any]) -> str:
    """Both tables as one SVG document."""
    shares = []
    for name, color in zip(("planner", "ladder", "B1 by size"), (COLORS[0], COLORS[2], COLORS[4]), strict=True):
        points = [(d, each[name]["target_s"] / each["ladder"]["target_s"]) for d, each in measured["numbers"].items()]
        shares.append(ChartCurve(name, color, tuple(points)))
    ratios = Panel(
        "One number: time to its target, by the ladder's",
        "digits of the number",
        tuple((d, str(d)) for d in SIZES),
        tuple((share / 100, f"{share} %") for share in range(90, 105, 2)),
        tuple(shares),
    )
    at = np.geomspace(FIRST_DRAWN_HOUR, HOURS[-1], 100)
    ways = []
    for (name, way), color in zip(registry_ways().items(), COLORS, strict=True):
        found = np.interp(at, *way)
        ways.append(
            ChartCurve(name, color, tuple(zip(at.tolist(), found.tolist(), strict=True)), dashed="ladder" in name)
        )
    top_tick = 20 * math.ceil(max(found[-1] for _, found in registry_ways().values()) / 20)
    registered = Panel(
        f"{REGISTRY} numbers of {SMALLEST} to {LARGEST} digits on {CORES} cores: numbers of which a factor is found",
        "hours",
        ((FIRST_DRAWN_HOUR, "0.01"), (0.1, "0.1"), (1.0, "1"), (10.0, "10"), (100.0, "100"), (float(HOURS[-1]), "")),
        tuple((top_tick * k / 5, f"{top_tick * k / 5:g}") for k in range(6)),
        tuple(ways),
        logarithmic=True,
    )
    return svg((ratios, registered), "The planner against the customary ladder")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The figures for a program.")
@click.option("--chart", "target", type=click.Path(dir_okay=False, path_type=Path), help="Draw them into this SVG.")
def simulate(as_json: bool, target: Path | None) -> None:
    """Simulate the planner against the customary ladder and B1 by size; exit 1 if the ladder is better anywhere."""
    measured = measure()
    click.echo(json.dumps(measured) if as_json else report(measured))
    if target:
        target.write_text(chart(measured))
    raise SystemExit(not measured["kept"])


if __name__ == "__main__":
    simulate()
