"""The command line is made from the settings: one option a field, help that fits, and former spellings that work."""

from __future__ import annotations

import hashlib
import inspect
import json
import pkgutil
import re
from dataclasses import is_dataclass
from importlib import import_module

import pytest
import typer
import typer.main
from typer.testing import CliRunner

import toolchain.settings
from export.contract.errors import InputError
from runtime_py.serving.settings import ServeSettings
from tests.conftest import DEMO
from toolchain.cli import app
from toolchain.cli.spellings.former import modern_arguments
from toolchain.pipeline.run import quantize_model
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.evaluation import EvaluationSettings
from toolchain.settings.execution import Arithmetic, Execution, Guessing, Threads
from toolchain.settings.former import modern_settings
from toolchain.settings.generation import GenerationSettings
from toolchain.settings.option import Option, declared
from toolchain.settings.presets import PRESETS, Quantization
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.serving import BenchOptions, ServeOptions
from toolchain.settings.solver import PLANNED

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SHARED = {
    "export": (Quantization,),
    "quantize": (Quantization,),
    "run": (GenerationSettings, Execution, Arithmetic, Guessing),
    "chat": (GenerationSettings, Execution, Guessing),
    "serve": (ServeOptions, Execution),
    "bench": (BenchOptions, Execution),
    "eval": (EvaluationSettings, Arithmetic),
    "embed": (Threads, Arithmetic),
}


def settings_classes() -> list[type]:
    modules = [
        import_module(f"toolchain.settings.{one.name}") for one in pkgutil.iter_modules(toolchain.settings.__path__)
    ]
    found = {
        kind for module in modules for kind in vars(module).values() if inspect.isclass(kind) and is_dataclass(kind)
    }
    return sorted((kind for kind in found if hasattr(kind, "PANEL")), key=lambda kind: kind.__name__)


def asked(*arguments: str) -> Quantization:
    """What `quantize` would do."""
    context = COMMANDS["quantize"].make_context("quantize", ["M", "-o", "O", *arguments])
    return Quantization.from_given({name: value for name, value in context.params.items() if value is not None})


@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__name__)
def test_every_field_is_one_option_with_a_help(kind):
    options = list(declared(kind))
    assert options and len({one.flag for one in options}) == len({one.name for one in options}) == len(options)
    for one in options:
        assert len(one.about.help) > 3 and not one.about.help.endswith("."), one.name
        assert (
            one.about.help[0].isupper() or one.about.help.split()[0].rstrip(",:").islower() or one.name == "temperature"
        )
        assert one.panel and isinstance(one.about, Option)
        if one.about.choices and one.default is not None:
            assert one.default in one.about.choices


@pytest.mark.parametrize("name", SHARED)
def test_a_command_has_exactly_the_options_of_its_settings(name):
    expected = [one for kind in SHARED[name] for one in declared(kind)]
    flags = [flag for parameter in COMMANDS[name].params for flag in parameter.opts]
    assert len(flags) == len(set(flags))
    for one in expected:
        (parameter,) = [parameter for parameter in COMMANDS[name].params if one.flag in parameter.opts]
        assert parameter.help.startswith(one.about.help) and parameter.hidden == (not one.about.common)


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("option", ["--help", "--help-all"])
@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_fits_the_terminal(name, option, columns):
    if option == "--help-all" and (name is None or hasattr(COMMANDS[name], "commands")):
        return
    words = [option] if name is None else [name, option]
    done = CliRunner(env={"COLUMNS": str(columns), "TERMINAL_WIDTH": None}).invoke(app, words)
    assert done.exit_code == 0 and max(map(len, done.stdout.splitlines())) <= columns
    if name is None:
        return
    for parameter in COMMANDS[name].params:
        named = re.search(rf"(?<![\w-]){re.escape(max(parameter.opts, key=len))}(?![\w-])", done.stdout)
        shown = not getattr(parameter, "hidden", False) or option == "--help-all"
        assert bool(named) >= shown, parameter.opts


def test_the_first_help_is_short():
    shown = [parameter for parameter in COMMANDS["export"].params if not getattr(parameter, "hidden", False)]
    assert {"bits", "preset", "source", "output"} <= {parameter.name for parameter in shown}
    assert len(shown) < len(COMMANDS["export"].params) / 2


def test_the_server_takes_the_defaults_that_help_tells():
    limits = ServeSettings()
    for one in declared(ServeOptions):
        assert getattr(limits, one.name) == one.default, one.name


@pytest.mark.parametrize(
    "former, modern, said",
    [
        ("--bits 3.25", "--budget 3.25", "--bits 3.25 is now --budget 3.25"),
        ("--bits=2.5 --vector=0", "--budget 2.5 --format vectors", "--vector 0 is now --format vectors"),
        ("--bits 3.0", "--bits 3", "--bits 3.0 is now --bits 3"),
        ("--trellis all", "--format trellis", "--trellis all is now --format trellis"),
        ("--trellis large", "--format mixed --dimension 1", "--format mixed --dimension 1"),
        ("--trellis no", "--format codebook", "--format codebook"),
        ("--vector 2", "--format vectors --dimension 2", "--vector 2 is now --format vectors --dimension 2"),
        ("--vector 0 --bits 2", "--format vectors --bits 2", "--format vectors"),
        ("--preset best --trellis no", "--preset best --format vectors", "--format vectors"),
        ("--preset best --trellis no --vector 1", "--preset best --format codebook", "--format codebook"),
        ("--preset best --vector 0", "--preset best", "--format mixed"),
        ("--preset best --trellis all", "--preset best --format trellis", "--format trellis"),
        (
            "--preset best --method gptq --trellis no --guided",
            "--preset best --method gptq --guided",
            "--format codebook",
        ),
        ("--trellis large --vector 0", "--format mixed", "--trellis large --vector 0 is now --format mixed"),
        ("--incoherence all", "--rotation residual,values", "--incoherence all is now --rotation values,residual"),
        ("--incoherence none", "", "--rotation none"),
        ("--no-rotate", "", "--no-rotate is now --rotation none"),
        ("--method qrazor --rotate", "--method qrazor --rotation activations", "--rotate is now --rotation activ"),
        (
            "--method qrazor --incoherence values --rotate",
            "--method qrazor --rotation activations,values",
            "--incoherence values --rotate is now --rotation values,activations",
        ),
    ],
)
def test_former_spellings_mean_what_they_meant(former, modern, said, capsys):
    before = asked(*former.split())
    notes = capsys.readouterr().err
    assert before == asked(*modern.split())
    assert capsys.readouterr().err == "" and said in notes and notes.count("\n") == notes.count(" is now ") > 0


@pytest.mark.parametrize(
    "former, named",
    [
        ("--vector 3", "--dimension must be 0 to 2, 4 or 8, not 3"),
        ("--vector 4", "codes of 8 bits at most"),
        ("--bits 2.5 --vector 2", "codes of 8 bits at most"),
        (
            "--trellis some",
            "--format 'some' is unknown; choose one of codebook, trellis, vectors, razored, mxfp4, groups, nested, "
            "sparse_codes, mixed",
        ),
        ("--trellis all --vector 2", "--dimension is for --format vectors and mixed"),
        ("--trellis all --method gptq", "--format trellis is for --method athena; gptq has codebook"),
        ("--incoherence some", "--rotation 'some' is unknown"),
        ("--rotate", "--rotation activations and --refit are for --method qrazor"),
        ("--bits 0.5", "--budget must be 1 to 8, not 0.5"),
        ("--bits nan", "--budget must be 1 to 8, not nan"),
        ("--method aqlm --vector 8", "--dimension is for --method athena"),
    ],
)
def test_what_was_refused_is_refused_by_todays_names(former, named):
    with pytest.raises(InputError, match=re.escape(named)):
        asked(*former.split())


@pytest.mark.parametrize(
    "words",
    ["--", "-- --vector 2", "--calibration a.txt --seed 3", "--bits 3 --method gptq", "--vector", "--bits", "--bits x"],
)
def test_other_arguments_are_left_as_they_are(words):
    found, notes = modern_arguments(words.split())
    assert sorted(found) == sorted(words.split()) and notes == []


@pytest.mark.parametrize("value", ["x", "", "9" * 5000, "-1", "²"])
@pytest.mark.parametrize("option", ["--vector", "--trellis", "--incoherence", "--bits"])
def test_nonsense_is_refused(option, value, tmp_path):
    done = CliRunner().invoke(app, ["quantize", str(DEMO), "-o", str(tmp_path / "O"), option, value, "--dry-run"])
    assert done.exit_code == 2 and "Traceback" not in done.stderr and not (tmp_path / "O").exists()


@pytest.mark.parametrize(
    "options, named",
    [
        ({"bits": 3, "budget": 3.5}, "--bits and --budget exclude"),
        ({"budget": float("nan")}, "--budget must be 1 to 8"),
        ({"format": "codebook", "dimension": 2}, "--dimension is for --format vectors"),
        ({"format": "vectors", "dimension": 1}, "is --format codebook"),
        ({"format": "mixed", "dimension": 2}, "--dimension 0 (automatic) or 1"),
        ({"format": "razored"}, "--format razored is for --method qrazor; athena has codebook"),
        (
            {"format": "vectors", "method": "qrazor"},
            "--format vectors is for --method athena, aqlm; qrazor has",
        ),
        ({"state_bits": 8}, "--state-bits is for --format trellis and mixed"),
        ({"rotation": "values,none"}, "--rotation 'none' is unknown"),
        ({"rotation": ""}, "--rotation '' is unknown"),
        ({"method": "magic"}, "--method 'magic' is unknown; choose one of athena, rtn, gptq"),
        ({"scale_bits": 9}, "--scale-bits must be 0, 2 to 8 or 16, not 9"),
        ({"tune_length": 1}, "--tune-length must be 2 to 1048576, not 1"),
        ({"guided_groups": 2, "guided": True, "rank": 1}, "--guided-groups does not go with --rank"),
        ({"gradient_sequences": 8}, "--gradient-sequences is for --guided"),
        ({"gradient_sequences": 8, "outliers_by": "gradient"}, "--gradient-sequences is for --guided"),
    ],
)
def test_settings_that_do_not_go_together_name_their_options(options, named):
    with pytest.raises(InputError, match=re.escape(named)):
        QuantizeSettings(**options)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_and_methods_set_what_is_not_given(preset):
    plain = asked("--preset", preset)
    for name, value in PRESETS[preset].items():
        assert getattr(plain.settings, name) == (1.0 if name == "own_text" else value)
    assert asked("--preset", preset, "--passes", "3", "--no-guided", "--own-text", "0.2").settings.passes == 3
    assert asked("--preset", preset, "--calibration", "t.txt").settings.own_text == PRESETS[preset].get("own_text", 0)
    tuned = asked("--preset", preset, "--tune-steps", "5").settings
    assert (tuned.tune_steps, tuned.tune_batch) == (5, 8)
    budget = asked("--preset", preset, "--budget", "3").settings
    assert budget.is_budget and budget.bits is None and budget.width == 3
    assert asked("--method", "qrazor").settings.bits == asked("--method", "qrazor").settings.razor.activation_bits == 4


@pytest.mark.parametrize(
    "words, guided, sequences",
    [
        ("", True, PLANNED),
        ("--budget 3.1", True, PLANNED),
        ("--guided", True, 0),
        ("--no-guided", False, 0),
        ("--gradient-sequences 5", True, 5),
        ("--gradient-sequences -1", True, PLANNED),
        ("--no-spread", False, 0),
        ("--format vectors", False, 0),
        ("--method gptq", False, 0),
        ("--method rtn --budget 3.1", False, 0),
        ("--activation-bits 8", False, 0),
        ("--nested 2", False, 0),
        ("--preset best", True, 0),
        ("--preset best --no-spread", True, 0),
        ("--preset fast", False, 0),
    ],
)
def test_the_default_is_guided_where_the_plan_of_widths_takes_gradients(words, guided, sequences):
    found = asked(*words.split()).settings
    assert (found.guided, found.gradient_sequences) == (guided, sequences)


FORMER = {  # the settings of an athena.json of today's predecessor, as `QuantizeSettings().to_json()` was
    "method": "athena", "bits": 3, "group_size": 0, "rows_per_codebook": 0, "scale_bits": 0, "vector": 1,
    "trellis": "no", "state_bits": 0, "passes": 4, "damping": 0.01, "rank": 0, "outliers": 0.0,
    "outliers_by": "sensitivity", "incoherence": "none", "equalize": False, "embedding_bits": 8, "sequences": 128,
    "sequence_length": 512, "seed": 0, "guided": False, "guided_groups": 1, "block_steps": 0, "tune_steps": 0,
    "tune_rate": 0.0, "tune_batch": 8, "tune_length": 256, "own_text": 0.0,
    "razor": {
        "activation_bits": 0, "kv": 0, "razor_group": 16, "razor_variant": "sign-magnitude", "razor_ties": "half-up",
        "activation_basis": 16, "activation_unit": "tensor", "kv_unit": "tensor", "refit": False, "compensate": True,
        "rotate": False, "razor_codebook": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "former, modern",
    [
        ({}, {}),
        ({"bits": 3.25}, {"budget": 3.25}),
        ({"trellis": "all"}, {"format": "trellis"}),
        ({"trellis": "large", "vector": 0, "passes": 8}, {"format": "mixed", "passes": 8}),
        ({"vector": 0}, {"format": "vectors"}),
        ({"bits": 2, "vector": 4}, {"bits": 2, "format": "vectors", "dimension": 4}),
        ({"method": "aqlm"}, {"method": "aqlm"}),
        ({"method": "gptq", "vector": 0}, {"method": "gptq"}),
        ({"incoherence": "all"}, {"rotation": "residual,values"}),
    ],
)
def test_former_settings_read_as_todays(former, modern):
    assert modern_settings({**FORMER, **former}) == QuantizeSettings(**modern).to_json()


@pytest.mark.parametrize(
    "wrong", [None, [], "x", {}, {"trellis": []}, {**FORMER, "bits": "x"}, {**FORMER, "razor": 3},
              {**FORMER, "method": []}, {**FORMER, "incoherence": {}}, {**FORMER, "bits": 1e999},
              {**FORMER, "vector": {}}]
)  # fmt: skip
def test_settings_that_are_none_do_not_crash(wrong):
    modern_settings(wrong)


def test_a_checkpoint_of_former_settings_is_continued_or_refused(tmp_path):
    options = {"sequences": 4, "sequence_length": 32, "passes": 0, "format": "vectors", "bits": 2}
    choice, out = CalibrationChoice(), tmp_path / "q"

    def quantized(**more):
        return quantize_model(str(DEMO), out, QuantizeSettings(**{**options, **more}), choice, quiet=True)

    manifest = quantized().manifest
    shards = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    former = {**FORMER, "sequences": 4, "sequence_length": 32, "passes": 0, "vector": 0, "bits": 2}
    identity = {name: manifest[name] for name in ("format_version", "source", "calibration", "integers")}
    identity |= {"format_version": 1, "settings": former}
    old = {
        "tool_version": manifest["tool_version"],
        **identity,
        "fingerprint": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        "layers": manifest["blocks"],
    }
    (out / "athena.json").write_text(json.dumps(old))
    sorted(out.glob("*.safetensors"))[-1].unlink()
    with pytest.raises(InputError, match="format was 'vectors', now 'codebook'"):
        quantized(format="codebook")
    assert quantized().manifest["fingerprint"] == manifest["fingerprint"] != old["fingerprint"]
    assert shards == {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("options", [
    "--method rtn", "--method gptq", "--method squeezellm", "--method aqlm", "--method qrazor", "--method tender",
    "--method abq", "--method abq --bits 2 --bit-balance", "--method abq --activation-bits 0",
    "--method tender --activation-bits 8", "--method gptq --activation-bits 8 --activation-groups 8", "--method keep",
    "--format codebook", "--format vectors", "--format trellis", "--format mxfp4 --bits 4", "--group-size 64",
    "--rank 4", "--state-bits 8 --format trellis", "--activation-bits 8", "--outliers 0.01", "--bits 8",
    "--guided --guided-groups 2", "--budget 3.5", "--no-spread", "--no-asymmetric", "--equalize", "--rotation values",
    "--dimension 2 --bits 2 --format vectors", "--nested 2 --bits 4",
])  # fmt: skip
def test_a_preset_gives_way_to_what_is_asked(preset, options):
    """What a preset sets never makes an option fail that goes with a default of its own."""
    if preset == "best" and {"qrazor", "tender", "abq", "keep", "mxfp4", "aqlm", "8"} & set(options.split()):
        return  # tuning is what they exclude, and who asks for the best is told
    settings = asked("--preset", preset, *options.split()).settings
    assert not settings.spread or settings.effective_budget == settings.bits + 0.1
    if options.startswith("--method"):
        assert not settings.spread and not settings.asymmetric
