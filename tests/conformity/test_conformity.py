"""onnx's own tools, onnxruntime at every level, onnxruntime-genai and optimum on the folder of every family.

Run by `make test-conformity`, which sets up optimum's environment (ATHENA_OPTIMUM: its python) and prints the table
of README from the outcomes (table.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import AutoModel, AutoModelForCausalLM

from export.artefacts.checkpoint import QuantizedCheckpoint
from export.artefacts.states import is_recurrent
from export.files.access import read_json
from export.model_folder import write_model_folder
from hw_model.estimate import workload
from runtime_py.load import open_model
from runtime_py.text.encoder import TextEncoder
from tests.conformity import folders
from tests.conftest import DEMO, _checkpoint, _package, shared
from tests.export.graph.families import INTERPRETED, FloatCheckpoint, compare, dequantized_model
from tests.export.graph.test_encoders import compare as compare_encoder
from tests.runtime_py.text.generating import greedy_tokens
from toolchain.settings.razor import RazorSettings

pytestmark = pytest.mark.conformity
PROMPT = [5, 9, 33, 60, 12, 7]
COUNT = 20
# optimum-onnx 0.1 makes the first, empty cache with as many heads as there are queries and hidden_size / heads columns,
# but for the families of two lists of its own. The same families in shapes where that is right: folders.PLAIN.
OPTIMUM_REFUSES = {
    "qwen3": "index: 3 Got: 8 Expected: 16",
    "olmo2": "index: 1 Got: 4 Expected: 2",
    "gemma2": "index: 1 Got: 4 Expected: 2",
    "phi": "index: 1 Got: 4 Expected: 2",
    "phi3": "index: 1 Got: 4 Expected: 2",
    "starcoder2": "index: 1 Got: 4 Expected: 2",
    "cohere2": "index: 1 Got: 4 Expected: 2",
    "ernie4_5": "index: 3 Got: 8 Expected: 16",
    "exaone4": "index: 1 Got: 4 Expected: 2",
    "glm4": "index: 3 Got: 8 Expected: 16",
    "hunyuan_v1_dense": "index: 3 Got: 8 Expected: 16",
    "olmo3": "index: 1 Got: 4 Expected: 2",
    "mixtral": "index: 1 Got: 4 Expected: 2",
    "olmoe": "index: 1 Got: 4 Expected: 2",
    "gemma3n_text": "index: 1 Got: 4 Expected: 2",
    "qwen3_moe": "index: 3 Got: 8 Expected: 16",
}
OPTIMUM_LACKS = {  # families that its older transformers does not have, or whose states its cache does not have
    "internlm3": "does not recognize this architecture",
    "ministral3": "does not recognize this architecture",
    "qwen3_5_text": "does not recognize this architecture",
    "qwen3_5_moe_text": "does not recognize this architecture",
    "gemma4_text": "does not recognize this architecture",
    "lfm2": "Input past_conv.1 is required by model but not provided",
    "lfm2_moe": "does not recognize this architecture",
    "mamba2": "does not support pkv cache reuse",
    "granitemoehybrid": "layer_types must be a list strings in",
    "nemotron_h": "does not recognize this architecture",
    "falcon_h1": "Input past_key_values.0.conv_state is required by model but not provided",
}


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    chosen = os.environ.get("ATHENA_CONFORMITY_WORK")
    return Path(chosen) if chosen else tmp_path_factory.mktemp("conformity")


@pytest.fixture(scope="session", params=folders.names())
def folder(request, work) -> Path:
    return folders.build(request.param, work)


def is_encoder(folder: Path) -> bool:
    return folder.name in folders.ENCODERS


def feeds_of(session_inputs, tokens: list[int], cache=np.float32) -> dict[str, np.ndarray]:
    """Inputs of one whole sequence without a past, of this type; shapes from the declared ones."""
    ids = np.asarray([tokens], np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids),
             "position_ids": np.arange(ids.shape[1])[None]}  # fmt: skip
    for name, shape in session_inputs:
        if name.startswith("past_"):
            recurrent = is_recurrent(name)
            sizes = [1, *(size if isinstance(size, int) else 0 for size in shape[1:])]
            feeds[name] = np.zeros(sizes, np.float32 if recurrent else cache)
    return {name: feeds[name] for name, _ in session_inputs}


def session_of(folder: Path, level) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options)


def run_session(session, tokens: list[int]) -> np.ndarray:
    """Logits, or states of an encoder."""
    name = session.get_outputs()[0].name
    cache = np.uint8 if any(i.type == "tensor(uint8)" for i in session.get_inputs()) else np.float32
    return session.run([name], feeds_of([(i.name, i.shape) for i in session.get_inputs()], tokens, cache))[0][0]


def test_checker_and_shape_inference(folder):
    path = str(folder / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    onnx.shape_inference.infer_shapes_path(path, str(folder / "inferred.tmp"), strict_mode=True, data_prop=True)
    (folder / "inferred.tmp").unlink()
    model = onnx.load(path, load_external_data=False)
    assert model.ir_version == 11 and {o.domain: o.version for o in model.opset_import} == {"": 23, "ai.athena": 1}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert all(node.name.startswith("/") for node in model.graph.node)  # readable paths, as Netron shows them


def test_equals_transformers(folder, work, tmp_path):
    """The family's float32 export, or a real model's quantized one, against transformers: within 1e-4 (1e-3 of 6M)."""
    if folder.name in folders.REAL:
        source = folders.SHARED / folders.REAL[folder.name]
        checkpoint = QuantizedCheckpoint(work / "sources" / folder.name / "quantized")
        compare(dequantized_model(source, checkpoint), folder, 1e-3)
        return
    source = work / "sources" / folder.name / "source"
    write_model_folder(FloatCheckpoint(source), tmp_path)
    if folder.name in folders.EMBEDDING:
        states = AutoModel.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
        found = session_of(tmp_path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
        with torch.no_grad():
            expected = states(torch.tensor([PROMPT]), use_cache=False).last_hidden_state[0].numpy()
        np.testing.assert_allclose(run_session(found, PROMPT), expected, atol=1e-4)
        return
    kind = AutoModel if is_encoder(folder) else AutoModelForCausalLM
    model = kind.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    (compare_encoder if is_encoder(folder) else compare)(model, tmp_path, 1e-4)


def test_reference_evaluator(folder):
    evaluator = ReferenceEvaluator(str(folder / "model.onnx"))
    shapes = [
        (n, [d.dim_value for d in t.tensor_type.shape.dim])
        for n, t in zip(evaluator.input_names, evaluator.input_types)
    ]
    first = evaluator.output_names[0]
    with np.errstate(all="ignore"):
        found = evaluator.run([first], feeds_of(shapes, PROMPT))[0][0]
    expected = run_session(session_of(folder, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL), PROMPT)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_onnxruntime_at_every_optimization_level(folder):
    levels = onnxruntime.GraphOptimizationLevel
    chosen = (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_ENABLE_EXTENDED, levels.ORT_ENABLE_ALL)
    results = [run_session(session_of(folder, level), PROMPT) for level in chosen]
    for found in results[1:]:
        np.testing.assert_allclose(found, results[0], atol=1e-5 * np.abs(results[0]).max())


def test_our_runtime(folder):
    """The interpreter token by token as onnxruntime; the engine plans the graph."""
    if is_encoder(folder):
        expected = run_session(session_of(folder, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL), PROMPT)
        np.testing.assert_allclose(TextEncoder(folder, "float32").states(PROMPT), expected, atol=1e-4)
        assert TextEncoder(folder).interpreted == ""
        return
    assert ours(folder) == onnxruntime_tokens(folder)
    assert (open_model(folder)[1] == "") == (folder.name.removesuffix(" plain") not in INTERPRETED)


def ours(folder: Path) -> list[int]:
    session, _ = open_model(folder, "float32")
    return greedy_tokens(session, session.new_state(), PROMPT, COUNT)


def onnxruntime_tokens(folder: Path) -> list[int]:
    """Without a cache: the whole sequence again for every token, so that nothing but the graph is trusted."""
    session, tokens = session_of(folder, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL), list(PROMPT)
    for _ in range(COUNT):
        tokens.append(int(run_session(session, tokens)[-1].argmax()))
    return tokens[len(PROMPT) :]


def genai_tokens(folder: Path) -> list[int]:
    og = pytest.importorskip("onnxruntime_genai")
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(PROMPT) + COUNT, min_length=len(PROMPT) + COUNT, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(t) for t in generator.get_sequence(0)][len(PROMPT) :]


def without_end(folder: Path, tokens: list[int]) -> list[int]:
    """Up to the first end-of-sequence token: min_length makes genai pass over it."""
    end = read_json(folder / "genai_config.json")["model"]["eos_token_id"]
    stops = set(end if isinstance(end, list) else [end])
    return tokens[: next((i for i, t in enumerate(tokens) if t in stops), len(tokens))]


def test_genai_generates_the_same_tokens(folder):
    if is_encoder(folder):
        pytest.skip("an encoder generates nothing")
    expected = without_end(folder, ours(folder))
    assert genai_tokens(folder)[: len(expected)] == expected


def test_genai_keeps_a_razored_cache(work):
    """Weights, activations and cache of scribe-6M in 4 bits: the tokens of onnxruntime without any cache, and ours.

    Of scribe-6M, because on it no choice is as close as to depend on a flipped code.

    All integers are equal; the floats between them may differ in their last bit, and a code may then flip: not enough
    to change one of these tokens.
    """
    checkpoint = _checkpoint(
        shared("models/scribe-6M"), str(shared("text/scribe_valid.txt")), "0:0.5", work / "razored", method="qrazor",
        bits=4, razor=RazorSettings(activation_bits=4, kv=4), sequences=16,
    )  # fmt: skip
    folder = _package(checkpoint, work / "razored-model")
    assert genai_tokens(folder) == onnxruntime_tokens(folder) == ours(folder)


def test_genai_with_the_native_library(work, native_library):
    """With float32 activations the tokens of the function bodies, with int8 ones those of our runtime."""
    folder, lowered = folders.build(folders.BUNDLED, work), work / "native"
    command = [sys.executable, "-m", "toolchain", "lower", str(folder), "--target", "native", "-o", str(lowered)]
    subprocess.run(command, check=True)
    assert genai_tokens(lowered) == ours(folder)
    path = lowered / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["ai.athena.activations"] = "float32"
    path.write_text(json.dumps(config))
    assert genai_tokens(lowered) == onnxruntime_tokens(folder)


def test_a_peers_export_costs_the_same_work(work):
    """onnxruntime-genai's own builder: com.microsoft operators, packed queries, keys and values."""
    pytest.importorskip("onnxruntime_genai")
    out = work / "genai-builder"
    command = ["-m", str(DEMO), "-o", str(out), "-p", "int4", "-e", "cpu"]
    built = subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", *command], capture_output=True)
    assert built.returncode == 0, built.stderr[-2000:]
    ours = folders.build(folders.BUNDLED, work)
    for phase in ("prefill", "decode"):
        counts = [
            [sum(o.macs for o in workload(f, phase, 100) if o.kind == kind) for kind in ("linear", "attention")]
            for f in (out, ours)
        ]
        assert counts[0] == counts[1]


@pytest.fixture(scope="session")
def optimum(work) -> dict:
    """What optimum makes of every folder, from one run in its environment."""
    python = os.environ.get("ATHENA_OPTIMUM")
    if not python:
        pytest.skip("ATHENA_OPTIMUM does not name the python of an environment with optimum-onnx")
    script = Path(__file__).with_name("optimum_run.py")
    built = [str(folders.build(name, work)) for name in folders.names()]
    done = subprocess.run(
        [python, str(script), *built], input=json.dumps({"tokens": PROMPT, "count": COUNT}), capture_output=True,
        text=True, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},  # its own packages
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_optimum_generates_the_same_tokens(folder, optimum):
    found = optimum[folder.name]
    if folder.name in OPTIMUM_LACKS:
        assert isinstance(found, str) and OPTIMUM_LACKS[folder.name] in found
        pytest.skip("optimum does not have this family")
    if folder.name in OPTIMUM_REFUSES:
        assert isinstance(found, str) and OPTIMUM_REFUSES[folder.name] in found  # when this fails, optimum was mended
        return
    assert not isinstance(found, str), found
    if is_encoder(folder):
        np.testing.assert_allclose(np.asarray(found), TextEncoder(folder, "float32").states(PROMPT), atol=1e-4)
    else:
        assert found == ours(folder)
