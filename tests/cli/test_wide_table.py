"""Every cell is printed whole, whatever the terminal's width."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from edge_distill.wide_table import print_wide

HEADER = ("part", "measure", "items", "", "[95 %]", "against", "of the first")
ROWS = [
    ("styles", "all styles", "622", "42.4 %", "[39, 46]", "accuracy", "96 % [87, 104]"),
    ("", "instruction", "80", "45.0 %", "[35, 56]", "", "102 % [93, 113]"),
]


def shown(width: int, rows: Sequence[Sequence[str]]) -> list[str]:
    written = io.StringIO()
    print_wide(Console(width=width, file=written), HEADER, rows, names=2, to_the_left=("against",))
    return written.getvalue().splitlines()


@pytest.mark.parametrize("width", [45, 60, 80, 200])
def test_nothing_is_cut(width: int) -> None:
    lines = shown(width, ROWS)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert all(cell in text for row in ROWS for cell in row)
    tables = [line for line in lines if line.endswith("measure") or " measure " in line]
    assert (len(tables) == 1) == (width >= 80)
    for name in ("all styles", "instruction"):
        assert sum(name in line for line in lines) == len(tables)


def test_by_hand() -> None:
    assert [line.rstrip() for line in shown(80, ROWS)][-2:] == [
        "styles  all styles     622  42.4 %  [39, 46]  accuracy   96 % [87, 104]",
        "        instruction     80  45.0 %  [35, 56]            102 % [93, 113]",
    ]


def test_no_rows() -> None:
    assert any("measure" in line for line in shown(80, []))
