"""The commands as a user runs them: output, JSON, exit codes, and that nothing existing is damaged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from export import __version__
from runtime_py.load import open_model
from runtime_py.machine.isa import available
from tests.conftest import shared


def athena(*arguments, code=0, given=None):
    """given: what it reads on stdin."""
    command = [sys.executable, "-m", "toolchain", *map(str, arguments)]
    result = subprocess.run(command, input=given, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    return result


def athena_json(*arguments):
    return json.loads(athena(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def exported(demo_model, demo_text, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "OUT"
    quick = ["--sequences", 32, "--sequence-length", 128, "--calibration", demo_text]
    first = athena_json("export", demo_model, "-o", out, "--bits", 3, *quick, "--calibration-part", "0:0.5")
    return out, first


def test_export_writes_a_complete_folder_and_nothing_else(exported):
    out, summary = exported
    names = {p.name for p in out.iterdir()}
    runtime = {"model.onnx", "model.onnx.data", "config.json", "generation_config.json", "genai_config.json"}
    assert runtime | {"tokenizer.json", "tokenizer_config.json", "athena.json", "report.html", "report.json"} <= names
    assert [p.name for p in out.parent.iterdir()] == ["OUT"]
    assert 3.0 < summary["size"]["effective_bits"] < 3.15
    assert {"rpi5", "attentionlego (rtl)", "rap", "qrazor-pim"} <= {c["target"] for c in summary["cost"]}


def test_existing_output_is_refused_and_replaced_only_with_force(exported, demo_model, demo_text):
    out, _ = exported
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    result = athena("export", demo_model, "-o", out, code=2)
    assert "exists and is not empty" in result.stderr and result.stderr.count("\n") == 1
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    result = athena("export", demo_model, "-o", out, "--force", "--calibration", "/nonexistent.txt", code=2)
    assert "no such text file" in result.stderr
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before  # a failed run leaves the old folder whole


def test_quantize_and_package_are_the_halves_of_export(exported, demo_model, demo_text, tmp_path):
    out, _ = exported
    quick = ["--sequences", 32, "--sequence-length", 128, "--calibration", demo_text]
    athena_json("quantize", demo_model, "-o", tmp_path / "q", "--bits", 3, *quick, "--calibration-part", "0:0.5")
    athena("package", tmp_path / "q", "-o", tmp_path / "m")
    for name in ("model.onnx", "model.onnx.data", "athena.json", "genai_config.json"):
        assert (tmp_path / "m" / name).read_bytes() == (out / name).read_bytes()


def test_run(exported):
    out, _ = exported
    text = athena("run", out, "--prompt", "Once upon a time", "--max-tokens", 20)
    assert text.stdout.startswith("Once upon a time, and the")
    assert re.search(r"\[20 tokens, first after [\d.]+ s, \d+ tokens/s\]", text.stderr)
    data = athena_json("run", out, "--max-tokens", 20)
    assert "Once upon a time" + data["text"] + "\n" == text.stdout and len(data["token_ids"]) == 20
    sampled = [
        athena_json("run", out, "--max-tokens", 20, "--temperature", 1.0, "--seed", seed)["text"] for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    for option in (["--max-tokens", 0], ["--temperature", -1], ["--top-p", 2]):
        assert option[0] in athena("run", out, *option, code=2).stderr


@pytest.mark.long
def test_eval_both_sides(exported, demo_model, demo_text):
    out, _ = exported
    common = ["--text", demo_text, "--part", "0.5:1", "--limit", 12, "--window", 128]
    source = athena_json("eval", demo_model, *common)
    assert source["kl"] is None and source["tokens"] == 12 * 127
    ours = athena_json("eval", out, *common, "--reference", demo_model)
    assert {"perplexity", "stderr", "kl", "top1_agreement"} <= set(ours)
    assert ours["reference_perplexity"] == pytest.approx(source["perplexity"], rel=1e-6)
    assert 0 < ours["kl"] < 1 and 0.4 < ours["top1_agreement"] < 1
    assert source["perplexity"] < ours["perplexity"] < 2 * source["perplexity"]
    same = athena_json("eval", demo_model, *common, "--reference", demo_model)
    assert same["kl"] == 0 and same["top1_agreement"] == 1
    report = json.loads((out / "report.json").read_text())
    assert report["quality"]["kl"] == ours["kl"] and "athena-export eval" in report["quality"]["command"]
    assert f"{ours['perplexity']:.3f}" in (out / "report.html").read_text()


@pytest.mark.long
def test_eval_matches_the_recorded_float32_figure():
    """Needs scribe-6M: its perplexity was recorded when it was trained."""
    model, text = shared("models/scribe-6M"), shared("text/scribe_valid.txt")
    expected = json.loads((model / "expected.json").read_text())
    # the recipe takes the first 300,000 characters; the first windows of both cuts are the same
    data = athena_json("eval", model, "--text", text, "--limit", 376)
    assert data["tokens"] == expected["tokens"]
    assert data["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-4)


def test_inspect(exported):
    out, summary = exported
    data = athena_json("inspect", out)
    assert data["effective_bits"] == summary["size"]["effective_bits"]
    assert sum(t["bytes"] for t in data["tensors"]) + data["shared_bytes"] == data["bytes"]
    assert data["shared_bytes"] % 256 == 0 and data["shared_bytes"] <= 3 * 256  # levels of trellis codes, by width
    # every byte that inspect counts is in the two files, and nothing large is there that it does not count
    assert data["bytes"] <= sum(data["files"].values()) < data["bytes"] + 120_000
    table = athena("inspect", out).stdout
    assert "layers.0.self_attn.q_proj" in table and "9 norms and biases" in table and "effective bits" in table
    assert max(map(len, table.splitlines())) <= 80


def test_cost_and_targets(exported):
    out, _ = exported
    data = athena_json(
        "cost", out, "--target", "rpi5", "--target", "attentionlego", "--phase", "decode", "--context", 256
    )
    assert [set(t) >= {"latency_s", "energy_j", "area_mm2"} for t in data["targets"]] == [True, True]
    assert data["targets"][0]["area_mm2"] is None
    assert athena_json("cost", out, "--target", "rpi5", "--phase", "prefill")["latency_s"] > 0
    assert "tokens/s" in athena("cost", out).stdout
    assert {"rpi5", "attentionlego", "rap", "portable"} <= {t["name"] for t in athena_json("targets")["targets"]}
    assert "target 'abacus' is unknown" in athena("cost", out, "--target", "abacus", code=2).stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["export", "MODEL", "-o", "OUT", "--bits", "9"], "--bits must be 1 to 8"),
        (["export", "MODEL", "-o", "OUT", "--method", "magic"], "choose one of athena, rtn, gptq, squeezellm"),
        (["run", "/nonexistent"], "/nonexistent/model.onnx: this file is missing"),
        (["inspect", "/nonexistent"], "athena.json: this file is missing"),
        (["eval", "MODEL", "--text", "/nonexistent"], "no such text file"),
        (["package", "/nonexistent", "-o", "OUT"], "athena.json: this file is missing"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(demo_model, tmp_path, arguments, message):
    places = {"MODEL": demo_model, "OUT": tmp_path / "OUT"}
    result = athena(*[places.get(a, a) for a in arguments], code=2)
    assert message in result.stderr and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert result.stdout == "" and not (tmp_path / "OUT").exists()
    assert "Traceback" in athena(*[places.get(a, a) for a in arguments], "--debug", code=2).stderr


def test_help_shows_what_it_says():
    """Brackets in front of a letter are markup to rich, which drops them and all they hold."""
    from typer.main import get_command

    from toolchain.cli import app

    texts = [
        str(getattr(parameter, "help", ""))
        for command in get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
    ]
    assert len(texts) > 100 and [text for text in texts if re.search(r"\[[a-zA-Z/#@]", text)] == []


def test_the_version_is_told():
    assert athena("--version").stdout == f"athena-export {__version__}\n"


def test_help_is_instant_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['athena-export', '--help']\n"
        "from toolchain.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numba', 'numpy', 'onnx', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]")
    assert all(name in out for name in ("export", "quantize", "package", "run", "eval", "inspect", "cost", "targets"))


def test_generated_text_is_the_source_models_story(tmp_path):
    """Four bits of stories260K tell the beginning that its expected.json records, word for word: so it needs it.

    Three bits of so small a model meet another girl with every change of a rounding.
    """
    source, out = shared("models/stories260K"), tmp_path / "OUT"
    quick = ["--sequences", 32, "--sequence-length", 128, "--calibration", shared("text/tinystories_val.txt")]
    athena("export", source, "-o", out, "--bits", 4, *quick, "--calibration-part", "0:0.5")
    expected = json.loads((source / "expected.json").read_text())["greedy"][0]
    text = athena_json("run", out, "--prompt", expected["prompt"], "--max-tokens", 60)["text"]
    assert (expected["prompt"] + text).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play"
    )


def test_singular_hessian_is_damped_and_said(demo_model, demo_text, tmp_path):
    tiny = ["--sequences", 1, "--sequence-length", 16, "--damping", 0, "--calibration", demo_text]
    result = athena("quantize", demo_model, "-o", tmp_path / "q", *tiny)
    assert "model.layers.0.self_attn.q_proj: Hessian is singular, damping raised to" in result.stderr


def test_chat_template_is_carried_over(demo_model, demo_text, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(demo_model, source, copy_function=shutil.copyfile)
    source.chmod(0o755)
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    quick = ["--sequences", 4, "--sequence-length", 64, "--passes", 0, "--calibration", demo_text]
    athena("export", source, "-o", tmp_path / "OUT", *quick)
    assert (tmp_path / "OUT" / "chat_template.jinja").read_text() == template


def test_a_small_install_runs_costs_inspects_and_says_what_quantizing_needs(exported, demo_model, demo_text, tmp_path):
    """A Raspberry Pi has no torch, transformers, safetensors or onnx_ir."""
    out, _ = exported
    absent = ["torch", "transformers", "safetensors", "onnx_ir", "huggingface_hub"]

    def small(*arguments):
        words = ["athena-export", *map(str, arguments)]
        code = f"import sys; sys.modules.update(dict.fromkeys({absent})); sys.argv = {words}; import toolchain.__main__"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    eval_ours = ["eval", out, "--text", demo_text, "--limit", 2, "--no-save"]
    for arguments in (["run", out, "--max-tokens", 3], ["cost", out], ["inspect", out], ["targets"], eval_ours):
        assert small(*arguments).returncode == 0
    for arguments in (["export", demo_model, "-o", tmp_path / "x"], ["eval", demo_model, "--text", demo_text]):
        result = small(*arguments)
        assert result.returncode == 2 and "pip install 'athena-export[quantize]'" in result.stderr


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory):
    """A folder of random codes at the shape of Qwen2.5-0.5B: made in seconds, without any checkpoint."""
    out = tmp_path_factory.mktemp("random") / "OUT"
    size = athena_json("export", "--random", "qwen2.5-0.5b", "-o", out, "--bits", 2)["size"]
    assert 2.0 < size["effective_bits"] < 2.12
    return out


def test_random_codes_of_a_trellis(tmp_path):
    """Laid out as the quantizer lays them out; tests/runtime_py/engine/test_paths.py runs such a folder."""
    from export.artefacts.reader import read_graph
    from export.contract.formats.trellis import TRELLIS_MATMUL

    options = ("--bits", 3, "--format", "mixed", "-o", tmp_path / "OUT")
    assert 3.0 < athena_json("export", "--random", "scribe-6m", *options)["size"]["effective_bits"] < 3.1
    layouts = [n.matrix_layout() for n in read_graph(tmp_path / "OUT").nodes if n.op_type == TRELLIS_MATMUL]
    assert len(layouts) == 42 and {layout.state_bits for layout in layouts} == {8}


@pytest.mark.long
def test_bench_of_a_real_shape(random_folder):
    quick = ("--rounds", 1, "--tokens", 4, "--prompt-lengths", "32", "--depths", "16")
    data = athena_json("bench", random_folder, *quick)
    assert data["prefill"]["tokens_per_s"] > data["decode"]["tokens_per_s"] > 0
    assert 0 < data["decode"]["bandwidth_fraction"] < 1.5
    # the vocabulary product alone reads 136 MB, the blocks 358 million weights at two bits
    assert data["decode"]["bytes_per_token"] == pytest.approx(151936 * 896 + 358e6 * 2.06 / 8, rel=0.02)
    # nothing is copied at load: files, cache and 150 MB, plus the compiler's memory where the kernels were not cached
    assert data["file_bytes"] < data["peak_rss_bytes"] < 1.15 * data["file_bytes"] + 450e6
    table = athena("bench", random_folder, *quick).stdout
    assert "prefill 32" in table and "of the" in table


def test_a_start_from_objects_is_one_without_numba(exported):
    out, _ = exported
    tokens = athena_json("run", out, "--max-tokens", 3)["token_ids"]  # compiles what is missing
    code = "import sys; sys.modules['numba'] = None; from toolchain.cli import main; main()"
    command = [sys.executable, "-c", code, "run", out, "--max-tokens", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["token_ids"] == tokens, done.stderr


def test_a_start_from_objects_imports_little(exported):
    """What takes long to import and is of no use on the way to the first token."""
    out, _ = exported
    athena("run", out, "--max-tokens", 1)  # compiles what is missing
    heavy = (
        "numba", "typer", "click", "rich", "pydantic", "runtime_py.reference.session", "runtime_py.prompt_cache.store",
        "runtime_py.structured.compiler", "runtime_py.structured.forms", "runtime_py.engine.kernels",
        "export.graph.archs", "export.graph.spec", "onnx", "google.protobuf", "numpy.random",
    )  # fmt: skip
    code = (
        "import sys; from toolchain.cli import main; main(); "
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "run", out, "--max-tokens", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_version_is_told_without_importing_the_command_line():
    code = "import sys; from toolchain.cli import main; main(); print('typer' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"athena-export {__version__}\nFalse\n"


@pytest.mark.long
def test_kernels_for_other_machines(exported, tmp_path):
    """Those of an older x86 run here, too, and give the same text."""
    out, _ = exported
    for machine in ("rpi5", "x86-64-v3"):
        made = athena_json("warmup", out, "--machine", machine, "-o", tmp_path / machine)
        assert made["objects"] > 10 and made["bytes"] < 600e3
    assert "not for" in athena("warmup", out, "--kernels", tmp_path / "rpi5", code=2).stderr
    if "avx2" in available():
        environment = {**os.environ, "ATHENA_ISA": "avx2", "ATHENA_CACHE_DIR": str(tmp_path / "cache")}
        run = [sys.executable, "-m", "toolchain"]
        options = {"env": environment, "capture_output": True, "text": True, "check": True}
        subprocess.run([*run, "warmup", out, "--kernels", tmp_path / "x86-64-v3"], **options)
        done = subprocess.run([*run, "run", out, "--max-tokens", "5", "--json"], **options)
        assert "compiling" not in done.stderr
        assert json.loads(done.stdout)["token_ids"] == athena_json("run", out, "--max-tokens", 5)["token_ids"]


def test_warmup_says_what_goes_with_what(exported, tmp_path):
    out, _ = exported
    assert "--machine goes with -o" in athena("warmup", out, "--machine", "rpi5", code=2).stderr
    assert "choose one of this" in athena("warmup", out, "--machine", "cray", "-o", tmp_path / "k", code=2).stderr
    assert "is not a folder" in athena("warmup", out, "--kernels", tmp_path / "none", code=2).stderr


def test_warmup_and_both_sides_of_random(random_folder, tmp_path):
    assert athena_json("warmup", random_folder)["interpreted"] == ""
    for arguments in (
        ["export", "-o", tmp_path / "x"],
        ["export", "M", "--random", "llama-2-7b", "-o", tmp_path / "x"],
    ):
        assert "either MODEL or --random" in athena(*arguments, code=2).stderr
    assert "unknown" in athena("export", "--random", "gpt-5", "-o", tmp_path / "x", code=2).stderr
    assert "whole numbers" in athena("bench", random_folder, "--depths", "a", code=2).stderr
    assert "shorter than every length" in athena("bench", random_folder, "--depths", 99999, code=2).stderr


def test_run_takes_threads_and_activations(exported):
    out, _ = exported
    options = ("--prompt", "Once upon a time", "--max-tokens", 5)
    one = athena_json("run", out, *options, "--threads", 1)["token_ids"]
    assert one == athena_json("run", out, *options, "--threads", 2)["token_ids"]
    assert one == athena_json("run", out, *options, "--no-mmap")["token_ids"]
    assert one == athena_json("run", out, *options, "--cpus", "0")["token_ids"]
    assert "different processors" in athena("run", out, "--cpus", "0,0", code=2).stderr
    assert len(athena_json("run", out, *options, "--activations", "float32")["token_ids"]) == 5
    assert "int8, float32" in athena("run", out, "--activations", "int2", code=2).stderr


@pytest.mark.long
def test_an_export_of_three_gigabytes_needs_less_than_one(tmp_path):
    """External data beyond protobuf's 2 GB, written tensor by tensor; and a token of it through the engine."""
    command = [sys.executable, "-m", "toolchain", "export", "--random", "llama-2-7b", "--bits", "4"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "-o", str(tmp_path / "out"), "--json"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds, peak = time.perf_counter() - start, usage.ru_maxrss * 1024
    size = (tmp_path / "out" / "model.onnx.data").stat().st_size
    print(f"{size / 1e9:.2f} GB in {seconds:.1f} s at {peak / 1e6:.0f} MB")
    assert status == 0 and size > 3e9 and peak < 1e9
    runner, why = open_model(tmp_path / "out", mapped=True)
    assert why == "" and np.isfinite(runner.forward(runner.new_state(), [1, 2], last_only=True)).all()
