"""`eval`: perplexity, KL divergence, top-1 agreement, multiple choice, and tasks of lm-evaluation-harness."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from export.contract.errors import InputError
from toolchain.cli.common import guarded, print_json, print_table
from toolchain.cli.signature import with_options
from toolchain.settings.evaluation import EvaluationSettings
from toolchain.settings.execution import FLOATS, FULL_WIDTH, INT8, NO_ADAPTER, Adapted, Arithmetic, KeyValueCache, Width
from toolchain.system.units import figure

if TYPE_CHECKING:
    from targets import Target
    from toolchain.evaluate.multiple_choice import ChoiceResult
    from toolchain.evaluate.perplexity import EvalResult


@guarded
@with_options
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, or a Hugging Face folder or GGUF file (float32).")],
    asked: EvaluationSettings,
    arithmetic: Arithmetic = INT8,
    cached: KeyValueCache = FLOATS,
    width: Width = FULL_WIDTH,
    adapted: Adapted = NO_ADAPTER,
    save: Annotated[bool, typer.Option(help="Add the result to the folder's report.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """How good MODEL is: on a text (--text), on questions (--choices), or on tasks of lm-evaluation-harness (--task).

    --text gives the perplexity; with --reference also KL divergence and top-1 agreement.
    """
    adapter = adapted.adapter
    if adapter and (asked.task or asked.emulate):
        raise InputError("--adapter goes with --text and --choices, on the runtime's own arithmetic")
    bits = cached.cache_bits
    if bits != 16 and asked.emulate:
        raise InputError("--cache-bits goes with the runtime's own arithmetic, not with --emulate")
    read = width.bits
    if read is not None and asked.emulate:
        raise InputError("--bits goes with the runtime's own arithmetic, not with --emulate")
    if asked.choices is not None:
        answered = _answer_questions(
            model, asked.choices, asked.limit, arithmetic.activations, json, adapter, bits, read
        )
        if json:
            print_json({"model": model, "choices": str(asked.choices), **answered.to_json()})
            return
        print(f"accuracy             {_percent(answered.accuracy, answered.accuracy_stderr)}")
        print(f"normalized by length {_percent(answered.accuracy_normalized, answered.accuracy_normalized_stderr)}")
        print(f"questions            {answered.questions}")
        return
    if asked.task:
        results = _run_tasks(
            Path(model), list(asked.task), asked.task_folder, asked.limit, arithmetic.activations, bits, read
        )
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
    assert asked.text is not None
    emulation = None
    if asked.emulate:
        from runtime_py.text.encoder import is_encoder
        from toolchain.evaluate.emulate import emulated_target

        emulation = emulated_target(asked.emulate, asked.constants), asked.noise
        if (Path(model) / "model.onnx").is_file() and is_encoder(Path(model)):
            _compare_vectors(Path(model), asked, *emulation, json)
            return
    result = evaluate_folder(
        Path(model), asked.text, asked.part, asked.reference, asked.window, asked.limit,
        save and not emulation and not adapter,
        quiet=json, activations=arithmetic.activations, stride=asked.stride, emulation=emulation, adapter=adapter,
        cache_bits=bits, bits=read,
    )  # fmt: skip
    if emulation and save and result.kl is not None:
        _keep_emulated(Path(model), asked, emulation[0], result.kl)
    if json:
        print_json({"model": model, "text": str(asked.text), **result.to_json()})
        return
    emulated = f", arithmetic of {asked.emulate}" if asked.emulate else ""
    shown = f"{figure(result.perplexity, 4)} +- {figure(result.stderr, 4)}"
    print(f"perplexity {shown}  ({result.tokens} tokens{emulated})")
    if math.isinf(result.perplexity):
        print(f"loss       {figure(result.nats_per_token, 4)} nats per token")
    if result.kl is not None:
        print(f"reference  {figure(result.reference_perplexity, 4)}")
        print(f"KL         {figure(result.kl, 5)} +- {figure(result.kl_stderr, 5)} nats per token")
        print(f"top-1      {100 * (result.top1_agreement or 0):.2f} % agreement")


def _keep_emulated(folder: Path, asked: EvaluationSettings, target: Target, kl: float) -> None:
    """In the folder's report: what the variants of a sweep lose."""
    from toolchain.report import model_report
    from toolchain.report.emulated import add_emulated

    if (folder / model_report.REPORT_JSON).exists():
        words = ["athena-export", "eval", str(folder), "--text", str(asked.text), "--reference", str(asked.reference)]
        words += ["--emulate", str(asked.emulate), "--noise", f"{asked.noise:g}"]
        command = shlex.join([*words, *(word for one in asked.constants for word in ("--set", one))])
        add_emulated(folder, target, asked.noise, kl, command)


def _compare_vectors(folder: Path, asked: EvaluationSettings, target: Target, noise: float, json: bool) -> None:
    from toolchain.calibrate.text import read_text, slice_text
    from toolchain.evaluate.similarity import compare_encoder

    text = _held_out_text() if str(asked.text) == "held-out" else read_text(asked.text)  # type: ignore[arg-type]
    found = compare_encoder(folder, slice_text(text, asked.part), asked.limit, target, noise)
    if json:
        print_json({"model": str(folder), "text": str(asked.text), "emulated": target.name, **found.to_json()})
        return
    print(f"cosine     {found.mean:.5f} +- {found.stderr:.5f}  ({found.texts} texts, arithmetic of {target.name})")
    print(f"lowest     {found.lowest:.5f}")


def _percent(share: float, error: float) -> str:
    return f"{100 * share:.1f} % +- {100 * error:.1f}"


def _answer_questions(
    model: str, path: Path, limit: int | None, activations: str, quiet: bool, adapter: str, cache_bits: int,
    bits: int | None,
) -> ChoiceResult:  # fmt: skip
    from runtime_py.text.generator import context_length, stop_tokens
    from toolchain.calibrate import text as calibration
    from toolchain.evaluate.multiple_choice import evaluate_choices, read_questions
    from toolchain.evaluate.perplexity import open_scorer

    folder = _resolved(model)
    questions = read_questions(path)[:limit]
    return evaluate_choices(
        open_scorer(model, activations, adapter, cache_bits, bits),
        calibration.load_tokenizer(folder),
        questions,
        min(stop_tokens(folder), default=0),
        context_length(folder),
        quiet,
    )


def _run_tasks(
    folder: Path, tasks: list[str], task_folder: Path | None, limit: int | None, activations: str, cache_bits: int,
    bits: int | None,
) -> dict[str, Any]:  # fmt: skip
    from export.contract.errors import NotFiniteError

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
    model = AthenaModel(folder, activations, cache_bits, bits)
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
    emulation: tuple[Target, float] | None = None,
    adapter: str = "",
    cache_bits: int = 16,
    bits: int | None = None,
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
        scorer = open_scorer(name, activations, adapter, cache_bits, bits)
    longest = getattr(scorer, "context", window)
    if window > longest:
        print(f"warning: windows of {window} tokens, but the model's context has {longest}", file=sys.stderr)
    tokenizer = calibration.load_tokenizer(_resolved(name))
    windows = windows_of(calibration.slice_text(source, part), tokenizer, window, limit, str(text), stride)
    result = score(scorer, windows, open_scorer(reference) if reference else None, quiet, stride)
    if save and (folder / report.REPORT_JSON).exists():
        command = f"athena-export eval {folder} --text {text}" + (f" --part {part}" if part else "")
        command += (
            f" --window {window}" + (f" --stride {stride}" if stride else "") + (f" --limit {limit}" if limit else "")
        )
        command += f" --reference {reference}" if reference else ""
        command += f" --activations {activations}" if activations != "int8" else ""
        command += f" --cache-bits {cache_bits}" if cache_bits != 16 else ""
        command += f" --bits {bits}" if bits is not None else ""
        report.add_quality(folder, {**result.to_json(), "text": str(text), "command": command})
    return result


def _held_out_text() -> str:
    """The documentation strings that the demo model's training does not contain."""
    from toolchain.calibrate.corpus import standard_library_text

    return standard_library_text("held-out")


def _resolved(name: str) -> Path:
    if (Path(name) / "model.onnx").is_file():  # a machine that only runs models has nothing to resolve others with
        return Path(name)
    from toolchain.source.checkpoint import resolve

    return resolve(name)
