"""`shrink`: fewer layers, heads and channels, or matrices of low rank, as a Hugging Face folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from export.files.access import expanded
from export.files.lock import locked
from toolchain.cli.common import guarded, print_json, print_table
from toolchain.cli.signature import with_options
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.shrinking.shrink import SEARCH, ShrinkSettings
from toolchain.system.units import engineering, figure, size_text

if TYPE_CHECKING:
    from toolchain.shrink.run import ShrinkRun

TEXT = CalibrationChoice()
_DISAPPOINTING = 0.5  # nats a token: perplexity two thirds higher
EvalText = Annotated[
    str, typer.Option(help="Measure quality on this text, or on held-out (built in).", rich_help_panel="Report")
]
EvalWindows = Annotated[int, typer.Option(help="Windows of 256 tokens of it.", min=1, rich_help_panel="Report")]


@guarded
@with_options
def shrink(
    model: Annotated[str, typer.Argument(help="Model folder, GGUF file or Hugging Face name.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    settings: ShrinkSettings,
    text: CalibrationChoice = TEXT,
    eval_text: EvalText = "held-out",
    eval_windows: EvalWindows = 8,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say sizes, predicted speed and time; write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what exists, restart what was stopped.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Make MODEL smaller: OUT is a Hugging Face folder of floats, which `export` takes. A stopped run goes on."""
    from export.files.replace import output_folder, recover
    from toolchain.shrink.report import HELD_OUT, Judge
    from toolchain.shrink.run import ShrinkRun

    named = [model, text.source, *([eval_text] if eval_text != HELD_OUT else [])]
    inputs = [path for path in map(expanded, named) if path.exists()]
    place = output_folder(output, force, inputs)
    judge = Judge(eval_text, limit=eval_windows)
    if eval_text != HELD_OUT:
        judge.read()  # what would be refused at the end is refused before the work
    run = ShrinkRun(model, settings, text, quiet=json)
    if dry_run:
        _predict(run, json)
        return
    work = output_folder(place.with_name(f"{place.name}.partial"), True, inputs)
    with locked(place):
        recover(place)
        report = run.finish(work, place, judge, restart=force, force=force)
    if json:
        print_json({"output": str(output), **report})
    else:
        _summary(output, report)


def _predict(run: ShrinkRun, json: bool) -> None:
    from toolchain.shrink.predict import predict

    found = predict(run)
    if json:
        print_json(found)
        return
    _print_sizes(found)
    print(f"output  {size_text(found['output_bytes'])} of {found['dtype']}")
    print(f"time    about {found['seconds'] / 60:.1f} min")
    for line in found["notes"]:
        print(line)


def _summary(output: Path, report: dict[str, Any]) -> None:
    _print_sizes(report)
    q = report["quality"]
    print(
        f"perplexity {figure(q['reference_perplexity'], 3)} before, {figure(q['perplexity'], 3)} after; "
        f"KL {figure(q['kl'], 4)} ({q['tokens']} tokens of {q['text']})"
    )
    if q["kl"] > _DISAPPOINTING:
        print(f"warning: {_what_helps(report['settings'])}", file=sys.stderr)
    print(f"{output}: quantize it with `athena-export export {output} -o ...`; report: {output / 'shrink.json'}")


def _what_helps(settings: Mapping[str, Any]) -> str:
    """For a model that has moved far from its source."""
    ways = ["a larger --keep"]
    if settings["by"] != SEARCH:
        fits = ShrinkSettings.fits(settings["by"], settings["healing"]["reconstruct"])
        ways += [f"--by {SEARCH}"] if fits else ["--reconstruct", f"--by {SEARCH}"]
    ways.append("more --heal-steps" if settings["healing"]["heal_steps"] else "--heal-steps 200")
    return f"answers will differ much from the source's; {', '.join(ways[:-1])} or {ways[-1]} help"


def _print_sizes(report: dict[str, Any]) -> None:
    rows = []
    labels = {"layers": "layers", "heads": "heads", "kv_heads": "key-value heads", "feed_forward": "channels"}
    for name, label in labels.items():
        rows.append((label, *(str(report["sizes"][when][name]) for when in ("before", "after"))))
    for key, label in (("parameters", "parameters"), ("linear_weights", "in linear layers of blocks")):
        before, after = report[key]["before"], report[key]["after"]
        rows.append((label, f"{before:,}", f"{after:,} ({100 * after / before:.1f} %)"))
    cost = report["cost"]
    for key, unit, label in (("latency_s", "s", "time"), ("energy_j", "J", "energy")):
        priced = [engineering(cost[when][key], unit) if when in cost else "-" for when in ("before", "after")]
        if priced != ["-", "-"]:
            rows.append((f"{label} of a token on {cost['target']}, modelled at {cost['bits']} bits", *priced))
    print_table("", ("", "before", "after"), rows)
