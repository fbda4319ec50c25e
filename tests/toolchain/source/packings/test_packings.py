"""Packed weights come out as scale * (code - zero), whatever the packing; what does not fit is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.contract.errors import InputError
from tests.toolchain.source.packings import packers
from tests.toolchain.source.test_stored_weights import LAYER, edit, model, put  # noqa: F401 (a fixture)
from toolchain.calibrate.own_text import whole_model
from toolchain.source.checkpoint import SourceModel

ROWS, COLUMNS = 48, 32
NAME = f"{LAYER}.weight"
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
NF4 = np.array([-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803,
                0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], np.float32)  # fmt: skip
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / 12


def drawn(bits: int, size: int, least: int = 0):
    """codes [N, K], zeros and scales [N, groups]; scales are exact in float16 and bfloat16."""
    rng, groups = np.random.default_rng(bits * 100 + size), -(-COLUMNS // size)
    codes = rng.integers(0, 2**bits, (ROWS, COLUMNS), dtype=np.uint8)
    zeros = rng.integers(least, 2**bits, (ROWS, groups), dtype=np.uint8)
    return codes, zeros, (rng.integers(-128, 128, (ROWS, groups)) / 1024).astype(np.float32)


def expected(codes, zeros, scales, groups) -> np.ndarray:
    """Element by element, in float32."""
    found = np.empty(codes.shape, np.float32)
    for row in range(codes.shape[0]):
        for column, group in enumerate(groups):
            difference = int(codes[row, column]) - int(zeros[row, group])
            found[row, column] = scales[row, group] * np.float32(difference)
    return found


def check(folder, weight: np.ndarray, codes: np.ndarray | None, title: str) -> None:
    source = SourceModel(folder)
    assert np.array_equal(source.tensor(NAME, (ROWS, COLUMNS)).numpy(), weight)
    kept = source.group_codes(NAME)
    assert (kept is None) == (codes is None)
    if kept is not None:
        assert np.array_equal(kept.codes, codes) and np.array_equal(kept.weight(), weight)
    assert source.stored_as == title
    assert whole_model(source).get_parameter(NAME).shape == (ROWS, COLUMNS)


FORMATS = [({"quant_method": "gptq"}, 1), ({"quant_method": "gptq", "checkpoint_format": "gptq_v2"}, 0),
           ({"quant_method": "gptq", "format": "gptq"}, 1), ({"quant_method": "auto-round"}, 0),
           ({"quant_method": "intel/auto-round", "packing_format": "auto_round:auto_gptq"}, 1),
           ({"quant_method": "auto-round", "packing_format": "auto_round:gptqmodel"}, 0)]  # fmt: skip


@pytest.mark.parametrize("config", FORMATS, ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [8, 32])
def test_gptq(model, bits, size, config):  # noqa: F811
    stated, offset = config
    codes, zeros, scales = drawn(bits, size, least=offset)
    put(model, packers.gptq(codes, zeros, scales, bits, offset), quantization_config={**stated, "group_size": size})
    check(model, expected(codes, zeros, scales, np.arange(COLUMNS) // size), codes, "GPTQ")


@pytest.mark.parametrize(("config", "offset"), FORMATS, ids=str)
@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_gptq_of_codes_across_words(model, bits, config, offset):  # noqa: F811
    """Zero points fill whole words of 32 rows only, so this is a layer of 32 rows."""
    module = "model.layers.0.self_attn.q_proj"
    codes, zeros, scales = (part[:32] for part in drawn(bits, 8, least=offset))
    parts = {f"{module}.{kind}": part for kind, part in packers.gptq(codes, zeros, scales, bits, offset).items()}

    def change(tensors):
        del tensors[f"{module}.weight"]
        tensors.update(parts)

    edit(model, change, quantization_config={**config, "group_size": 8})
    source, weight = SourceModel(model), expected(codes, zeros, scales, np.arange(COLUMNS) // 8)
    assert np.array_equal(source.tensor(f"{module}.weight", (32, COLUMNS)).numpy(), weight)
    kept = source.group_codes(f"{module}.weight")
    assert kept is not None and np.array_equal(kept.codes, codes) and np.array_equal(kept.weight(), weight)


@pytest.mark.parametrize("order", ["as the columns", "after act-order"])
def test_gptq_with_the_group_of_each_column(model, order):  # noqa: F811
    codes, zeros, scales = drawn(4, 8, least=1)
    groups = np.arange(COLUMNS) // 8
    if order == "after act-order":
        groups = np.random.default_rng(0).permutation(groups)
    put(model, packers.gptq(codes, zeros, scales, 4, 1, groups), quantization_config={"quant_method": "gptq"})
    kept = None if order == "after act-order" else codes
    check(model, expected(codes, zeros, scales, groups), kept, "GPTQ")


@pytest.mark.parametrize("size", [8, 32, -1])
@pytest.mark.parametrize(
    "config", [{"quant_method": "awq"}, {"quant_method": "awq", "version": "GEMM"},
               {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}], ids=str,
)  # fmt: skip
def test_awq(model, size, config):  # noqa: F811
    codes, zeros, scales = drawn(4, size if size > 0 else COLUMNS)
    put(model, packers.awq_gemm(codes, zeros, scales), quantization_config={**config, "bits": 4, "group_size": size})
    groups = np.arange(COLUMNS) // (size if size > 0 else COLUMNS)
    check(model, expected(codes, zeros, scales, groups), codes, "AWQ")


@pytest.mark.parametrize(("size", "width"), [(8, 1), (32, 4), (16, 2)])
def test_awq_gemv(model, size, width):  # noqa: F811
    codes, zeros, scales = drawn(4, size)
    config = {"quant_method": "awq", "version": "gemv", "group_size": size}
    put(model, packers.awq_gemv(codes, zeros, scales, width), quantization_config=config)
    check(model, expected(codes, zeros, scales, np.arange(COLUMNS) // size), codes, "AWQ")


def compressed(bits: int, size: int | None, symmetric: bool) -> dict:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": size, "strategy": "group"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("size", [8, 32, None])
def test_pack_quantized(model, bits, size, symmetric):  # noqa: F811
    codes, zeros, scales = drawn(bits, size or COLUMNS)
    zeros = np.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
    parts = packers.pack_quantized(codes, None if symmetric else zeros, scales, bits)
    put(model, parts, quantization_config=compressed(bits, size, symmetric))
    groups = np.arange(COLUMNS) // (size or COLUMNS)
    check(model, expected(codes, zeros, scales, groups), codes, "compressed-tensors pack-quantized")


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5])], ids=["scalar", "list"])
def test_pack_quantized_with_one_scale(model, scale):  # noqa: F811
    codes = drawn(4, COLUMNS)[0]
    parts = packers.pack_quantized(codes, None, np.ones((1, 1), np.float32), 4) | {"weight_scale": scale}
    put(model, parts, quantization_config=compressed(4, None, True))
    check(model, np.float32(0.5) * (codes.astype(np.float32) - 8), codes, "compressed-tensors pack-quantized")


def test_mxfp4(model):  # noqa: F811
    rng = np.random.default_rng(0)
    codes, exponents = rng.integers(0, 16, (ROWS, COLUMNS)), rng.integers(100, 140, (ROWS, 1))
    parts = {"weight_packed": torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4).byte(),
             "weight_scale": torch.from_numpy(exponents).byte()}  # fmt: skip
    config = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    put(model, parts, quantization_config=config)
    levels = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    weight = np.array([[(-1) ** (c >> 3) * levels[c & 7] for c in row] for row in codes]) * 2.0 ** (exponents - 127)
    check(model, weight.astype(np.float32), None, "MXFP4")
    kept = SourceModel(model).mxfp4_blocks(NAME)
    assert kept is not None and np.array_equal(kept.codes, codes) and np.array_equal(kept.exponents, exponents)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("size", [32, 64, 1024])
@pytest.mark.parametrize(("kind", "table"), [("nf4", NF4), ("fp4", FP4)])
def test_bitsandbytes(model, kind, table, size, nested):  # noqa: F811
    rng = np.random.default_rng(size)
    codes, blocks = rng.integers(0, 16, (ROWS, COLUMNS), dtype=np.uint8), -(-ROWS * COLUMNS // size)
    magnitudes = rng.random(blocks, np.float32)
    if nested:
        stored, levels = rng.integers(0, 256, blocks, dtype=np.uint8), rng.standard_normal(256, np.float32)
        outer = rng.random(-(-blocks // 4), np.float32)
        parts = packers.bitsandbytes(codes, stored, kind, table, size, (levels, outer, 4, 0.25))
        magnitudes = np.array([levels[c] * outer[i // 4] + np.float32(0.25) for i, c in enumerate(stored)], np.float32)
    else:
        parts = packers.bitsandbytes(codes, magnitudes, kind, table, size)
    put(model, parts, quantization_config=BNB)
    weight = np.array([table[c] * magnitudes[i // size] for i, c in enumerate(codes.reshape(-1))], np.float32)
    source = SourceModel(model)
    assert torch.allclose(source.tensor(NAME).reshape(-1), torch.from_numpy(weight), rtol=2e-7, atol=0)
    check(model, source.tensor(NAME).numpy(), None, "bitsandbytes 4-bit")


def gptq_parts(**changes):
    parts = packers.gptq(*drawn(4, 8, least=1), 4, 1, np.arange(COLUMNS) // 8) | changes
    return {name: value for name, value in parts.items() if value is not None}


def nf4_parts(**changes):
    codes = drawn(4, 8)[0]
    return packers.bitsandbytes(codes, np.ones(24, np.float32), "nf4", NF4, 64) | changes


def state(text: str):
    return {"weight.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}


def ct_parts(**changes):
    codes, zeros, scales = drawn(4, 8)
    return packers.pack_quantized(codes, zeros, scales, 4) | changes


i32 = torch.int32
GPTQ, CT = {"quant_method": "gptq", "group_size": 8}, compressed(4, 8, False)
NF4_STATE = '{"quant_type": "nf4", "blocksize": %s, "shape": %s, "dtype": "float32"}'
HOSTILE = {
    "no zero points": (gptq_parts(qzeros=None), GPTQ, "qzeros is missing"),
    "no scales": (gptq_parts(scales=None), GPTQ, "scales is missing"),
    "a list": (gptq_parts(qweight=torch.zeros(7, dtype=i32)), GPTQ, "no matrix"),
    "nothing": (gptq_parts(qweight=torch.zeros(0, 48, dtype=i32)), GPTQ, "no matrix"),
    "bytes": (gptq_parts(qweight=torch.zeros(4, 48, dtype=torch.uint8)), GPTQ, "type U8"),
    "9 bits": (gptq_parts(qzeros=torch.zeros(4, 14, dtype=i32)), GPTQ, "2 to 8 bits"),
    "zero points of another width": (gptq_parts(qzeros=torch.zeros(4, 12, dtype=i32)), GPTQ, "shape|fit|rows"),
    "zero points of a vector": (gptq_parts(qzeros=torch.zeros(6, dtype=i32)), GPTQ, "fits no width"),
    "groups that do not divide": (gptq_parts(scales=torch.ones(5, 48)), GPTQ, "shape|fit"),
    "a group too far": (gptq_parts(g_idx=torch.full((32,), 4, dtype=i32)), GPTQ, "beyond the 4"),
    "a group below": (gptq_parts(g_idx=torch.full((32,), -1, dtype=i32)), GPTQ, "beyond the 4"),
    "groups of other columns": (gptq_parts(g_idx=torch.zeros(31, dtype=i32)), GPTQ, "g_idx has shape"),
    "groups that are floats": (gptq_parts(g_idx=torch.zeros(32)), GPTQ, "g_idx is of type"),
    "infinite scales": (gptq_parts(scales=torch.full((4, 48), torch.inf)), GPTQ, "NaN or infinite"),
    "NaN scales": (gptq_parts(scales=torch.full((4, 48), torch.nan)), GPTQ, "NaN or infinite"),
    "the largest zero point": (gptq_parts(qzeros=torch.full((4, 6), -1, dtype=i32)), GPTQ, "largest code"),
    "marlin": (gptq_parts(), {**GPTQ, "checkpoint_format": "marlin"}, "marlin"),
    "a format that is no text": (gptq_parts(), {**GPTQ, "checkpoint_format": {"a": 1}}, "cannot be read"),
    "both": (gptq_parts(weight=torch.ones(48, 32)), GPTQ, "stored as it is and packed"),
    "another shape": (packers.gptq(*(a[:40] for a in drawn(4, 8, 1)), 4, 1), GPTQ, "config.json asks for"),
    "AWQ of 3 bits": (gptq_parts(), {"quant_method": "awq", "bits": 3}, "3 bits"),
    "AWQ for other kernels": (gptq_parts(), {"quant_method": "awq", "version": "gemv_fast"}, "gemv_fast"),
    "AWQ gemv without groups": (packers.awq_gemv(*drawn(4, 8), 1), {"quant_method": "awq", "version": "gemv"}, "group"),
    "no shape": ({k: v for k, v in ct_parts().items() if k != "weight_shape"}, CT, "weight_shape is missing"),
    "a huge shape": (ct_parts(weight_shape=torch.tensor([48, 2**40])), CT, "do not fit"),
    "a negative shape": (ct_parts(weight_shape=torch.tensor([48, -32])), CT, "do not fit"),
    "a shape of floats": (ct_parts(weight_shape=torch.tensor([48.0, 32.0])), CT, "weight_shape is of type"),
    "no scheme": (ct_parts(), {**CT, "config_groups": {}}, "no scheme"),
    "schemes that disagree": (ct_parts(), {**CT, "config_groups": {"a": CT["config_groups"]["group_0"],
                              "b": compressed(4, 16, False)["config_groups"]["group_0"]}}, "more than one scheme"),
    "symmetric with zero points": (ct_parts(), compressed(4, 8, True), "do not go together"),
    "scales of other rows": (ct_parts(weight_scale=torch.ones(47, 4)), CT, "does not fit 48 rows"),
    "a state that is no JSON": (nf4_parts(**state("{")), BNB, "not a JSON object"),
    "a state that is deep": (nf4_parts(**state("[" * 60000)), BNB, "not a JSON object"),
    "a state that is long": (nf4_parts(**state(" " * 70000)), BNB, "70000 values"),
    "blocks of nothing": (nf4_parts(**state(NF4_STATE % (0, "[48, 32]"))), BNB, "blocksize"),
    "blocks of text": (nf4_parts(**state(NF4_STATE % ('"64"', "[48, 32]"))), BNB, "blocksize"),
    "a state of another shape": (nf4_parts(**state(NF4_STATE % (64, "[480000000000, 32]"))), BNB, "does not fit"),
    "other blocks": (nf4_parts(**state(NF4_STATE % (32, "[48, 32]"))), BNB, "weight.absmax has shape"),
    "another table": (nf4_parts(**{"weight.quant_map": torch.ones(16)}), BNB, "not the table of nf4"),
    "a table of 17": (nf4_parts(**{"weight.quant_map": torch.ones(17)}), BNB, "17 values"),
    "no table": ({k: v for k, v in nf4_parts().items() if "map" not in k}, BNB, "weight.quant_map is missing"),
    "no state": ({k: v for k, v in nf4_parts().items() if "state" not in k}, BNB, "quant_state is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_fit_is_refused(model, name):  # noqa: F811
    parts, config, says = HOSTILE[name]
    put(model, parts, quantization_config=config)
    with pytest.raises(InputError, match=says) as refused:
        SourceModel(model).tensor(NAME, (ROWS, COLUMNS))
    assert "\n" not in str(refused.value)


def test_a_quantized_head_and_embedding_stay_apart(model):  # noqa: F811
    """A checkpoint in which one layer is packed and another is not: each is read as it is stored."""
    codes, zeros, scales = drawn(4, 8, least=1)
    put(model, packers.gptq(codes, zeros, scales, 4, 1), quantization_config=GPTQ)
    source = SourceModel(model)
    assert source.group_codes("model.layers.1.mlp.up_proj.weight") is None
    assert source.group_codes(NAME) is not None and source.names().count(NAME) == 1
