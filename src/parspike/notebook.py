"""What a notebook shows instead of text: a table in HTML, everything from outside escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_table"]


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = ()) -> str:
    """A title, a table, and a line for each note. Every cell is escaped, so none is read as markup.

    >>> html_table("Plan", ["layer"], [["<b>"]])
    '<div><b>Plan</b><table><thead><tr><th>layer</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table></div>'
    """
    first = _row("th", head)
    body = "".join(_row("td", row) for row in rows)
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    table = f"<table><thead>{first}</thead><tbody>{body}</tbody></table>"
    return f"<div><b>{escape(title)}</b>{table}{below}</div>"


def _row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
