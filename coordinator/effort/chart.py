"""A chart of effort as SVG or PNG: for each factor size the chance that all curves missed a factor.

`_layout` computes lines and labels in points; `svg` and `png` draw them. PNG needs Pillow (the extra `plot`).
"""

import io
import math
from html import escape
from typing import NamedTuple

from coordinator.effort.arrays import DIGITS, Array
from coordinator.effort.vector import missed, t_level

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 696, 60, 344
SUPERSAMPLING = 3

INK, FAINT, CURVE, MARK = "#333333", "#dddddd", "#1f6fb2", "#c0392b"


class Line(NamedTuple):
    points: tuple[tuple[float, float], ...]
    color: str
    width: float


class Label(NamedTuple):
    x: float
    y: float  # of the text's middle
    text: str
    color: str
    size: int
    anchor: str  # start, middle or end, as in SVG


def svg(vector: Array, title: str, target: float | None = None) -> str:
    """Return the chart as an SVG document."""
    parts = []
    for item in _layout(vector, title, target):
        if isinstance(item, Line):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in item.points)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{item.color}" stroke-width="{item.width:g}"/>'
            )
        else:
            parts.append(
                f'<text x="{item.x:.1f}" y="{item.y:.1f}" dy="0.35em" fill="{item.color}" font-size="{item.size}"'
                f' text-anchor="{item.anchor}">{escape(item.text)}</text>'
            )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' font-family="sans-serif" role="img" aria-label="{escape(title)}">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


def png(vector: Array, title: str, target: float | None = None) -> bytes:
    """Return the chart as a PNG image. Raises ImportError without Pillow."""
    from PIL import Image, ImageDraw, ImageFont

    scale = SUPERSAMPLING  # Pillow's lines have hard edges: draw large, then shrink
    image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), "white")
    draw = ImageDraw.Draw(image)
    anchors = {"start": "lm", "middle": "mm", "end": "rm"}
    for item in _layout(vector, title, target):
        if isinstance(item, Line):
            points = [(x * scale, y * scale) for x, y in item.points]
            draw.line(points, fill=item.color, width=round(item.width * scale), joint="curve")
        else:
            font = ImageFont.load_default(size=item.size * scale)
            at = (item.x * scale, item.y * scale)
            draw.text(at, item.text, fill=item.color, font=font, anchor=anchors[item.anchor])
    output = io.BytesIO()
    image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(output, format="PNG", optimize=True)
    return output.getvalue()


def _layout(vector: Array, title: str, target: float | None) -> list[Line | Label]:
    first, last = int(DIGITS[0]), int(DIGITS[-1])

    def across(digits: float) -> float:
        return LEFT + (digits - first) / (last - first) * (RIGHT - LEFT)

    def up(chance: float) -> float:
        return BOTTOM - chance * (BOTTOM - TOP)

    items: list[Line | Label] = [Label(LEFT, 24, title, INK, 15, "start")]
    for digits in range(first, last + 1, 10):
        items.append(Line(((across(digits), TOP), (across(digits), BOTTOM)), FAINT, 1))
        items.append(Label(across(digits), BOTTOM + 16, str(digits), INK, 12, "middle"))
    for percent in range(0, 101, 20):
        items.append(Line(((LEFT, up(percent / 100)), (RIGHT, up(percent / 100))), FAINT, 1))
        items.append(Label(LEFT - 8, up(percent / 100), f"{percent} %", INK, 12, "end"))
    items.append(Label((LEFT + RIGHT) / 2, HEIGHT - 16, "digits of a factor, if there is one", INK, 13, "middle"))
    items.append(Label(LEFT, TOP - 14, "chance that it was missed", INK, 13, "start"))
    items.append(Line(((LEFT, up(1 / math.e)), (RIGHT, up(1 / math.e))), MARK, 1))
    items.append(Label(RIGHT, up(1 / math.e) - 9, "1/e", MARK, 12, "end"))
    if target is not None and first <= target <= last:
        items.append(Line(((across(target), TOP), (across(target), BOTTOM)), INK, 1))
        items.append(Label(across(target) + 5, BOTTOM - 32, f"target t{target:.4g}", INK, 13, "start"))
    chances = missed(vector)
    items.append(
        Line(tuple((across(float(d)), up(float(y))) for d, y in zip(DIGITS, chances, strict=True)), CURVE, 2.5)
    )
    reached = t_level(vector)
    if reached > 0:
        items.append(Line(((across(reached), up(1 / math.e)), (across(reached), BOTTOM)), MARK, 1.5))
        # To the right of the line, because the curve comes from the left.
        items.append(Label(across(reached) + 5, BOTTOM - 12, f"t{reached:.2f}", MARK, 13, "start"))
    return items
