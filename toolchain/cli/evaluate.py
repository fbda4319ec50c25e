"""`eval`: perplexity, KL divergence and top-1 agreement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from toolchain.cli.common import guarded, print_json

if TYPE_CHECKING:
    from toolchain.evaluate import EvalResult


@guarded
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, or a Hugging Face folder (float32).")],
    text: Annotated[Path, typer.Option(help="UTF-8 text file, .gz of one, or held-out (built in).")],
    part: Annotated[Optional[str], typer.Option(help="Fraction of the text, such as 0.5:1.")] = None,
    reference: Annotated[Optional[str], typer.Option(help="Source model, for KL and top-1 agreement.")] = None,
    window: Annotated[int, typer.Option(help="Tokens per window.")] = 256,
    limit: Annotated[Optional[int], typer.Option(help="Most windows to score.")] = None,
    activations: Annotated[str, typer.Option(help="int8 (what `run` uses) or float32, for a model folder.")] = "int8",
    save: Annotated[bool, typer.Option(help="Add the result to the folder's report.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Perplexity of MODEL on a text; with --reference also KL divergence and top-1 agreement."""
    result = evaluate_folder(
        Path(model), text, part, reference, window, limit, save, quiet=json, activations=activations
    )
    if json:
        print_json({"model": model, "text": str(text), **result.to_json()})
        return
    print(f"perplexity {result.perplexity:.4f} +- {result.stderr:.4f}  ({result.tokens} tokens)")
    if result.kl is not None:
        print(f"reference  {result.reference_perplexity:.4f}")
        print(f"KL         {result.kl:.5f} +- {result.kl_stderr:.5f} nats per token")
        print(f"top-1      {100 * (result.top1_agreement or 0):.2f} % agreement")


def evaluate_folder(
    folder: Path,
    text: Path,
    part: str | None,
    reference: str | None,
    window: int,
    limit: int | None,
    save: bool,
    quiet: bool,
    activations: str = "int8",
) -> EvalResult:
    """Evaluate and, for a model folder, add the figures to its report."""
    from export.errors import InputError
    from toolchain import calibration, report
    from toolchain.evaluate import evaluate as score
    from toolchain.evaluate import open_scorer, windows_of

    if limit is not None and limit < 1:
        raise InputError(f"--limit must be 1 or more, not {limit}")
    source = calibration.read_text(text) if str(text) != "held-out" else _held_out_text()
    name = str(folder)
    scorer = open_scorer(name, activations)
    tokenizer = calibration.load_tokenizer(folder if folder.is_dir() else _resolved(name))
    windows = windows_of(calibration.slice_text(source, part), tokenizer, window, limit, str(text))
    result = score(scorer, windows, open_scorer(reference) if reference else None, quiet)
    if save and (folder / report.REPORT_JSON).exists():
        command = f"athena-export eval {folder} --text {text}" + (f" --part {part}" if part else "")
        command += f" --window {window}" + (f" --limit {limit}" if limit else "")
        command += f" --reference {reference}" if reference else ""
        command += f" --activations {activations}" if activations != "int8" else ""
        report.add_quality(folder, {**result.to_json(), "text": str(text), "command": command})
    return result


def _held_out_text() -> str:
    """The documentation strings that neither the built-in calibration text nor the demo model's training contains."""
    from toolchain.corpus import standard_library_text

    return standard_library_text("held-out")


def _resolved(name: str) -> Path:
    from toolchain.source import resolve

    return resolve(name)
