"""`eval`: perplexity, KL divergence, top-1 agreement, multiple choice, and tasks of lm-evaluation-harness."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from toolchain.cli.common import guarded, print_json, print_table
from toolchain.system.units import figure

if TYPE_CHECKING:
    from toolchain.evaluate.multiple_choice import ChoiceResult
    from toolchain.evaluate.perplexity import EvalResult


@guarded
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, or a Hugging Face folder (float32).")],
    text: Annotated[Optional[Path], typer.Option(help="UTF-8 text file, .gz of one, or held-out (built in).")] = None,
    choices: Annotated[
        Optional[Path], typer.Option(help="Multiple-choice questions, JSONL with prompt, choices, answer.")
    ] = None,
    task: Annotated[Optional[list[str]], typer.Option(help="Task of lm-evaluation-harness; may be repeated.")] = None,
    task_folder: Annotated[Optional[Path], typer.Option(help="Folder with the YAML files of own tasks.")] = None,
    part: Annotated[Optional[str], typer.Option(help="Fraction of the text, such as 0.5:1.")] = None,
    reference: Annotated[Optional[str], typer.Option(help="Source model, for KL and top-1 agreement.")] = None,
    window: Annotated[int, typer.Option(help="Tokens per window.")] = 256,
    stride: Annotated[Optional[int], typer.Option(help="Tokens between overlapping windows.")] = None,
    limit: Annotated[Optional[int], typer.Option(help="Most windows or questions to score.")] = None,
    activations: Annotated[str, typer.Option(help="int8 (what `run` uses) or float32, for a model folder.")] = "int8",
    emulate: Annotated[
        Optional[str], typer.Option(help="With the arithmetic of an accelerator: rap, attentionlego.")
    ] = None,
    noise: Annotated[
        float, typer.Option(help="Noise of rap's analog sums, in least significant bits per root of rows.")
    ] = 0.0,
    save: Annotated[bool, typer.Option(help="Add the result to the folder's report.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """How good MODEL is: on a text (--text), on questions (--choices), or on tasks of lm-evaluation-harness (--task).

    --text gives the perplexity; with --reference also KL divergence and top-1 agreement.
    """
    from export.contract.errors import InputError

    if sum((text is not None, choices is not None, bool(task))) != 1:
        raise InputError("one of --text, --choices and --task is needed")
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be 1 or more, not {limit}")
    if choices is not None:
        answered = _answer_questions(model, choices, limit, activations, quiet=json)
        if json:
            print_json({"model": model, "choices": str(choices), **answered.to_json()})
            return
        print(f"accuracy             {_percent(answered.accuracy, answered.accuracy_stderr)}")
        print(f"normalized by length {_percent(answered.accuracy_normalized, answered.accuracy_normalized_stderr)}")
        print(f"questions            {answered.questions}")
        return
    if task:
        results = _run_tasks(Path(model), task, task_folder, limit, activations)
        if json:
            print_json({"model": model, "tasks": results})
            return
        rows = [
            (name, key.removesuffix(",none"), figure(value, 4))
            for name, found in results.items()
            for key, value in found.items()
            if isinstance(value, float) and "stderr" not in key
        ]
        print_table("", ("task", "metric", "value"), rows)
        return
    assert text is not None
    result = evaluate_folder(
        Path(model), text, part, reference, window, limit, save and not emulate, quiet=json, activations=activations,
        stride=stride, emulation=(emulate, noise) if emulate else None,
    )  # fmt: skip
    if json:
        print_json({"model": model, "text": str(text), **result.to_json()})
        return
    arithmetic = f", arithmetic of {emulate}" if emulate else ""
    shown = f"{figure(result.perplexity, 4)} +- {figure(result.stderr, 4)}"
    print(f"perplexity {shown}  ({result.tokens} tokens{arithmetic})")
    if math.isinf(result.perplexity):
        print(f"loss       {figure(result.nats_per_token, 4)} nats per token")
    if result.kl is not None:
        print(f"reference  {figure(result.reference_perplexity, 4)}")
        print(f"KL         {figure(result.kl, 5)} +- {figure(result.kl_stderr, 5)} nats per token")
        print(f"top-1      {100 * (result.top1_agreement or 0):.2f} % agreement")


def _percent(share: float, error: float) -> str:
    return f"{100 * share:.1f} % +- {100 * error:.1f}"


def _answer_questions(model: str, path: Path, limit: int | None, activations: str, quiet: bool) -> ChoiceResult:
    from runtime_py.text.generator import context_length, stop_tokens
    from toolchain.calibrate import text as calibration
    from toolchain.evaluate.multiple_choice import evaluate_choices, read_questions
    from toolchain.evaluate.perplexity import open_scorer

    folder = Path(model) if Path(model).is_dir() else _resolved(model)
    questions = read_questions(path)[:limit]
    return evaluate_choices(
        open_scorer(model, activations),
        calibration.load_tokenizer(folder),
        questions,
        min(stop_tokens(folder), default=0),
        context_length(folder),
        quiet,
    )


def _run_tasks(
    folder: Path, tasks: list[str], task_folder: Path | None, limit: int | None, activations: str
) -> dict[str, Any]:
    from export.contract.errors import InputError, NotFiniteError

    if not (folder / "model.onnx").is_file():
        raise InputError(f"{folder}: --task needs a model folder made by `export`")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager

        from toolchain.evaluate.harness import AthenaModel
    except ModuleNotFoundError as error:
        raise InputError(f"this needs the package {error.name}: pip install 'athena-export[lm-eval]'") from None
    manager = TaskManager(include_path=str(task_folder) if task_folder else None)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise InputError(
            f"{unknown[0]}: no such task in lm-evaluation-harness; --task-folder names a folder of own tasks"
        )
    model = AthenaModel(folder, activations)
    try:
        found = lm_eval.simple_evaluate(model, tasks=list(tasks), task_manager=manager, limit=limit)
    except OverflowError:  # the harness exponentiates the mean loss itself
        raise NotFiniteError("the perplexity of a task is infinite, which lm-evaluation-harness cannot hold") from None
    return {name: dict(values) for name, values in (found or {}).get("results", {}).items()}


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
    stride: int | None = None,
    emulation: tuple[str, float] | None = None,
) -> EvalResult:
    """Evaluate and, for a model folder, add the figures to its report."""
    from toolchain.calibrate import text as calibration
    from toolchain.evaluate.perplexity import evaluate as score
    from toolchain.evaluate.perplexity import open_scorer, windows_of
    from toolchain.report import model_report as report

    source = calibration.read_text(text) if str(text) != "held-out" else _held_out_text()
    name = str(folder)
    if emulation is not None:
        from toolchain.evaluate.emulate import EmulatedScorer

        scorer: Any = EmulatedScorer(folder, *emulation)
    else:
        scorer = open_scorer(name, activations)
    tokenizer = calibration.load_tokenizer(folder if folder.is_dir() else _resolved(name))
    windows = windows_of(calibration.slice_text(source, part), tokenizer, window, limit, str(text), stride)
    result = score(scorer, windows, open_scorer(reference) if reference else None, quiet, stride)
    if save and (folder / report.REPORT_JSON).exists():
        command = f"athena-export eval {folder} --text {text}" + (f" --part {part}" if part else "")
        command += (
            f" --window {window}" + (f" --stride {stride}" if stride else "") + (f" --limit {limit}" if limit else "")
        )
        command += f" --reference {reference}" if reference else ""
        command += f" --activations {activations}" if activations != "int8" else ""
        report.add_quality(folder, {**result.to_json(), "text": str(text), "command": command})
    return result


def _held_out_text() -> str:
    """The documentation strings that neither the built-in calibration text nor the demo model's training contains."""
    from toolchain.calibrate.corpus import standard_library_text

    return standard_library_text("held-out")


def _resolved(name: str) -> Path:
    from toolchain.source.checkpoint import resolve

    return resolve(name)
