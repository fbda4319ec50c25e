"""Self-contained pages of `cost --page`, `sweep --page` and `compare --page`: pictures and one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from export.files.access import write_bytes

_TEMPLATE = Path(__file__).with_name("cost_page.html.jinja")


def write_page(
    path: Path, title: str, command: str, pictures: Sequence[tuple[str, str | None]], columns: Sequence[str],
    rows: Sequence[Sequence[str]], notes: Sequence[str] = (),
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = (),
) -> None:  # fmt: skip
    """Write the page atomically. Pictures are SVG text, or None where there is nothing to show.

    tables: more of them, each with heading, columns and rows.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title, command=command, columns=columns, rows=rows, notes=notes, tables=tables,
        pictures=[(heading, Markup(picture) if picture else None) for heading, picture in pictures],
    )  # fmt: skip
    write_bytes(path, text.encode())
