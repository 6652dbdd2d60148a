"""Tables for a terminal, plain and aligned where there is none; and numbers as people read them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Rows = Sequence[Sequence[str]]

NOTHING = "-"


def plain_table(columns: Sequence[str], rows: Rows) -> str:
    """Return an aligned table. A column whose name begins with '>' is aligned to the right."""
    names = [column.lstrip(">") for column in columns]
    widths = [max(len(str(row[i])) for row in [names, *rows]) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        parts = (
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        )
        return "  ".join(parts).rstrip()

    return "\n".join(line(row) for row in [names, *rows])


def rich_table(columns: Sequence[str], rows: Rows, title: str = "") -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", title_style="bold", box=None, header_style="bold cyan")
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return table


_STYLES = {"up": "green", "down": "red", "ejected": "red", "drain": "yellow", "maint": "yellow"}


def print_table(columns: Sequence[str], rows: Rows, title: str = "") -> None:
    """Print a table to standard output, in colour where that is a terminal."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(columns, rows, title))
        return
    if title:
        print(title)
    print(plain_table(columns, rows))


def number(value: Any, digits: int = 0) -> str:
    """Return a number with thousands marked, '-' for none."""
    if value is None or isinstance(value, str) or value != value:
        return NOTHING
    return f"{value:,.{digits}f}"


def milliseconds(value: Any) -> str:
    """Return milliseconds with three digits that matter."""
    if value is None or isinstance(value, str) or value != value:
        return NOTHING
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def percent(share: Any) -> str:
    """Return a share from 0 to 1 as a percentage."""
    return NOTHING if share is None else f"{100 * share:.1f}%"
