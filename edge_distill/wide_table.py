"""A table of many columns on a terminal of any width: nothing is cut, what does not fit stands below."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_wide"]

_GAP = 2  # between columns


def print_wide(
    console: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    names: int = 1,
    to_the_left: Collection[str] = (),
) -> None:
    """Print one table, or several that each begin with the first `names` columns; only headers are wrapped,
    where it takes that.

    Columns stand to the right, but for names and those whose header is in `to_the_left`.
    """
    from rich.table import Table

    columns = list(zip(header, *rows, strict=True))
    widths = [max(1, *map(len, column)) for column in columns]
    if len(_blocks(widths, console.width, names)) > 1:  # then headers are wrapped between their words
        widths = [max(1, *map(len, (*title.split(), *cells))) for title, *cells in columns]
    for number, block in enumerate(_blocks(widths, console.width, names)):
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        for index in block:
            title, width = header[index], widths[index]
            left = index < names or title in to_the_left
            table.add_column(title, justify="left" if left else "right", min_width=width, max_width=width)
        for row in rows:
            table.add_row(*(row[index] for index in block))
        if number:
            console.print()
        console.print(table)


def _blocks(widths: Sequence[int], room: int, names: int) -> list[list[int]]:
    """The columns of each table: as many as fit `room` characters, one beside the names at least."""
    first = list(range(names))
    left = room - sum(widths[:names]) - _GAP * (names - 1)
    blocks, free = [[*first]], left
    for index in range(names, len(widths)):
        needed = widths[index] + _GAP
        if needed > free and len(blocks[-1]) > names:
            blocks.append([*first])
            free = left
        blocks[-1].append(index)
        free -= needed
    return blocks
