"""Line charts of a few series with intervals, and intervals in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_distill_bench.report.scales import Axis, scale_for
from edge_distill_bench.report.svg import Marker, element, frame, marker, picture, text
from edge_distill_bench.statistics import Estimate

__all__ = ["Band", "Series", "draw_curves", "draw_intervals"]


@dataclass(frozen=True)
class Series:
    """One model's line."""

    name: str
    points: tuple[tuple[float, Estimate], ...]
    """By position on the axis; a place without a value is left out."""
    colour: str = "c0"
    marker: Marker = "circle"


@dataclass(frozen=True)
class Band:
    """One row of a drawing of intervals."""

    name: str
    estimate: Estimate
    said: str
    """The numbers as text, at the right end."""
    colour: str = "c0"
    marker: Marker = "circle"


def draw_curves(
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    label: str,
    x_names: Sequence[str] = (),
    width: int = 540,
    height: int = 310,
    class_: str = "",
) -> str:
    """Lines with markers and whiskers; with `x_names` the series stand side by side at each name.

    Raises `ValueError` without points.
    """
    xs = [position for one in series for position, _ in one.points]
    ys = [value for one in series for _, found in one.points for value in (found.low, found.high)]
    area = frame(width, height, x, xs, y, ys, x_names=x_names)
    lines, whiskers, markers = [], [], []
    for number, one in enumerate(series):
        aside = (number - (len(series) - 1) / 2) * min(5.0, 40 / len(series)) if x_names else 0.0
        places = [(area.x(position) + aside, area.y(found.value)) for position, found in one.points]
        if len(places) > 1:
            path = "M" + "L".join(f"{across:.1f} {up:.1f}" for across, up in places)
            lines.append(element("path", class_=f"line {one.colour}", d=path))
        for (across, up), (position, found) in zip(places, one.points, strict=True):
            if found.high > found.low:
                path = f"M{across:.1f} {area.y(found.low):.1f}V{area.y(found.high):.1f}"
                whiskers.append(element("path", class_=f"whisker thin {one.colour}", d=path))
            where = x_names[round(position)] if x_names else x.format(position)
            said = f"{one.name}\n{x.title}: {where}\n{y.title}: {y.format(found.value)}"
            if found.high > found.low:
                said += f" [{y.format(found.low)}, {y.format(found.high)}]"
            markers.append(marker(one.marker, across, up, class_=one.colour, size=3.8, title=said))
    return picture(width, height, [area.markup, *whiskers, *lines, *markers], label=label, class_=class_)


def draw_intervals(
    bands: Sequence[Band],
    axis: Axis,
    *,
    label: str,
    reference: float,
    margin: float | None = None,
    width: int = 540,
    class_: str = "",
) -> str:
    """One row for each interval, its name above it; a line at the reference, a field of `margin` around it."""
    row, top = 38.0, 14.0
    bottom = top + row * len(bands) + 4
    height = round(bottom + 36)
    left, right = 8.0, width - 112.0  # the numbers stand right of it
    low, high = reference - (margin or 0), reference + (margin or 0)
    values = [value for band in bands for value in (band.estimate.low, band.estimate.high)]
    across = scale_for(axis, [*values, low, high], left, right)
    parts = []
    if margin:
        start, end = across(low), across(high)
        parts.append(element("rect", class_="margin", x=start, y=top, width=end - start, height=bottom - top))
    for tick in across.ticks(round((right - left) / 75)):
        parts.append(element("line", class_="grid", x1=across(tick), x2=across(tick), y1=top, y2=bottom))
        parts.append(text(across(tick), bottom + 15, axis.format(tick), class_="tick", text_anchor="middle"))
    parts.append(
        element("line", class_="reference", x1=across(reference), x2=across(reference), y1=top, y2=bottom)
    )
    if axis.title:
        parts.append(text(right, float(height - 3), axis.title, class_="axis-title", text_anchor="end"))
    for number, band in enumerate(bands):
        middle = top + row * number + 25
        found = band.estimate
        path = f"M{across(found.low):.1f} {middle:.1f}H{across(found.high):.1f}"
        parts.append(text(left, middle - 10, band.name, class_="label row"))
        parts.append(text(width, middle + 4, band.said, class_="label number", text_anchor="end"))
        parts.append(element("path", class_=f"whisker wide {band.colour}", d=path))
        parts.append(
            marker(
                band.marker,
                across(found.value),
                middle,
                class_=band.colour,
                title=f"{band.name}: {band.said}",
            )
        )
    return picture(width, height, parts, label=label, class_=class_)
