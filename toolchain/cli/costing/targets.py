"""`targets`: what a model can be costed on or lowered to."""

from __future__ import annotations

import shutil
import sys
import textwrap

from toolchain.cli.common import guarded, print_json
from toolchain.cli.costing.options import Json


@guarded
def targets(json: Json = False) -> None:
    """What a model can be costed on (`cost --target`) or lowered to (`lower --target`)."""
    from targets import load_target, target_names
    from targets.lowering import summaries

    costed = [load_target(name) for name in target_names()]
    entries = [{"name": t.name, "kind": t.kind, "summary": t.summary, "use": "cost"} for t in costed]
    entries += [{"name": n, "kind": "graph", "summary": s, "use": "lower"} for n, s in summaries().items()]
    if json:
        print_json({"targets": entries})
        return
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        start = f"{entry['name']:<{width}} {entry['use']:<5} "
        print(_hanging(start, entry["summary"]))


def _hanging(start: str, text: str) -> str:
    """The text behind `start`: wrapped to the terminal, else in one line, as grep wants it."""
    if not sys.stdout.isatty():
        return start + text
    columns = max(shutil.get_terminal_size().columns, len(start) + 20)
    return textwrap.fill(text, columns, initial_indent=start, subsequent_indent=" " * len(start))
