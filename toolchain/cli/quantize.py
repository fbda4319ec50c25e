"""`export`, and its two halves `quantize` and `package`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from export.contract.errors import InputError
from export.files.lock import locked
from toolchain.cli.common import guarded, print_json
from toolchain.cli.signature import with_options
from toolchain.settings.presets import Quantization
from toolchain.settings.solver import KEEP
from toolchain.system.units import figure, size_text

_MEASURED = (20e6, 2e9)  # parameters
_DISAPPOINTING = 0.2  # nats a token: perplexity a fifth higher; SmolLM2-135M then fails questions that it knew

Model = Annotated[str, typer.Argument(help="Model folder, GGUF file or Hugging Face name.")]
Out = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]
VocabularyText = Annotated[
    Optional[Path],
    typer.Option(help="Keep only the vocabulary rows that texts like this one need.", rich_help_panel="Output"),
]
EvalText = Annotated[
    Optional[Path], typer.Option(help="Measure quality on this text afterwards.", rich_help_panel="Output")
]
KeepQuantized = Annotated[
    Optional[Path],
    typer.Option(help="Keep the quantized checkpoint in this folder.", rich_help_panel="Output", hidden=True),
]
Random = Annotated[
    Optional[str],
    typer.Option(
        help="No MODEL: random codes at a published shape, such as tinyllama-1.1b or qwen3-30b-a3b:6 (6 blocks).",
        rich_help_panel="Output",
        hidden=True,
    ),
]
Adapters = Annotated[
    Optional[list[str]],
    typer.Option(
        metavar="NAME=FOLDER",
        help="LoRA folder of PEFT to add as an adapter; may be repeated.",
        rich_help_panel="Output",
    ),
]
AdapterBits = Annotated[
    int, typer.Option(help="Of a number of an adapter: 16, 8 or 32.", rich_help_panel="Output", hidden=True)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Predict time, peak memory and size; write nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what exists.")]
Restart = Annotated[bool, typer.Option("--force", help="Restart a run made with other settings.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@guarded
@with_options
def export(
    output: Out,
    quantization: Quantization,
    model: Annotated[Optional[str], typer.Argument(help="Model folder, GGUF file or Hugging Face name.")] = None,
    eval_text: EvalText = None,
    vocabulary_text: VocabularyText = None,
    keep_quantized: KeepQuantized = None,
    random: Random = None,
    adapter: Adapters = None,
    adapter_bits: AdapterBits = 16,
    dry_run: DryRun = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Quantize MODEL and write the model folder with its report. An interrupted run continues where it stopped."""
    from export.files.replace import install_folder, output_folder, recover, refuse_existing
    from toolchain.adapters.adding import check_asked

    adapters = check_asked(adapter or (), adapter_bits, quantization.settings)
    inputs = _inputs(model, quantization.text.source, eval_text, vocabulary_text, *adapters.values())
    place = output_folder(output, force, [*inputs, *([keep_quantized] if keep_quantized else [])])
    if (model is None) == (random is None):
        raise InputError("give either MODEL or --random SHAPE")
    if model is None or random is not None:
        from toolchain.pipeline.random import write_random_folder

        if dry_run:
            _random_size(str(random), quantization, json)
            return
        with locked(place):
            recover(place)
            write_random_folder(str(random), place, quantization.settings, force, quiet=json)
            _add(place, adapters, adapter_bits)
        _summary(output, json)
        return
    if dry_run:
        _predict(model, quantization, json)
        return
    work = output_folder(keep_quantized or place.with_name(f"{place.name}.partial"), True, inputs)
    with locked(place):
        recover(place)
        refuse_existing(place, force)
        checkpoint = _quantize(model, work, quantization, force, json)
        built = _package(checkpoint, place, vocabulary_text, json)
        _add(built, adapters, adapter_bits)
        install_folder(built, place, force)
        if keep_quantized is None:
            shutil.rmtree(work, ignore_errors=True)
    if eval_text is not None:
        from toolchain.cli.evaluate import evaluate_folder

        evaluate_folder(output, eval_text, None, model, window=256, limit=None, save=True, quiet=json)
    _summary(output, json)
    parameters = checkpoint.manifest["totals"]["parameters"]
    if not (json or eval_text or vocabulary_text) and quantization.settings.method != KEEP:
        _warn(model, output, parameters)


@guarded
@with_options
def quantize(
    model: Model,
    output: Out,
    quantization: Quantization,
    dry_run: DryRun = False,
    force: Restart = False,
    json: Json = False,
) -> None:
    """First half of export: MODEL to a quantized checkpoint. Continues an interrupted run."""
    from export.files.replace import output_folder

    if dry_run:
        _predict(model, quantization, json)
        return
    place = output_folder(output, True, _inputs(model, quantization.text.source))
    with locked(place):
        checkpoint = _quantize(model, place, quantization, force, json)
    if json:
        print_json({"output": str(output), **checkpoint.manifest["totals"]})
    else:
        totals = checkpoint.manifest["totals"]
        print(f"{output}: {totals['effective_bits']:.3f} effective bits, {size_text(totals['bytes'])}")


@guarded
def package(
    checkpoint: Annotated[Path, typer.Argument(help="Quantized checkpoint written by `quantize`.")],
    output: Out,
    vocabulary_text: VocabularyText = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Second half of export: a quantized checkpoint to a model folder."""
    from export.artefacts.checkpoint import QuantizedCheckpoint
    from export.files.replace import install_folder, output_folder, recover, refuse_existing
    from toolchain.source.config import resolved_config

    place = output_folder(output, force, _inputs(checkpoint, vocabulary_text))
    quantized = QuantizedCheckpoint(checkpoint)
    quantized.config = resolved_config(quantized.config, checkpoint / "config.json")  # early ones are as they came
    with locked(place):
        recover(place)
        refuse_existing(place, force)
        install_folder(_package(quantized, place, vocabulary_text, json), place, force)
    _summary(output, json)


def _warn(model: str, output: Path, parameters: int) -> None:
    """Measure how far a decoder has moved from its source on a little unseen text; say what helps where it is far.

    Not for small models, which whoever experiments with them measures better, and not for those whose float32 weights
    may not fit into memory.
    """
    from toolchain.cli.evaluate import evaluate_folder
    from toolchain.report.model_report import read_report

    if not _MEASURED[0] <= parameters <= _MEASURED[1] or read_report(output).get("encoder"):
        return
    kl = evaluate_folder(output, Path("held-out"), None, model, window=256, limit=8, save=False, quiet=True).kl
    if kl is None:
        return
    print(f"KL to the source: {figure(kl, 3)} nats a token (2,000 tokens of documentation that calibration never saw)")
    if kl > _DISAPPOINTING:
        print(
            "warning: answers will differ from the source's. More bits, --preset best, or a --calibration "
            "text of the kind that the model will read help",
            file=sys.stderr,
        )


def _inputs(*names: str | Path | None) -> list[Path]:
    """Those of the arguments that name files or folders which exist."""
    from export.files.access import expanded

    return [path for path in (expanded(str(name)) for name in names if name is not None) if path.exists()]


def _add(folder: Path, adapters: Mapping[str, Path], bits: int) -> None:
    """Put adapters into a model folder; a folder that is not installed yet goes where one does not fit."""
    from toolchain.adapters.adding import add_adapter

    try:
        for name, source in adapters.items():
            add_adapter(folder, name, source, bits)
    except BaseException:
        if adapters and folder.name.startswith("."):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _package(checkpoint: Any, output: Path, vocabulary_text: Path | None, quiet: bool) -> Path:
    """The model folder beside its destination, with a pruned vocabulary where a text is given."""
    from toolchain.pipeline.packaging import package_checkpoint

    if vocabulary_text is None:
        return package_checkpoint(checkpoint, output, quiet)
    from toolchain.calibrate.text import read_text
    from toolchain.pipeline.pruned import PrunedCheckpoint

    with tempfile.TemporaryDirectory() as scratch:
        text = read_text(vocabulary_text)
        pruned = PrunedCheckpoint(checkpoint, text, vocabulary_text.name, Path(scratch))
        if not quiet:
            print(f"vocabulary: {len(pruned.keep)} of {checkpoint.config['vocab_size']} tokens kept", file=sys.stderr)
        return package_checkpoint(pruned, output, quiet)


def _quantize(model: str, out: Path, asked: Quantization, force: bool, quiet: bool) -> Any:
    from toolchain.pipeline.run import quantize_model

    return quantize_model(model, out, asked.settings, asked.text, restart=force, quiet=quiet, workers=asked.workers)


def _predict(model: str, asked: Quantization, json: bool) -> None:
    from toolchain.predict.probe import predict

    found = predict(model, asked.settings, asked.text, asked.workers)
    if json:
        print_json(found.to_json())
        return
    print(f"time         {found.seconds / 60:.1f} min, {found.seconds_per_million:.2f} s per million parameters")
    print(f"peak memory  {size_text(found.peak_bytes)}")
    print(
        f"output       {size_text(found.output_bytes)}, {found.effective_bits:.3f} effective bits in the linear layers"
    )


def _random_size(shape: str, asked: Quantization, json: bool) -> None:
    """Of random codes, for which nothing is solved: what quantizing the model takes, only its folder can tell."""
    from toolchain.pipeline.random import RandomCheckpoint

    with tempfile.TemporaryDirectory() as scratch:
        totals: Any = RandomCheckpoint(shape, Path(scratch), asked.settings).manifest["totals"]
    if json:
        print_json({"output_bytes": totals["bytes"], "effective_bits": totals["effective_bits"]})
        return
    size, bits = size_text(totals["bytes"]), totals["effective_bits"]
    print(f"output       {size}, {bits:.3f} effective bits in the linear layers")


def _summary(output: Path, json: bool) -> None:
    from toolchain.report.model_report import read_report

    report = read_report(output)
    if json:
        print_json({"output": str(output), **report})
        return
    size = report["size"]
    print(
        f"{output}: {size['effective_bits']:.3f} effective bits in the linear layers, "
        f"{size_text(size['file_bytes'])} instead of {size_text(size['float16_bytes'])} in float16"
    )
    if report.get("quality"):
        q = report["quality"]
        source = figure(q["reference_perplexity"], 3)
        print(f"perplexity {figure(q['perplexity'], 3)} (float32 {source}), KL {figure(q['kl'], 4)}")
    print(f"report: {output / 'report.html'}")
