"""`cost` and `targets`: latency, energy and area from the exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from toolchain.cli.common import guarded, print_json, print_table
from toolchain.units import engineering


@guarded
def cost(
    folder: Annotated[Path, typer.Argument(help="Model folder made by `export`.")],
    target: Annotated[Optional[list[str]], typer.Option(help="Target name or .toml file; repeatable.")] = None,
    phase: Annotated[str, typer.Option(help="prefill or decode.")] = "decode",
    context: Annotated[int, typer.Option(help="Tokens in the context.")] = 1024,
    profile: Annotated[str, typer.Option(help="attentionlego: rtl (as published) or ideal.")] = "rtl",
    save: Annotated[bool, typer.Option(help="Add the result to the folder's report.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Cost of one forward pass: `context` tokens of prefill, or one decode step at that context."""
    from hw_model.estimate import estimate
    from toolchain import report

    names = target or ["rpi5", "attentionlego"]
    reports = estimate(folder, names, phase, context, profile)
    command = f"athena-export cost {folder} " + " ".join(f"--target {n}" for n in names)
    command += f" --phase {phase} --context {context} --profile {profile}"
    if save and (folder / report.REPORT_JSON).exists():
        report.add_costs(folder, [{**r.to_json(), "command": command} for r in reports])
    if json:
        first = reports[0]
        headline = {"latency_s": first.latency_s, "energy_j": first.energy_j, "area_mm2": first.area_mm2}
        one = headline if len(reports) == 1 else {}
        print_json({"phase": phase, "context": context, **one, "targets": [r.to_json() for r in reports]})
        return
    columns = ["kind", "nodes", "MACs", "bytes", "latency", "energy"]
    for r in reports:
        totals = [sum(values) for values in zip(*((k.nodes, k.macs, k.bytes) for k in r.by_kind))]
        figures = [(k.kind, k.nodes, k.macs, k.bytes, k.latency_s, k.energy_j) for k in r.by_kind]
        figures.append(("total", totals[0], totals[1], totals[2], r.latency_s, r.energy_j))
        rows = [
            [kind, str(nodes), f"{macs:,}", f"{size:,}", engineering(latency, "s"), engineering(energy, "J")]
            for kind, nodes, macs, size, latency, energy in figures
        ]
        print_table(f"{r.target}: {r.phase}, context {r.context}", columns, rows)
        area = "-" if r.area_mm2 is None else f"{r.area_mm2:.1f} mm2"
        span = f"{engineering(r.latency_low_s, 's')} to {engineering(r.latency_high_s, 's')}"
        print(f"{r.tokens_per_s:,.1f} tokens/s; latency range {span}; area {area}")
        if r.load_s is not None:
            print(f"loading the weights once: {engineering(r.load_s, 's')}")
        print(f"{r.basis}")
        for note in r.notes:
            print(f"  - {note}")
        print()


@guarded
def targets(
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """What a model can be costed on or lowered to."""
    from targets import load_target, target_names

    loaded = [load_target(name) for name in target_names()]
    lowering = {"portable": "standard ONNX operators plus ai.athena functions; every export is in this form"}
    if json:
        entries = [{"name": t.name, "kind": t.kind, "summary": t.summary, "use": "cost"} for t in loaded]
        entries += [{"name": n, "kind": "graph", "summary": s, "use": "lower"} for n, s in lowering.items()]
        print_json({"targets": entries})
        return
    rows = [[t.name, "cost", t.summary] for t in loaded] + [[n, "lower", s] for n, s in lowering.items()]
    for name, use, summary in rows:
        print(f"{name:<15} {use:<6} {summary}")
