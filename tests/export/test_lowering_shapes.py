"""Lowered models of every family, scheme and odd shape: equal logits, by the standard form where nothing else can."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from export.folder import write_model_folder
from export.lowering.matmul_nbits import NBits
from tests.conftest import _checkpoint, _package
from tests.export.families import TINY, TINY_ENCODERS, FloatCheckpoint, random_text, tiny_model
from tests.export.test_lowering import lowered, same_logits
from toolchain.quantize.razor_settings import RazorSettings

VOCABULARY = 96
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
    "vectors": {"bits": 2, "vector": 2},
    "trellis": {"bits": 3, "trellis": "all"},
    "razored weights": {"method": "qrazor", "bits": 4, "razor": RazorSettings(activation_bits=8)},
    "razored cache": {"method": "qrazor", "bits": 4, "razor": RazorSettings(activation_bits=8, kv=8, kv_unit="head")},
    "float16 embeddings": {"bits": 3, "embedding_bits": 16},
    "2-bit embeddings": {"bits": 3, "embedding_bits": 2},
}


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
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}


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
    ("mistral", 8, {"sliding_window": 2**40}),
    ("gemma3_text", 16, {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 3}),
    ("granite", 8, {"attention_multiplier": 1e-3}),
])  # fmt: skip
def test_partial_rotations_positions_and_windows(variant, head_dim, more, tmp_path):
    check_attention(tmp_path, variant, head_dim, more)


@pytest.mark.parametrize("scheme", SCHEMES)
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


@pytest.mark.parametrize("variant", [v for v in (*TINY, *TINY_ENCODERS) if " " not in v])
def test_every_family_in_three_bits(variant, tmp_path):
    folder = quantized_folder(tmp_path, variant, bits=3)
    done = lowered(folder, tmp_path / "out", nbits=NBits())
    assert "kept" not in done and len(done["matrices"]) > 8 and done["check"]["difference"] < 0.1
    assert done["attention_nodes"] == (0 if variant in TINY_ENCODERS else len(
        [n for n in onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.node
         if n.op_type == "Attention"]))  # fmt: skip
