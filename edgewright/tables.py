"""Tables as the terminal shows them: how columns are declared, and pairs of a name and a value.

What must not live here: what any table says (`render.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import RenderableType
from rich.padding import Padding, PaddingDimensions
from rich.table import Table

from edgewright.streams import plain


def table(*columns: str) -> Table:
    """Columns by name; one that starts with > is aligned right, one that starts with < or > is never wrapped.

    The others fold where the terminal is narrow: no text is cut.
    """
    made = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1, 0, 0))
    for name in columns:
        side: Literal["left", "right"] = "right" if name.startswith(">") else "left"
        whole = name.startswith(("<", ">"))
        made.add_column(name.lstrip("<>"), justify=side, no_wrap=whole, overflow="ellipsis" if whole else "fold")
    return made


def pairs(rows: Sequence[tuple[str, str]]) -> Table:
    """A name and its value on each line; those without a value are left out."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        if not value:
            continue
        made.add_row(plain(name, lines=False), plain(value, lines=False))
    return made


def padded(what: RenderableType, pad: PaddingDimensions) -> Padding:
    """With empty lines and columns around it."""
    return Padding(what, pad, expand=False)
