"""`export`, and its two halves `quantize` and `package`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from export.contract.errors import InputError
from export.files.lock import locked
from toolchain.cli.common import guarded, print_json
from toolchain.system.units import figure, size_text

if TYPE_CHECKING:
    from toolchain.settings.quantize import QuantizeSettings

Model = Annotated[str, typer.Argument(help="Model folder or Hugging Face name (safetensors).")]
Out = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]
Bits = Annotated[
    Optional[float], typer.Option(help="Code width, 1 to 8; 3.25: a budget of effective bits [3; qrazor 4].")
]
Method = Annotated[str, typer.Option(help="athena, gptq, squeezellm, aqlm, qrazor, or rtn (round to nearest).")]
Vector = Annotated[Optional[int], typer.Option(help="Weights that one code stands for: 1, 2, 4, 8; 0 automatic [1].")]
Trellis = Annotated[
    Optional[str], typer.Option(help="Trellis codes up to 4 bits: no, large (matrices), all (no; best: large).")
]
StateBits = Annotated[int, typer.Option(help="Bits that pick a trellis level, up to 12; 0: automatic.")]
GroupSize = Annotated[int, typer.Option(help="Columns that share a codebook or scale; 0: the whole row.")]
RowsPerCodebook = Annotated[int, typer.Option(help="Rows that share a codebook; 0: as few as 0.1 bit allows.")]
ScaleBits = Annotated[int, typer.Option(help="Bits of a row's scale: 2-8 coded, 16 float16, 0 automatic.")]
Passes = Annotated[Optional[int], typer.Option(help="Rounds of least squares and coordinate descent [4].")]
Damping = Annotated[float, typer.Option(help="Added to the Hessian's diagonal, in units of its mean.")]
Rank = Annotated[int, typer.Option(help="Rank of the residual low-rank term; 0: none.")]
Outliers = Annotated[float, typer.Option(help="Share of the weights stored apart in float16, such as 0.0045.")]
OutliersBy = Annotated[str, typer.Option(help="How those are chosen: sensitivity, gradient or magnitude.")]
Incoherence = Annotated[str, typer.Option(help="Rotate first: none, values, residual or all.")]
Equalize = Annotated[Optional[bool], typer.Option(help="Make columns equally large first (no; best: yes).")]
EmbeddingBits = Annotated[int, typer.Option(help="Embedding and head: 2-8, or 16 for float16.")]
Calibration = Annotated[str, typer.Option(help="Text file, hub dataset name, or built-in.")]
CalibrationPart = Annotated[Optional[str], typer.Option(help="Fraction of the text, such as 0:0.5.")]
Sequences = Annotated[int, typer.Option(help="Calibration sequences.")]
SequenceLength = Annotated[int, typer.Option(help="Tokens per calibration sequence.")]
Seed = Annotated[int, typer.Option(help="Picks the calibration sequences.")]
Preset = Annotated[str, typer.Option(help="fast, balanced, or best (adds end-to-end tuning).")]
Guided = Annotated[Optional[bool], typer.Option(help="Weight tokens by the gradient of the end loss.")]
GuidedGroups = Annotated[int, typer.Option(help="Runs of rows with a guided Hessian of their own.")]
BlockSteps = Annotated[int, typer.Option(help="Steps of tuning each block on its own output; 0: none.")]
TuneSteps = Annotated[Optional[int], typer.Option(help="Steps of end-to-end tuning; 0: none.")]
TuneRate = Annotated[float, typer.Option(help="Relative learning rate; 0: by the width.")]
TuneBatch = Annotated[int, typer.Option(help="Windows a tuning step.")]
TuneLength = Annotated[int, typer.Option(help="Tokens a tuning window.")]
OwnText = Annotated[
    Optional[float], typer.Option(help="Share of the text that the model writes [0; best 0.5, of the built-in 1].")
]
WorkerCount = Annotated[int, typer.Option("--workers", help="Layers solved at once, in processes.")]
Scheduler = Annotated[Optional[str], typer.Option(help="Dask scheduler that solves the layers, tcp://HOST:PORT.")]
VocabularyText = Annotated[
    Optional[Path], typer.Option(help="Keep only the vocabulary rows that texts like this one need.")
]
ActivationBits = Annotated[
    Optional[int], typer.Option(help="Integer activations: 2-8 razored, 16 whole; 0: floating point [0; qrazor 4].")
]
Kv = Annotated[int, typer.Option(help="Width of razored keys and values: 4 or 8; 0: floating point.")]
RazorGroup = Annotated[int, typer.Option(help="Razored neighbours that share a flag.")]
RazorVariant = Annotated[str, typer.Option(help="sign-magnitude or twos-complement.")]
RazorTies = Annotated[str, typer.Option(help="half-up or half-even.")]
ActivationBasis = Annotated[int, typer.Option(help="Bits of integer activations before razoring.")]
ActivationUnit = Annotated[str, typer.Option(help="tensor: calibrated; token: by each token's largest value.")]
KvUnit = Annotated[str, typer.Option(help="tensor, or head: one unit for each key-value head.")]
Refit = Annotated[bool, typer.Option(help="qrazor: fit the scales again after razoring.")]
Compensate = Annotated[bool, typer.Option(help="qrazor: spread each column's error over later columns.")]
Rotate = Annotated[bool, typer.Option(help="qrazor: Hadamard rotation of activations.")]
RazorCodebook = Annotated[int, typer.Option(help="athena: razor codebook entries to 2-7 bits; 0: no.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Predict time, peak memory and size; write nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what exists.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@guarded
def export(
    output: Out,
    model: Annotated[Optional[str], typer.Argument(help="Model folder or Hugging Face name (safetensors).")] = None,
    bits: Bits = None,
    method: Method = "athena",
    vector: Vector = None,
    trellis: Trellis = None,
    state_bits: StateBits = 0,
    group_size: GroupSize = 0,
    rows_per_codebook: RowsPerCodebook = 0,
    scale_bits: ScaleBits = 0,
    passes: Passes = None,
    damping: Damping = 0.01,
    rank: Rank = 0,
    outliers: Outliers = 0.0,
    outliers_by: OutliersBy = "sensitivity",
    incoherence: Incoherence = "none",
    equalize: Equalize = None,
    embedding_bits: EmbeddingBits = 8,
    calibration: Calibration = "built-in",
    calibration_part: CalibrationPart = None,
    sequences: Sequences = 128,
    sequence_length: SequenceLength = 512,
    seed: Seed = 0,
    preset: Preset = "balanced",
    guided: Guided = None,
    guided_groups: GuidedGroups = 1,
    block_steps: BlockSteps = 0,
    tune_steps: TuneSteps = None,
    tune_rate: TuneRate = 0.0,
    tune_batch: TuneBatch = 8,
    tune_length: TuneLength = 256,
    own_text: OwnText = None,
    activation_bits: ActivationBits = None,
    kv: Kv = 0,
    razor_group: RazorGroup = 16,
    razor_variant: RazorVariant = "sign-magnitude",
    razor_ties: RazorTies = "half-up",
    activation_basis: ActivationBasis = 16,
    activation_unit: ActivationUnit = "tensor",
    kv_unit: KvUnit = "tensor",
    refit: Refit = False,
    compensate: Compensate = True,
    rotate: Rotate = False,
    razor_codebook: RazorCodebook = 0,
    workers: WorkerCount = 1,
    scheduler: Scheduler = None,
    dry_run: DryRun = False,
    eval_text: Annotated[Optional[Path], typer.Option(help="Measure quality on this text afterwards.")] = None,
    random: Annotated[
        Optional[str],
        typer.Option(help="No MODEL: random codes at the shape of tinyllama-1.1b, qwen2.5-0.5b or llama-2-7b."),
    ] = None,
    keep_quantized: Annotated[
        Optional[Path], typer.Option(help="Keep the quantized checkpoint in this folder.")
    ] = None,
    vocabulary_text: VocabularyText = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Quantize MODEL and write the model folder with its report. An interrupted run continues where it stopped."""
    from export.files.replace import install_folder, output_folder, recover, refuse_existing

    settings = _settings(locals())
    inputs = _inputs(model, calibration, eval_text, vocabulary_text)
    place = output_folder(output, force, [*inputs, *([keep_quantized] if keep_quantized else [])])
    if (model is None) == (random is None):
        raise InputError("give either MODEL or --random SHAPE")
    if model is None or random is not None:
        from toolchain.pipeline.random import write_random_folder

        with locked(place):
            recover(place)
            write_random_folder(str(random), place, settings, force, quiet=json)
        _summary(output, json)
        return
    if dry_run:
        _predict(model, settings, calibration, calibration_part, json)
        return
    work = output_folder(keep_quantized or place.with_name(f"{place.name}.partial"), True, inputs)
    with locked(place):
        recover(place)
        refuse_existing(place, force)
        checkpoint = _quantize(model, work, settings, calibration, calibration_part, force, json, (workers, scheduler))
        built = _package(checkpoint, place, vocabulary_text, json)
        install_folder(built, place, force)
        if keep_quantized is None:
            shutil.rmtree(work, ignore_errors=True)
    if eval_text is not None:
        from toolchain.cli.evaluate import evaluate_folder

        evaluate_folder(output, eval_text, None, model, window=256, limit=None, save=True, quiet=json)
    _summary(output, json)


@guarded
def quantize(
    model: Model,
    output: Out,
    bits: Bits = None,
    method: Method = "athena",
    vector: Vector = None,
    trellis: Trellis = None,
    state_bits: StateBits = 0,
    group_size: GroupSize = 0,
    rows_per_codebook: RowsPerCodebook = 0,
    scale_bits: ScaleBits = 0,
    passes: Passes = None,
    damping: Damping = 0.01,
    rank: Rank = 0,
    outliers: Outliers = 0.0,
    outliers_by: OutliersBy = "sensitivity",
    incoherence: Incoherence = "none",
    equalize: Equalize = None,
    embedding_bits: EmbeddingBits = 8,
    calibration: Calibration = "built-in",
    calibration_part: CalibrationPart = None,
    sequences: Sequences = 128,
    sequence_length: SequenceLength = 512,
    seed: Seed = 0,
    preset: Preset = "balanced",
    guided: Guided = None,
    guided_groups: GuidedGroups = 1,
    block_steps: BlockSteps = 0,
    tune_steps: TuneSteps = None,
    tune_rate: TuneRate = 0.0,
    tune_batch: TuneBatch = 8,
    tune_length: TuneLength = 256,
    own_text: OwnText = None,
    activation_bits: ActivationBits = None,
    kv: Kv = 0,
    razor_group: RazorGroup = 16,
    razor_variant: RazorVariant = "sign-magnitude",
    razor_ties: RazorTies = "half-up",
    activation_basis: ActivationBasis = 16,
    activation_unit: ActivationUnit = "tensor",
    kv_unit: KvUnit = "tensor",
    refit: Refit = False,
    compensate: Compensate = True,
    rotate: Rotate = False,
    razor_codebook: RazorCodebook = 0,
    workers: WorkerCount = 1,
    scheduler: Scheduler = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Restart a run made with other settings.")] = False,
    json: Json = False,
) -> None:
    """First half of export: MODEL to a quantized checkpoint. Continues an interrupted run."""
    from export.files.replace import output_folder

    settings = _settings(locals())
    if dry_run:
        _predict(model, settings, calibration, calibration_part, json)
        return
    place = output_folder(output, True, _inputs(model, calibration))
    with locked(place):
        checkpoint = _quantize(model, place, settings, calibration, calibration_part, force, json, (workers, scheduler))
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


def _inputs(*names: str | Path | None) -> list[Path]:
    """Those of the arguments that name files or folders which exist."""
    from export.files.access import expanded

    return [path for path in (expanded(str(name)) for name in names if name is not None) if path.exists()]


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


def _settings(given: dict[str, Any]) -> QuantizeSettings:
    """Settings from a command's options: the preset's values where an option was not given."""
    from toolchain.calibrate.text import BUILT_IN
    from toolchain.settings.quantize import METHOD_DEFAULTS, PRESETS, QuantizeSettings
    from toolchain.settings.razor import RazorSettings

    if given["preset"] not in PRESETS:
        raise InputError(f"--preset {given['preset']!r} is unknown; choose one of {', '.join(PRESETS)}")
    defaults = {**PRESETS[given["preset"]], **METHOD_DEFAULTS.get(given["method"], {})}
    names = (*QuantizeSettings.__dataclass_fields__, *RazorSettings.__dataclass_fields__)
    chosen = {**defaults, **{name: given[name] for name in names if given.get(name) is not None}}
    if given["own_text"] is None and chosen.get("own_text") and given["calibration"] == BUILT_IN:
        chosen["own_text"] = 1.0  # the built-in text is hardly the model's domain
    if float(chosen.get("bits", 0.5)).is_integer():
        chosen["bits"] = int(chosen["bits"])
    razor = {name: chosen.pop(name) for name in RazorSettings.__dataclass_fields__ if name in chosen}
    return QuantizeSettings(**chosen, razor=RazorSettings(**razor))


def _quantize(
    model: str, out: Path, settings: Any, source: str, part: str | None, force: bool, quiet: bool,
    workers: tuple[int, str | None],
) -> Any:  # fmt: skip
    from toolchain.pipeline.run import CalibrationChoice, quantize_model
    from toolchain.system.workers import Workers

    choice = CalibrationChoice(source, part)
    return quantize_model(model, out, settings, choice, restart=force, quiet=quiet, workers=Workers(*workers))


def _predict(model: str, settings: Any, source: str, part: str | None, json: bool) -> None:
    from toolchain.pipeline.run import CalibrationChoice
    from toolchain.predict.probe import predict

    found = predict(model, settings, CalibrationChoice(source, part))
    if json:
        print_json(found.to_json())
        return
    print(f"time         {found.seconds / 60:.1f} min, {found.seconds_per_million:.2f} s per million parameters")
    print(f"peak memory  {size_text(found.peak_bytes)}")
    print(
        f"output       {size_text(found.output_bytes)}, {found.effective_bits:.3f} effective bits in the linear layers"
    )


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
