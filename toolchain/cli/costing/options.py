"""Parameters that the commands of the cost model share, and targets made from them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from export.contract.errors import InputError
from toolchain.settings.costing.machine import MachineSettings

if TYPE_CHECKING:
    from targets import Target

Folder = Annotated[Path, typer.Argument(help="Model folder made by `export`.")]
Page = Annotated[Optional[Path], typer.Option(help="Write a page with pictures to this HTML file.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def opened(names: Sequence[str], asked: MachineSettings) -> list[Target]:
    """Targets with the changes of --set, each where there is such a constant. Raises InputError."""
    from hw_model.estimate import open_target
    from hw_model.sizing.variation import parse_changes
    from targets import CHOICES, TargetError

    changes, found, used = parse_changes(asked.set), [], set[str]()
    for name in names:
        target = open_target(name)
        own = {k: v for k, v in changes.items() if k in target.constants or k in CHOICES.get(target.kind, {})}
        used |= own.keys()
        if own.keys() < changes.keys() and len(names) > 1:
            missing = ", ".join(changes.keys() - own.keys())
            print(f"{target.name}: has no {missing}, stays as it is there", file=sys.stderr)
        try:
            found.append(target.with_changes(own if len(names) > 1 else changes))
        except TargetError as error:
            raise InputError(str(error)) from None
    if unknown := changes.keys() - used:
        raise InputError(f"--set {sorted(unknown)[0]}=: none of the targets has such a constant")
    return found
