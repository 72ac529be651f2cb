"""Charts of several curves each, one below the other, as one SVG document."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, PANEL_HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 696, 56, 280  # of the frame within a panel
INK, FAINT = "#333333", "#dddddd"
LEGEND_STEP = 18


class ChartCurve(NamedTuple):
    name: str
    color: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


class Panel(NamedTuple):
    """The ticks are (position, label) and reach from one end of their axis to the other."""

    title: str
    x_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    curves: tuple[ChartCurve, ...]
    logarithmic: bool = False
    legend: tuple[float, float] = (LEFT + 12, TOP + 14)


def svg(panels: Sequence[Panel], title: str) -> str:
    """The panels, from top to bottom, as an SVG document."""
    height = PANEL_HEIGHT * len(panels)
    body = "\n".join(
        f'<g transform="translate(0,{PANEL_HEIGHT * i})">\n{_draw(panel)}\n</g>' for i, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' font-family="sans-serif" role="img" aria-label="{escape(title)}">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def _draw(panel: Panel) -> str:
    across = _scale(panel.x_ticks, LEFT, RIGHT, panel.logarithmic)
    up = _scale(panel.y_ticks, BOTTOM, TOP, logarithmic=False)
    parts = [_label(LEFT, 28, panel.title, 15, "start")]
    for x, label in panel.x_ticks:
        parts.append(_line([(across(x), TOP), (across(x), BOTTOM)], FAINT, 1))
        parts.append(_label(across(x), BOTTOM + 16, label, 12, "middle"))
    for y, label in panel.y_ticks:
        parts.append(_line([(LEFT, up(y)), (RIGHT, up(y))], FAINT, 1))
        parts.append(_label(LEFT - 8, up(y), label, 12, "end"))
    parts.append(_label((LEFT + RIGHT) / 2, BOTTOM + 38, panel.x_label, 13, "middle"))
    x, y = panel.legend
    for row, curve in enumerate(panel.curves):
        parts.append(_line([(across(at), up(value)) for at, value in curve.points], curve.color, 2, curve.dashed))
        middle = y + row * LEGEND_STEP
        parts.append(_line([(x, middle), (x + 28, middle)], curve.color, 2, curve.dashed))
        parts.append(_label(x + 36, middle, curve.name, 12, "start"))
    return "\n".join(parts)


def _scale(ticks: Sequence[tuple[float, str]], begin: float, end: float, logarithmic: bool) -> Callable[[float], float]:
    """A function from values on the axis to points; it moves values outside the ticks to the nearest end."""
    first, last = ticks[0][0], ticks[-1][0]

    def place(value: float) -> float:
        value = min(max(value, first), last)
        share = math.log(value / first, last / first) if logarithmic else (value - first) / (last - first)
        return begin + share * (end - begin)

    return place


def _line(points: Sequence[tuple[float, float]], color: str, width: float, dashed: bool = False) -> str:
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<polyline points="{at}" fill="none" stroke="{color}" stroke-width="{width:g}"{dashes}/>'


def _label(x: float, y: float, text: str, size: int, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" dy="0.35em" fill="{INK}" font-size="{size}"'
        f' text-anchor="{anchor}">{escape(text)}</text>'
    )
