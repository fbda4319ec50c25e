"""Lowered models of every family, scheme and odd shape: equal logits, by the standard form where nothing else can."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.contract.errors import InputError
from export.contract.operators.sink_attention import SINK_ATTENTION
from export.lowering import check
from export.lowering import folder as lowering_folder
from export.lowering.matmul_nbits import NBits
from export.model_folder import write_model_folder
from targets.lowering import names
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import TINY, TINY_ENCODERS, FloatCheckpoint, random_text, tiny_model
from tests.export.lowering.test_lowering import lowered, run, same_logits
from tests.runtime_py.reference.test_session import OnnxRuntime
from toolchain.cli.lower import lower
from toolchain.settings.razor import RazorSettings

VOCABULARY = 96
SPEC = importlib.util.find_spec("json")
SCHEMES = {
    "2 bits": {"bits": 2},
    "rtn 2 bits": {"bits": 2, "method": "rtn"},
    "3 bits": {"bits": 3},
    "4 bits": {"bits": 4, "method": "rtn"},
    "8 bits": {"bits": 8, "method": "rtn"},
    "groups of 16": {"bits": 3, "group_size": 16},
    "groups of 12": {"bits": 3, "group_size": 12},
    "groups of 5": {"bits": 4, "group_size": 5, "method": "rtn"},
    "coded scales": {"bits": 3, "scale_bits": 4},
    "float scales": {"bits": 3, "scale_bits": 16},
    "outliers": {"bits": 3, "outliers": 0.02},
    "low rank": {"bits": 3, "rank": 2},
    "vectors": {"bits": 2, "format": "vectors", "dimension": 2},
    "trellis": {"bits": 3, "format": "trellis"},
    "trellis sums": {"bits": 3, "format": "trellis", "levels": "sums"},
    "razored weights": {"method": "qrazor", "bits": 4, "razor": RazorSettings(activation_bits=8)},
    "razored cache": {"method": "qrazor", "bits": 4, "razor": RazorSettings(activation_bits=8, kv=8, kv_unit="head")},
    "float16 embeddings": {"bits": 3, "embedding_bits": 16},
    "2-bit embeddings": {"bits": 3, "embedding_bits": 2},
}


QUICK = ("rtn 2 bits", "groups of 12", "outliers", "vectors", "razored cache")


def others_long(cases, quick):
    """Parameters of which the quick ones run always."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.long) for case in cases]


def float_folder(work: Path, variant: str, **more) -> Path:
    """The family's export with float32 weights: only attention can change."""
    tiny_model(variant, work / "source", **more)
    (work / "float").mkdir()
    write_model_folder(FloatCheckpoint(work / "source"), work / "float")
    return work / "float"


def quantized_folder(work: Path, variant: str, shape: dict | None = None, **settings) -> Path:
    tiny_model(variant, work / "source", **(shape or {}))
    text, chosen = random_text(work / "text.txt"), {"sequences": 2, "sequence_length": 16, "passes": 1, **settings}
    return _package(_checkpoint(work / "source", str(text), None, work / "q", **chosen), work / "model")


def attention_shape(heads: int, kv_heads: int, head_dim: int) -> dict:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "hidden_size": heads * 8}  # fmt: skip


def check_attention(work: Path, variant: str, head_dim: int, more: dict) -> None:
    folder = float_folder(work, variant, **more)
    done = lowered(folder, work / "out", passes=("group_query_attention",), share_cache=True)
    layers = len(done.get("kept", [])) + done["attention_nodes"]
    expected = layers if head_dim % 8 == 0 else 0
    assert done["attention_nodes"] == expected and layers >= 2
    assert all(k["reason"] == f"head size {head_dim} is no multiple of 8" for k in done.get("kept", []))
    assert done["check"]["run"] and done["check"]["difference"] < 1e-5
    config = json.loads((work / "out" / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] is bool(expected)
    assert config["model"]["decoder"]["head_size"] == head_dim
    same_logits(folder, work / "out", VOCABULARY, 2e-5)


@pytest.mark.parametrize(
    "heads, kv_heads, head_dim", [(4, 2, 12), (4, 4, 2), (6, 2, 24), (3, 1, 8), (8, 1, 40), (2, 2, 18)]
)
def test_attention_of_odd_shapes(heads, kv_heads, head_dim, tmp_path):
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    check_attention(tmp_path, "llama", head_dim, {**rope, **attention_shape(heads, kv_heads, head_dim)})


@pytest.mark.long
@pytest.mark.parametrize("head_dim", [*range(2, 21, 2), 24, 28, 32, 40, 48, 56, 64, 80, 96, 100, 112, 128, 256])
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (2, 1), (6, 2), (4, 4), (8, 1)])
@pytest.mark.parametrize("variant", ["mistral", "gemma2", "qwen3"])
def test_every_head_size_with_groups_windows_and_soft_caps(variant, heads, kv_heads, head_dim, tmp_path):
    check_attention(tmp_path, variant, head_dim, attention_shape(heads, kv_heads, head_dim))


@pytest.mark.parametrize("variant, head_dim, more", [
    ("gpt_neox", 12, {"hidden_size": 48, "rotary_pct": 0.5}),
    ("gpt_neox", 16, {"hidden_size": 64, "rotary_pct": 0.25}),
    ("phi", 20, {"hidden_size": 80, "partial_rotary_factor": 0.4}),
    ("stablelm", 24, {"hidden_size": 96, "partial_rotary_factor": 0.25}),
    ("opt", 10, {"hidden_size": 40, "word_embed_proj_dim": 40}),
    ("gpt2", 6, {"n_embd": 24}),
    ("smollm3", 8, {"no_rope_layers": [1, 0, 1, 0]}),
    ("mistral", 8, {"sliding_window": 1}),
    ("mistral", 8, {"sliding_window": 2**24}),
    ("gemma3_text", 16, {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 3}),
    ("granite", 8, {"attention_multiplier": 1e-3}),
])  # fmt: skip
def test_partial_rotations_positions_and_windows(variant, head_dim, more, tmp_path):
    check_attention(tmp_path, variant, head_dim, more)


@pytest.mark.parametrize("scheme", others_long(SCHEMES, QUICK))
def test_every_scheme(scheme, tmp_path):
    """Float32 activations give the logits of the portable folder; int8 ones give them about."""
    folder = quantized_folder(tmp_path, "llama", {"intermediate_size": 52}, **SCHEMES[scheme])
    done = lowered(folder, tmp_path / "out", passes=("group_query_attention", "matmul_nbits"))
    assert done["check"]["difference"] < 1e-4 and done["matrices"] is not None
    same_logits(folder, tmp_path / "out", VOCABULARY, 1e-4 if "razored" in scheme else 2e-5)
    kept = {(k["operator"], k["reason"]) for k in done.get("kept", [])}
    width = scheme.removeprefix("groups of ")
    assert kept == {
        "groups of 12": {("CodebookMatMul", f"groups of {width} columns do not fill blocks of 16")},
        "groups of 5": {("CodebookMatMul", f"groups of {width} columns do not fill blocks of 16")},
        "outliers": {("SparseMatMul", "sparse weights have no counterpart")},
        "razored weights": {("SdrMatMul", "integers have no counterpart")},
        "razored cache": {("SdrMatMul", "integers have no counterpart"),
                          ("SdrAttention", "a razored cache has no counterpart")},
    }.get(scheme, set())  # fmt: skip
    about = lowered(folder, tmp_path / "int8", nbits=NBits())
    assert about["check"]["difference"] < 0.1


@pytest.mark.parametrize(
    "variant", others_long([v for v in (*TINY, *TINY_ENCODERS) if " " not in v], ("bert", "gemma2"))
)
def test_every_family_in_three_bits(variant, tmp_path):
    folder = quantized_folder(tmp_path, variant, bits=3)
    done = lowered(folder, tmp_path / "out", nbits=NBits())
    sinks = {SINK_ATTENTION: "attention with sinks keeps its function body"} if variant == "gpt_oss" else {}
    assert {node["operator"]: node["reason"] for node in done.get("kept", [])} == sinks
    assert len(done["matrices"]) > 8 and done["check"]["difference"] < 0.1
    assert done["attention_nodes"] == (0 if variant in TINY_ENCODERS else len(
        [n for n in onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.node
         if n.op_type == "Attention"]))  # fmt: skip


def test_a_batch_padded_on_the_left_is_refused_not_computed_wrongly(tmp_path):
    """Of the operator's own lengths: whichever sequence begins with padding, by name; on the right it computes."""
    folder = float_folder(tmp_path, "llama")
    lowered(folder, tmp_path / "out", passes=("group_query_attention",))
    model, ids = OnnxRuntime(tmp_path / "out"), np.arange(10).reshape(2, 5)
    places = np.arange(5)[None].repeat(2, 0)
    for row in range(2):
        mask = np.ones((2, 5), np.int64)
        mask[row, :2] = 0
        with pytest.raises(Exception, match="batches_must_be_padded_on_the_right"):
            model.run(ids, mask, places, model.empty(2))
        mask[row] = [1, 1, 1, 0, 0]
        assert np.isfinite(model.run(ids, mask, places, model.empty(2))[0][1 - row]).all()


def changed_attention(source: Path, folder: Path, change) -> Path:
    shutil.copytree(source, folder)
    model = onnx.load(str(source / "model.onnx"), load_external_data=False)
    change(next(node for node in model.graph.node if node.op_type == "Attention"), model.graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def set_attribute(name: str, value):
    def change(node, graph):
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return change


@pytest.mark.parametrize(
    "change, reason",
    [
        (set_attribute("scale", 0.0), "its scale is not positive"),
        (set_attribute("qk_matmul_output_mode", 1), "attribute qk_matmul_output_mode has no counterpart"),
        (set_attribute("kv_num_heads", 3), "4 heads are no multiple of 3 key-value heads"),
        (set_attribute("softcap", -1.0), "its softcap is negative"),
        (set_attribute("is_causal", 0), "it is not causal"),
    ],
)
def test_one_layer_that_has_no_counterpart_stays(change, reason, tmp_path, monkeypatch):
    """The other is replaced; the cache is then not shared. (onnxruntime may refuse both forms: not what is tested.)"""
    monkeypatch.setattr(check, "_ask", lambda request: {"onnxruntime": "0", "difference": 0.0})
    folder = changed_attention(float_folder(tmp_path, "llama"), tmp_path / "changed", change)
    done = lowered(folder, tmp_path / "out", passes=("group_query_attention",), share_cache=True)
    assert done["attention_nodes"] == 1 and [(k["operator"], k["reason"]) for k in done["kept"]] == [
        ("Attention", reason)
    ]
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] is False


def test_accuracy_levels():
    for level in (-1, 5, 9):
        with pytest.raises(InputError, match=f"accuracy_level must be one of 0, 1, 2, 3, 4, not {level}"):
            NBits(accuracy_level=level)


def test_other_numbers_are_refused(tmp_path, monkeypatch):
    """A pass that computes something else is found, whatever it is: here the soft cap of one layer gets lost."""
    from export.lowering import group_query_attention as pass_

    folder, replaced = float_folder(tmp_path, "gemma2", attn_logit_softcapping=0.05), pass_._replace

    def wrong(graph, node, lengths):
        node.attributes.pop("softcap")
        replaced(graph, node, lengths)

    monkeypatch.setattr(pass_, "_replace", wrong)
    with pytest.raises(InputError, match=r"computes something else: off by .* of the spread, 0.1 % are allowed"):
        lowered(folder, tmp_path / "out", passes=("group_query_attention",))


@pytest.mark.parametrize(
    "script, message",
    [
        ("raise SystemExit(3)", "its process ended with 3"),
        ("import os; os.kill(os.getpid(), 11)", "its process ended with -11"),
        ("import sys; print('x', file=sys.stderr); sys.exit(1)", "its process ended with 1: x"),
        (
            'print(\'noise\'); print(\'{"onnxruntime": "9", "error": "Fail: no"}\')',
            "onnxruntime 9 cannot run .*Fail: no",
        ),
    ],
)
def test_what_onnxruntime_cannot_run_is_one_line(script, message, tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(script)
    monkeypatch.setattr(check, "_SCRIPT", tmp_path / "script.py")
    with pytest.raises(InputError, match=message) as refused:
        lowered(float_folder(tmp_path, "llama"), tmp_path / "out")
    assert "\n" not in str(refused.value)


def test_the_command_leaves_nothing_when_onnxruntime_refuses(tmp_path):
    """A real refusal: key-value heads that queries are no multiple of. An existing folder stays, with --force, too."""
    folder = changed_attention(float_folder(tmp_path, "llama"), tmp_path / "bad", set_attribute("kv_num_heads", 3))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "athena.json").write_text('{"format_version": 1, "settings": {}}')
    for out, more in ((tmp_path / "new", ()), (tmp_path / "old", ("--force",))):
        failed = run(folder, "--target", "onnxruntime", "-o", out, *more)
        assert failed.returncode == 2 and len(failed.stderr.strip().splitlines()) == 1, failed.stderr
        assert "cannot run what it was lowered to" in failed.stderr
    assert not (tmp_path / "new").exists() and [p.name for p in (tmp_path / "old").iterdir()] == ["athena.json"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("target", names())
def test_the_printed_line_says_what_was_kept_and_checked(target, installed, tmp_path, capsys, monkeypatch):
    """Head size 12 on every target; native's library is left out, and is for another machine."""
    folder = float_folder(tmp_path, "llama", head_dim=12)
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnxruntime" else SPEC)
    if target == "native":
        monkeypatch.setattr(lowering_folder, "build_library", lambda machine, path: path.write_bytes(b""))
        monkeypatch.setattr(lowering_folder, "local_machine", lambda: None)
    lower(folder, target, tmp_path / "out")
    line = capsys.readouterr().out.strip()
    assert len(line.splitlines()) == 1 and (tmp_path / "out" / "model.onnx").exists()
    kept = "2 Attention kept (head size 12 is no multiple of 8)"
    assert (kept in line) == (target in ("native", "onnxruntime", "genai"))
    told = json.loads((tmp_path / "out" / "athena.json").read_text())["lowering"]
    if not installed:
        assert line.endswith("not checked: onnxruntime is not installed")
    elif target == "native":
        assert "; not checked: it is for " in line
    else:
        assert f"; onnxruntime {onnxruntime.__version__} runs it" in line and told["check"]["run"]
