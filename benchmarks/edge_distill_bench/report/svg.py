"""Drawings as SVG text: elements, the frame of a chart, markers. Colours come from the page's style by class.

No attribute `style` anywhere, because the page's content security policy forbids it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edge_distill_bench.report.escape import attribute, escape
from edge_distill_bench.report.scales import Axis, Scale, scale_for

__all__ = ["COLOURS", "Frame", "Marker", "element", "frame", "marker", "picture", "text", "text_width", "tip"]

Marker = Literal["circle", "square", "triangle", "diamond"]

COLOURS = 8
"""Classes c0 to c7 in style.css; `ink` and `muted` are the colours of references."""

_CHARACTER = 7.5
"""Mean width of a character in a label, in a wide font."""


def element(name: str, content: str = "", **attributes: object) -> str:
    """`content` is markup; attributes are escaped, their trailing and inner underscores become hyphens."""
    parts = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{attribute(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{parts}>{content}</{name}>"


def _number(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def text(x: float, y: float, content: object, **attributes: object) -> str:
    return element("text", escape(content), x=x, y=y, **attributes)


def text_width(content: str) -> float:
    return _CHARACTER * len(content)


def tip(content: str) -> str:
    """What a browser shows when the pointer rests on the element around it."""
    return element("title", escape(content))


def picture(width: int, height: int, parts: Sequence[str], *, label: str, class_: str = "") -> str:
    return element(
        "svg",
        "".join(parts),
        class_=f"chart {class_}".strip(),
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
    )


@dataclass(frozen=True)
class Frame:
    """The area between two axes."""

    left: float
    top: float
    right: float
    bottom: float
    x: Scale
    y: Scale
    markup: str
    """Grid, axes, numbers and titles."""


def frame(
    width: int,
    height: int,
    x: Axis,
    xs: Sequence[float],
    y: Axis,
    ys: Sequence[float],
    *,
    x_names: Sequence[str] = (),
) -> Frame:
    """Axes around all the values. `x_names` stand at 0, 1, 2... instead of numbers."""
    left, top, right, bottom = 46.0, 26.0, width - 12.0, height - 40.0
    if x_names:
        across = Scale(-0.5, len(x_names) - 0.5, left, right)
        x_ticks = [(float(index), name) for index, name in enumerate(x_names)]
    else:
        across = scale_for(x, xs, left, right)
        x_ticks = [(tick, x.format(tick)) for tick in across.ticks(round((right - left) / 75))]
    up = scale_for(y, ys, bottom, top)
    y_ticks = [(tick, y.format(tick)) for tick in up.ticks(round((bottom - top) / 45))]
    parts = [
        text(0.0, 12.0, y.title, class_="axis-title"),
        text(right, height - 5.0, x.title, class_="axis-title", text_anchor="end"),
    ]
    for value, name in y_ticks:
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=up(value), y2=up(value)))
        parts.append(text(left - 7, up(value) + 3.8, name, class_="tick", text_anchor="end"))
    parts.append(element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    for value, name in x_ticks:
        if not x_names:
            parts.append(
                element("line", class_="axis", x1=across(value), x2=across(value), y1=bottom, y2=bottom + 4)
            )
        parts.append(text(across(value), bottom + 16, name, class_="tick", text_anchor="middle"))
    return Frame(left, top, right, bottom, across, up, "".join(parts))


def marker(shape: Marker, x: float, y: float, *, class_: str, size: float = 5.0, title: str = "") -> str:
    """A point; a ring in the page's colour keeps it apart from lines and other points."""
    content = tip(title) if title else ""
    attributes = {"class_": f"dot {class_}"}
    if shape == "circle":
        return element("circle", content, cx=x, cy=y, r=size, **attributes)
    if shape == "square":
        side = size * 1.8
        return element(
            "rect", content, x=x - side / 2, y=y - side / 2, width=side, height=side, rx=1.5, **attributes
        )
    reach = size * 1.25
    corners = {
        "triangle": ((0, -reach), (reach, reach * 0.8), (-reach, reach * 0.8)),
        "diamond": ((0, -reach), (reach, 0), (0, reach), (-reach, 0)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return element("polygon", content, points=points, **attributes)
