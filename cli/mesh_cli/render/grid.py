"""A calm table: no lines, dim headers, indented by two, and columns that give way in a chosen order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

Cell = Text | str
GAP = 2
MIN_WIDTH = 8
"""Below this a cut word tells nothing; then columns that were to keep their width give way as well."""


@dataclass(slots=True)
class Grid:
    """A table. ``right`` names the right-aligned columns by number; ``wide`` those that are cut first when the
    terminal is narrow, the widest first."""

    headers: tuple[str, ...]
    right: tuple[int, ...] = ()
    wide: tuple[int, ...] = ()
    rows: list[tuple[Cell, ...]] = field(default_factory=list)

    def add_row(self, *cells: Cell) -> None:
        """One cell a column."""
        self.rows.append(cells)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        widths = fit(self._natural(), self.wide, options.max_width - GAP * len(self.headers))
        table = Table(box=None, show_header=any(self.headers), header_style="dim", padding=(0, 0, 0, GAP))
        for number, (header, width) in enumerate(zip(self.headers, widths, strict=True)):
            side: Literal["left", "right"] = "right" if number in self.right else "left"
            table.add_column(header, width=width, justify=side, no_wrap=True, overflow="ellipsis")
        for row in self.rows:
            table.add_row(*row)
        yield table

    def _natural(self) -> list[int]:
        lines = [self.headers, *self.rows]
        return [max(cell_len(str(line[n])) for line in lines) for n in range(len(self.headers))]


def fit(widths: Sequence[int], wide: Sequence[int], room: int) -> list[int]:
    """``widths`` cut down to ``room`` together: the widest of the ``wide`` columns first, never below MIN_WIDTH while
    another can give way."""
    fitted = list(widths)
    for columns, least in ((wide, MIN_WIDTH), (range(len(fitted)), MIN_WIDTH), (range(len(fitted)), 1)):
        while sum(fitted) > room and (column := max(columns, key=fitted.__getitem__, default=None)) is not None:
            if fitted[column] <= least:
                break
            fitted[column] -= 1
    return fitted


def grid(*headers: str, right: tuple[int, ...] = (), wide: tuple[int, ...] = ()) -> Grid:
    """An empty table with these columns."""
    return Grid(headers, right, wide)
