"""`doctor` and `models`: what this machine has, and which cached models would fit it."""

from __future__ import annotations

from typing import Annotated

import typer

from toolchain.cli.common import guarded, print_json, print_table
from toolchain.system.units import size_text

WIDTHS = (2, 3, 4)  # bits
_Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@guarded
def doctor(json: _Json = False) -> None:
    """What this machine has for athena-export, and what is wrong: instruction sets, memory, caches, packages."""
    from toolchain.machine.findings import findings, print_findings

    found = findings()
    if json:
        print_json({"findings": [one.to_json() for one in found]})
    else:
        print_findings(found)


@guarded
def models(json: _Json = False) -> None:
    """The models in Hugging Face's cache, and whether each would fit this machine at 2, 3 and 4 bits.

    Sizes are reckoned from shapes, with keys and values of up to 4,096 tokens; `export --dry-run` measures what an
    export takes.
    """
    from runtime_py.system.memory import free_memory
    from toolchain.machine.hub import cached_models, hub_folder

    free = free_memory()
    found = list(cached_models())
    if json:
        print_json(
            {
                "folder": str(hub_folder()),
                "free_memory": free,
                "models": [
                    {
                        "name": one.name,
                        "model_type": one.model_type,
                        "refused": one.refused,
                        "parameters": one.sizes and one.sizes.parameters,
                        "stored_bytes": one.sizes and {str(b): one.sizes.stored(b) for b in WIDTHS},
                        "running_bytes": one.sizes and {str(b): one.sizes.running(b) for b in WIDTHS},
                    }
                    for one in found
                ],
            }
        )
        return
    if not found:
        print(f"{hub_folder()} holds no models; `athena-export export NAME` downloads one")
        return
    rows = []
    for one in found:
        if one.sizes is None:
            continue
        figures = [_fit(one.sizes.running(bits), free) for bits in WIDTHS]
        rows.append([one.name, one.model_type or "", f"{one.sizes.parameters / 1e6:,.0f} M", *figures])
    if rows:
        print_table("", ["model", "type", "parameters", *(f"{bits} bits" for bits in WIDTHS)], rows)
    for one in found:
        if one.refused:
            print(f"{one.name}: not exported: {one.refused}")
    left = "" if free is None else f"; {size_text(free)} are free here (!: more than that)"
    print(f"Memory to run, up to 4,096 tokens{left}")


def _fit(needed: int, free: int | None) -> str:
    return size_text(needed) if free is None or needed <= free else f"! {size_text(needed)}"
