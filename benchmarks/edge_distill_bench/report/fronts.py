"""Pareto fronts: points with intervals, a line along the best of each group, and labels that keep apart.

    draw_front([Point("int4", exact(92), Estimate(0.61, 0.54, 0.68)), ...], x=Axis("MB", "low"), y=Axis(...))

Groups compare families of models, such as ours and the peers': each has a front of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edge_distill_bench.report.escape import escape
from edge_distill_bench.report.scales import Axis
from edge_distill_bench.report.svg import (
    Frame,
    Marker,
    element,
    frame,
    marker,
    picture,
    text,
    text_width,
    tip,
)
from edge_distill_bench.statistics import Estimate

__all__ = ["Point", "draw_front", "exact", "pareto"]

_LONGEST = 30  # characters of a label
_LINE = 13.0  # height of a label
_Place = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """A model on a plane of two measures."""

    label: str
    x: Estimate
    y: Estimate
    group: str = ""
    colour: str = "c0"
    """A class of style.css: c0 to c7, ink, muted."""
    marker: Marker = "circle"
    in_front: bool = True
    """False: shown for comparison, no candidate for the front."""


def exact(value: float) -> Estimate:
    """A value without doubt, such as a size."""
    return Estimate(value, value, value)


def pareto(points: Iterable[Point], x: Axis, y: Axis) -> list[Point]:
    """Those that no other of them beats in one measure without losing in the other; from the best x on."""
    sign_x, sign_y = (-1 if axis.better == "high" else 1 for axis in (x, y))
    found: list[Point] = []
    ordered = sorted(points, key=lambda point: (sign_x * point.x.value, sign_y * point.y.value))
    for point in ordered:
        if not found or sign_y * point.y.value < sign_y * found[-1].y.value:
            found.append(point)
    return found


def draw_front(
    points: Sequence[Point],
    *,
    x: Axis,
    y: Axis,
    label: str,
    width: int = 540,
    height: int = 380,
    class_: str = "",
) -> str:
    """One SVG; whiskers are the intervals, lines join the points that nothing in their group beats.

    Raises `ValueError` without points.
    """
    xs = [value for point in points for value in (point.x.low, point.x.value, point.x.high)]
    ys = [value for point in points for value in (point.y.low, point.y.value, point.y.high)]
    area = frame(width, height, x, xs, y, ys)
    groups = list(dict.fromkeys(point.group for point in points))
    members = [[point for point in points if point.group == group and point.in_front] for group in groups]
    stairs = [_stairs(area, pareto(found, x, y), x, y) for found in members]
    lines = [_front_line(corners, dashed=number > 0) for number, corners in enumerate(stairs)]
    shapes = [_whiskers(area, point) for point in points]
    shapes += [
        marker(
            point.marker,
            area.x(point.x.value),
            area.y(point.y.value),
            class_=point.colour,
            title=_described(point, x, y),
        )
        for point in points
    ]
    hint = _better_corner(area, x, y)
    return picture(
        width,
        height,
        [area.markup, hint, *lines, *shapes, *_labels(area, points, stairs)],
        label=label,
        class_=class_,
    )


def _stairs(area: Frame, front: Sequence[Point], x: Axis, y: Axis) -> list[_Place]:
    """The corners: at a budget between two points only the one within it can be had."""
    if not front:
        return []
    places = [(area.x(point.x.value), area.y(point.y.value)) for point in front]
    corners = [(places[0][0], area.bottom if y.better == "high" else area.top), places[0]]
    for before, after in pairwise(places):
        corners += [(after[0], before[1]), after]
    return [*corners, (area.right if x.better == "low" else area.left, places[-1][1])]


def _front_line(corners: Sequence[_Place], *, dashed: bool) -> str:
    if not corners:
        return ""
    line = "M" + "L".join(f"{across:.1f} {up:.1f}" for across, up in corners)
    closed = f"{line}V{corners[0][1]:.1f}Z"
    shade = "" if dashed else element("path", class_="shade", d=closed)
    return shade + element("path", class_="front dashed" if dashed else "front", d=line)


def _whiskers(area: Frame, point: Point) -> str:
    x, y = area.x(point.x.value), area.y(point.y.value)
    parts = []
    if point.y.high > point.y.low:
        parts.append(
            element(
                "path",
                class_=f"whisker {point.colour}",
                d=f"M{x:.1f} {area.y(point.y.low):.1f}V{area.y(point.y.high):.1f}",
            )
        )
    if point.x.high > point.x.low:
        parts.append(
            element(
                "path",
                class_=f"whisker {point.colour}",
                d=f"M{area.x(point.x.low):.1f} {y:.1f}H{area.x(point.x.high):.1f}",
            )
        )
    return "".join(parts)


def _described(point: Point, x: Axis, y: Axis) -> str:
    def said(axis: Axis, estimate: Estimate) -> str:
        interval = f" [{axis.format(estimate.low)}, {axis.format(estimate.high)}]"
        return f"{axis.title}: {axis.format(estimate.value)}" + (
            interval if estimate.high > estimate.low else ""
        )

    return f"{point.label}\n{said(y, point.y)}\n{said(x, point.x)}"


def _better_corner(area: Frame, x: Axis, y: Axis) -> str:
    left, top = x.better == "low", y.better == "high"
    arrow = {(True, True): "↖", (True, False): "↙", (False, True): "↗", (False, False): "↘"}[left, top]
    words = f"{arrow} better" if left else f"better {arrow}"
    place = area.left + 6 if left else area.right - 6
    height = area.top + 12 if top else area.bottom - 8
    return text(place, height, words, class_="hint", text_anchor="start" if left else "end")


# -- labels --------------------------------------------------------------------------------------------------

_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _labels(area: Frame, points: Sequence[Point], stairs: Sequence[Sequence[_Place]]) -> list[str]:
    """Beside their points, each where it covers least of what is there already."""
    taken: list[_Box] = []
    for corners in stairs:
        for (a, b), (c, d) in pairwise(corners):
            taken.append((min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1))
    for point in points:
        x, y = area.x(point.x.value), area.y(point.y.value)
        taken.append((x - 7, y - 7, x + 7, y + 7))
        taken.append((x - 2, area.y(point.y.high), x + 2, area.y(point.y.low)))
        taken.append((area.x(point.x.low), y - 2, area.x(point.x.high), y + 2))
    parts = []
    for point in sorted(points, key=lambda point: point.x.value):
        x, y = area.x(point.x.value), area.y(point.y.value)
        width = text_width(_cut(point.label))
        box = min(_places(x, y, width), key=lambda box: _cost(box, taken, area))
        taken.append((box[0] - 4, box[1], box[2] + 4, box[3]))
        if abs((box[1] + box[3]) / 2 - y) > 24:  # far away: a thin line leads to the point
            edge = box[3] if box[3] < y else box[1]
            near = min(max(x, box[0]), box[2])
            parts.append(element("line", class_="leader", x1=near, y1=edge, x2=x, y2=y))
        # the font may be narrower than assumed: the text stays at its point's side of the box
        sides = {"start": box[0], "middle": (box[0] + box[2]) / 2, "end": box[2]}
        anchor = min(sides, key=lambda side: abs(sides[side] - x))
        content = tip(point.label) + escape(_cut(point.label))
        parts.append(
            element("text", content, x=sides[anchor], y=box[3] - 3, class_="label", text_anchor=anchor)
        )
    return parts


def _cut(label: str) -> str:
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"


def _places(x: float, y: float, width: float) -> list[_Box]:
    """Boxes around a point, the most readable first."""
    half = _LINE / 2
    boxes = []
    for far in (0.0, 14.0, 28.0, 44.0):
        for up in (0.0, -1.0, 1.0):
            middle = y + up * (half + 2 + far)
            if far and not up:
                continue
            boxes.append((x + 10, middle - half, x + 10 + width, middle + half))
            boxes.append((x - 10 - width, middle - half, x - 10, middle + half))
        for middle in (y - 16 - far, y + 16 + far):
            boxes.append((x - width / 2, middle - half, x + width / 2, middle + half))
    return boxes


def _cost(box: _Box, taken: Sequence[_Box], area: Frame) -> float:
    frame_box = (area.left + 2, area.top, area.right + 8, area.bottom - 2)
    inside = _shared(box, frame_box)
    whole = (box[2] - box[0]) * (box[3] - box[1])
    return 10 * (whole - inside) + sum(_shared(box, other) for other in taken)


def _shared(one: _Box, other: _Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(down, 0.0)
