"""Tables for the terminal."""

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from pixelmill.tasks.display import printable

__all__ = ["make_table"]


def make_table(head: Sequence[str], rows: Iterable[Sequence[str]], num_text: int = 1) -> Table:
    """A table without rules, whose cells are no markup and no terminal command.

    Args:
        head: titles.
        rows: as many cells each.
        num_text: so many columns are text; the others are numbers, and to the right.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(head):
        table.add_column(title, justify="left" if index < num_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    return table
