"""Quantized sources: what can be undone is undone to the bit, everything else is refused by name."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.contract.errors import InputError
from export.files.access import read_json
from tests.export.graph.families import random_text, tiny_model
from toolchain.calibrate.own_text import whole_model
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.checkpoint import SourceModel
from toolchain.source.checkpoint_files import checkpoint_tensors
from toolchain.source.quantization import source_quantization
from toolchain.source.stored_weights import StoredWeights

LAYER = "model.layers.0.mlp.up_proj"  # 48 x 32
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@pytest.fixture
def model(tmp_path):
    tiny_model("llama", tmp_path)
    return tmp_path


def edit(folder, change, **config):
    """Apply change(tensors) to the stored tensors, and set fields of config.json."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**read_json(folder / "config.json"), **config}))


def put(folder, parts, **config):
    """Replace LAYER's weight by these tensors of its module."""

    def change(tensors):
        del tensors[f"{LAYER}.weight"]
        tensors.update({f"{LAYER}.{name}": value for name, value in parts.items()})

    edit(folder, change, **config)


def slow(codes, scale, zero, rows, columns):
    """(code - zero) * scale, element by element, scales shared by blocks of rows x columns."""
    out = np.empty(codes.shape, np.float32)
    for i in range(codes.shape[0]):
        for j in range(codes.shape[1]):
            at = (i // rows, j // columns)
            code = np.float32(codes[i, j].float())
            out[i, j] = (code - np.float32(zero[at].float())) * np.float32(scale[at].float())
    return torch.from_numpy(out)


def random_codes(dtype):
    values = torch.randn(48, 32, generator=torch.Generator().manual_seed(1)) * 30
    return values.round().clamp(-128, 127).to(torch.int8) if dtype == torch.int8 else values.to(dtype)


# rows and columns that share a scale, and the shape that the scales are stored in
LAYOUTS = {
    "tensor": (48, 32, ()), "tensor as one": (48, 32, (1,)), "tensor as matrix": (48, 32, (1, 1)),
    "channel": (1, 32, (48, 1)), "channel as list": (1, 32, (48,)), "group": (1, 8, (48, 4)),
    "blocks": (16, 16, (3, 2)), "blocks that do not divide": (20, 12, (3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("dtype", [*FLOAT8, torch.int8], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_are_applied(model, layout, dtype, kind, scale_dtype):
    rows, columns, stored = LAYOUTS[layout]
    grid = (-(-48 // rows), -(-32 // columns))
    scale = (torch.rand(grid, generator=torch.Generator().manual_seed(2)) + 0.5).to(scale_dtype)
    codes = random_codes(dtype)
    config = {"quant_method": "fp8", "weight_block_size": [rows, columns]}
    put(model, {"weight": codes, kind: scale.reshape(stored)}, quantization_config=config)
    source = SourceModel(model)
    expected = slow(codes, scale, torch.zeros(grid), rows, columns)
    assert torch.equal(source.tensor(f"{LAYER}.weight", (48, 32)), expected)
    assert source.stored_as == ("int8 with scales" if dtype == torch.int8 else "float8 with scales")
    assert "read as float32" in source.notes()[0]


@pytest.mark.parametrize(
    ("config", "rows"),
    [({}, 128), ({"quant_method": "fp8"}, 128), ({"quant_method": "fp8", "weight_block_size": [160, 128]}, 160),
     ({"quant_method": "fp8", "weight_block_size": None}, 96),
     ({"quant_method": "fp8", "weight_block_size": [96, 16]}, 96)],
)  # fmt: skip
def test_the_size_of_blocks(tmp_path, config, rows):
    """Two scales for 192 rows: what the config says, else what FP8 has by default, else equal parts."""
    codes, scale = random_codes(FLOAT8[0]).repeat(4, 1), torch.tensor([[0.5], [2.0]])
    save_file({"x.weight": codes, "x.weight_scale_inv": scale}, tmp_path / "model.safetensors")
    quantization = source_quantization({"quantization_config": config or None})
    weights = StoredWeights(checkpoint_tensors(tmp_path, {}), quantization)
    assert torch.equal(weights.read("x.weight"), slow(codes, scale, torch.zeros(2, 1), rows, 128))


@pytest.mark.parametrize("layout", ["tensor", "channel", "group"])
def test_zero_points_are_subtracted(model, layout):
    rows, columns, stored = LAYOUTS[layout]
    grid = (48 // rows, 32 // columns)
    scale, zero = torch.rand(grid), torch.randint(-128, 128, grid, dtype=torch.int8)
    codes = random_codes(torch.int8)
    parts = {"weight": codes, "weight_scale": scale.reshape(stored), "weight_zero_point": zero.reshape(stored)}
    put(model, parts, quantization_config={"quant_method": "compressed-tensors", "format": "int-quantized"})
    assert torch.equal(SourceModel(model).tensor(f"{LAYER}.weight"), slow(codes, scale, zero, rows, columns))


@pytest.mark.parametrize("config", [{}, {"quantization_config": {"load_in_8bit": True}}])
def test_bitsandbytes_int8(model, config):
    codes, largest = random_codes(torch.int8), torch.rand(48) * 3
    put(model, {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}, **config)
    expected = codes.double() * largest.double()[:, None] / 127
    torch.testing.assert_close(SourceModel(model).tensor(f"{LAYER}.weight").double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu], ids=str)
def test_scales_that_are_exponents(model, dtype):
    codes, bytes_ = random_codes(torch.float8_e4m3fn), torch.randint(120, 134, (48, 4), dtype=torch.uint8)
    parts = {"weight": codes, "weight_scale_inv": bytes_.view(dtype)}
    put(model, parts, quantization_config={"quant_method": "mxfp8", "weight_block_size": [1, 8]})
    expected = slow(codes, 2.0 ** (bytes_.float() - 127), torch.zeros(48, 4), 1, 8)
    assert torch.equal(SourceModel(model).tensor(f"{LAYER}.weight"), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, *FLOAT8], ids=str)
def test_plain_floats_are_taken_as_they_are(model, dtype):
    def change(tensors):
        tensors.update({name: value.to(dtype) for name, value in tensors.items()})

    edit(model, change)
    stored = load_file(model / "model.safetensors")
    source = SourceModel(model)
    assert source.stored_as is None and source.notes() == []
    for name, value in stored.items():
        assert torch.equal(source.tensor(name), value.float())


def squeezed(text):
    return text.replace("-", "").replace("_", "").lower()


METHODS = ["gptq", "awq", "hqq", "mxfp4", "nvfp4", "aqlm", "quark", "torchao", "vptq", "higgs", "spqr", "eetq",
           "quanto", "bitnet", "auto-round", "intel/auto-round", "sinq", "fp_quant", "exl2", "of-tomorrow"]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "says"),
    [({"quantization_config": {"quant_method": m}}, m.rpartition("/")[2].replace("-", "")) for m in METHODS]
    + [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes 4-bit"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes 4-bit"),
        ({"quantization_config": {"load_in_4bit": True, "load_in_8bit": True}}, "bitsandbytes 4-bit"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "ModelOpt NVFP4"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
        ({"quantization_config": {"group_size": 64, "bits": 4}}, "quant_method"),
        ({"quantization_config": {}}, "quant_method"),
        ({"quantization_config": "gptq"}, "must be an object"),
        ({"quantization_config": {"quant_method": 4}}, "quant_method"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}}, "block"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}}, "block"),
    ],
)
def test_methods_that_cannot_be_undone_are_named(model, config, says):
    edit(model, lambda tensors: None, **config)
    with pytest.raises(InputError) as refused:
        SourceModel(model)
    line = str(refused.value)
    assert squeezed(says) in squeezed(line) and "\n" not in line and "config.json" in line


@pytest.mark.parametrize("field", ["quantization_config", "compression_config"])
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"format": "pack-quantized"}, "pack-quantized"),
        ({"format": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"format": "marlin-24"}, "marlin-24"),
        ({"format": "mixed-precision", "config_groups": {"a": {"format": "pack-quantized"}}}, "pack-quantized"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}, "transform_config"),
    ],
)
def test_compressed_tensors_that_cannot_be_undone(model, field, config, says):
    edit(model, lambda tensors: None, **{field: {"quant_method": "compressed-tensors", **config}})
    with pytest.raises(InputError, match=says):
        SourceModel(model)


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "fp8"}, {"load_in_8bit": True}, {"quant_method": "fbgemm_fp8"}, None]
)
def test_plain_floats_under_a_method_that_can_be_undone(model, quantization):
    expected = load_file(model / "model.safetensors")
    edit(model, lambda tensors: None, quantization_config=quantization)
    source = SourceModel(model)
    assert all(torch.equal(source.tensor(name), value) for name, value in expected.items())


INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.uint16]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", [f"{LAYER}.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_integers_without_a_rule_are_refused(model, dtype, name):
    edit(model, lambda tensors: tensors.update({name: (tensors[name] * 10).to(dtype)}))
    with pytest.raises(InputError, match=f"{name} is of type|quantized already"):
        SourceModel(model).names()


ones = torch.ones
BROKEN = {
    "int8 without its scale": ({"weight": ones(48, 32, dtype=torch.int8)}, "scale is not stored"),
    "a left-over scale": ({"weight": ones(48, 32), "weight_scale": ones(48, 1)}, "whether that is still to be applied"),
    "a left-over SCB": ({"weight": ones(48, 32), "SCB": ones(48)}, "whether that is still to be applied"),
    "two scales": ({"weight": ones(48, 32).to(FLOAT8[0]), "weight_scale": ones(1), "weight_scale_inv": ones(1)}, "two"),
    "too many scales": ({"weight": ones(48, 32).to(FLOAT8[0]), "weight_scale": ones(49, 1)}, "does not fit"),
    "no scales": ({"weight": ones(48, 32).to(FLOAT8[0]), "weight_scale": ones(0, 1)}, "does not fit"),
    "scales of columns": ({"weight": ones(48, 32).to(FLOAT8[0]), "weight_scale": ones(32)}, "does not fit"),
    "blocks that do not divide": ({"weight": ones(48, 32).to(FLOAT8[0]), "weight_scale": ones(5, 3)}, "does not fit"),
    "cubes": ({"weight": ones(48, 32).to(FLOAT8[0]), "weight_scale": ones(48, 1, 2)}, "does not fit"),
    "whole scales": ({"weight": ones(48, 32).to(FLOAT8[0]), "weight_scale": ones(48, 1).int()}, "not one for scales"),
    "byte scales": ({"weight": ones(48, 32).to(FLOAT8[0]), "weight_scale": ones(48, 1).byte()}, "not one for scales"),
    "infinite scale": ({"weight": ones(48, 32).to(FLOAT8[0]), "weight_scale": ones(1) * torch.inf}, "NaN or infinite"),
    "NaN code": ({"weight": (ones(48, 32) * torch.nan).to(FLOAT8[0]), "weight_scale": ones(1)}, "NaN or infinite"),
    "overflow": ({"weight": (ones(48, 32) * 448).to(FLOAT8[0]), "weight_scale": ones(1) * 3e38}, "NaN or infinite"),
    "GPU layout": ({"weight": ones(48, 32).char(), "SCB": ones(48), "weight_format": ones(1).byte()}, "layout"),
    "another name": ({"weight": ones(48, 32).to(FLOAT8[0]), "scale_weight": ones(1)}, "scale_weight"),
    "smoothing": ({"weight": ones(48, 32), "pre_quant_scale": ones(32)}, "pre_quant_scale"),
    "GPTQ": ({"qweight": ones(4, 48).int(), "g_idx": ones(32).int(), "scales": ones(1, 48), "qzeros": ones(1, 6).int()},
             "GPTQ"),
    "AWQ": ({"qweight": ones(32, 6).int(), "scales": ones(1, 48), "qzeros": ones(1, 6).int()}, "AWQ"),
    "packed": ({"weight_packed": ones(48, 4).int(), "weight_scale": ones(48, 1), "weight_shape": ones(2)}, "packed"),
    "NVFP4": ({"weight": ones(48, 16).byte(), "weight_scale": ones(48, 2).to(FLOAT8[0]), "weight_scale_2": ones(1)},
              "NVFP4"),
    "nf4": ({"weight": ones(768, 1).byte(), "weight.absmax": ones(24), "weight.quant_map": ones(16),
             "weight.quant_state.bitsandbytes__nf4": ones(8).byte()}, "bitsandbytes 4-bit"),
    "HQQ": ({"W_q": ones(48, 16).byte(), "scale": ones(48, 1), "zero": ones(48, 1)}, "HQQ"),
    "MXFP4": ({"weight_blocks": ones(48, 1, 16).byte(), "weight_scales": ones(48, 1).byte()}, "MXFP4"),
    "AQLM": ({"codes": ones(48, 4, 1).char(), "codebooks": ones(1, 256, 1, 8), "scales": ones(48, 1, 1, 1)}, "AQLM"),
    "quanto": ({"weight._data": ones(48, 32).char(), "weight._scale": ones(48, 1)}, "quanto"),
    "torchao": ({"_weight_qdata": ones(48, 32).char(), "_weight_scale": ones(48, 1)}, "torchao"),
    "EETQ": ({"weight": ones(48, 32).char(), "weight_scales": ones(32)}, "EETQ|scale is not stored"),
    "MLX": ({"weight": ones(48, 4).to(torch.uint32), "scales": ones(48, 1), "biases": ones(48, 1)}, "MLX"),
    "EXL2": ({"q_weight": ones(4, 48).int(), "q_invperm": ones(32).short(), "q_scale": ones(1, 6).int()}, "EXL2"),
    "no sign": ({"mystery": ones(48, 32)}, "mystery"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_refused(model, case):
    parts, says = BROKEN[case]
    put(model, parts)
    with pytest.raises(InputError, match=says) as refused:
        source = SourceModel(model)
        source.tensor(f"{LAYER}.weight")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize("sign", ["method", "scale elsewhere", "scale under another name"])
def test_float8_whose_scale_is_missing(model, dtype, sign):
    put(model, {"weight": ones(48, 32).to(dtype)})
    if sign == "method":
        edit(model, lambda tensors: None, quantization_config={"quant_method": "fp8"})
    else:
        other = LAYER.replace("up", "gate") + ".weight"
        name = f"{other}_scale" if sign == "scale elsewhere" else "model.layers.0.mlp.up_proj_scale"
        code = dtype if sign == "scale elsewhere" else torch.float32
        edit(model, lambda tensors: tensors.update({name: ones(1), other: tensors[other].to(code)}))
    with pytest.raises(InputError, match="scale is not stored"):
        SourceModel(model).names()


@pytest.mark.parametrize(("dtype", "bits"), [("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("F8_E8M0", 8), ("C64", 64)])
def test_types_that_are_no_weights(model, dtype, bits):
    """Types that torch cannot write: the header is written by hand."""
    plain = load_file(model / "model.safetensors")
    header, body = {}, b""
    for name, value in plain.items():
        data = bytes(value.numel() * bits // 8) if name == f"{LAYER}.weight" else value.numpy().tobytes()
        kind = dtype if name == f"{LAYER}.weight" else "F32"
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    with pytest.raises(InputError, match=f"type {dtype}"):
        SourceModel(model).names()


@pytest.mark.parametrize("kind", ["input_scale", "output_scale", "activation_scale", "input_scale_ub"])
def test_scales_of_activations_change_no_weight(model, kind):
    expected = SourceModel(model).tensor(f"{LAYER}.weight")
    more = {f"{LAYER}.{kind}": torch.ones(1), "model.layers.0.self_attn.k_scale": torch.ones(1)}
    edit(model, lambda tensors: tensors.update(more))
    source = SourceModel(model)
    assert torch.equal(source.tensor(f"{LAYER}.weight"), expected)
    assert "scales of activations" in source.notes()[0] and len(source.notes()) == 1


def quantized_twin(folder, kind):
    """Quantize every linear layer of the folder; return the weights that are then stored for it."""
    plain = {}

    def change(tensors):
        for name in [n for n in tensors if n.endswith("proj.weight")]:
            module, w = name.removesuffix(".weight"), tensors[name]
            largest = w.abs().amax(1, keepdim=True)
            if kind == "bitsandbytes":
                tensors[name] = (w / largest * 127).round().char()
                tensors[f"{module}.SCB"] = largest[:, 0]
                plain[name] = tensors[name].float() * largest * (1 / 127)
            else:
                scale = largest / 448
                tensors[name] = (w / scale).to(torch.float8_e4m3fn)
                tensors[f"{module}.weight_scale"] = scale
                plain[name] = tensors[name].float() * scale

    method = {"quant_method": "fbgemm_fp8"} if kind == "fp8" else {"load_in_8bit": True}
    edit(folder, change, quantization_config=method)
    return plain


@pytest.mark.parametrize("kind", ["fp8", "bitsandbytes"])
def test_every_reader_sees_the_same_weights(tmp_path, kind):
    """A quantized source exports to the very bytes of its plain twin, in every path that reads the model."""
    for name in ("quantized", "plain"):
        tiny_model("llama", tmp_path / name)
    weights = quantized_twin(tmp_path / "quantized", kind)
    edit(tmp_path / "plain", lambda tensors: tensors.update(weights))
    text = CalibrationChoice(str(random_text(tmp_path / "text.txt")))
    # guided: gradients of the whole model; own text: written by the whole model; equalized: folded weights
    settings = QuantizeSettings(
        method="gptq", bits=4, sequences=4, sequence_length=16, guided=True, own_text=0.5, equalize=True
    )
    outs = [tmp_path / f"out-{name}" for name in ("quantized", "plain")]
    for name, out in zip(("quantized", "plain"), outs):
        quantize_model(str(tmp_path / name), out, settings, text, quiet=True)
    shards = sorted(path.name for path in outs[0].glob("*.safetensors"))
    assert len(shards) == 3
    assert all((outs[0] / s).read_bytes() == (outs[1] / s).read_bytes() for s in shards)
    assert "stored_as" in read_json(outs[0] / "athena.json")["source"]
    assert "stored_as" not in read_json(outs[1] / "athena.json")["source"]
    assert "quantization_config" not in read_json(outs[0] / "config.json")
    models = [whole_model(SourceModel(tmp_path / name)).state_dict() for name in ("quantized", "plain")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])


def test_fingerprint_sees_the_scheme(model):
    put(model, {"weight": random_codes(FLOAT8[0]), "weight_scale_inv": torch.rand(3, 2)})
    found = set()
    for block in (None, [16, 16], [20, 20]):
        config = {"quant_method": "fp8", "weight_block_size": block}
        edit(model, lambda tensors: None, quantization_config=config)
        found.add(SourceModel(model).fingerprint())
    assert len(found) == 3


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_layers_that_are_stored_transposed_are_refused(tmp_path, dtype):
    """GPT-2's square matrices would fit either way."""
    tiny_model("gpt2", tmp_path)
    name = "transformer.h.0.attn.c_proj"
    more = {f"{name}.weight": ones(32, 32).to(dtype), f"{name}.weight_scale": ones(32, 1)}
    edit(tmp_path, lambda tensors: tensors.update(more))
    with pytest.raises(InputError, match="quantized already"):
        SourceModel(tmp_path).names()
