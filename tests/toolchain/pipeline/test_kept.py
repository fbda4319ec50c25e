"""--method keep: every weight of a quantized source comes out to the bit, or the source is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.artefacts.checkpoint import QuantizedCheckpoint
from export.artefacts.records import TensorRecord
from export.artefacts.stored_matrix import StoredMatrix
from export.contract.errors import InputError
from export.files.access import read_json, write_json
from runtime_py.load import open_model
from tests.conftest import DEMO
from tests.toolchain.source.gguf_models import write_gguf
from toolchain.pipeline.packaging import package_checkpoint
from toolchain.pipeline.run import quantize_model
from toolchain.quantize.keep import kept, kept_mxfp4, narrowest
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.presets import Quantization
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.checkpoint import resolve
from toolchain.source.group_codes import GroupCodes
from toolchain.source.heads import open_model as open_source
from toolchain.source.packings.base import Microscaled

SETTINGS = QuantizeSettings(method="keep", embedding_bits=16)
CODES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"]
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}


def keep(path, out):
    return quantize_model(str(path), out, SETTINGS, CalibrationChoice(), quiet=True)


def weights_of(checkpoint: QuantizedCheckpoint, record: TensorRecord) -> np.ndarray:
    """float32 of a matrix as stored."""
    if record.is_dense:
        return checkpoint.tensor(record.name, ".weight").astype(np.float32)
    return StoredMatrix.restored(record, lambda suffix: checkpoint.tensor(record.name, suffix)).dequantized()


def check_bits(path, checkpoint: QuantizedCheckpoint) -> set[str]:
    """All matrices against the source; their schemes."""
    source, spec = open_source(resolve(str(path)))
    names = [*spec.quantizable(), *spec.outside()]
    for name in names:
        expected = source.tensor(f"{name}.weight").numpy()
        found = weights_of(checkpoint, checkpoint.records[name])
        np.testing.assert_array_equal(found.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32), name)
    return {checkpoint.records[name].scheme for name in names}


@pytest.mark.parametrize("title", CODES)
def test_a_gguf_file_of_every_kept_type(tmp_path, title):
    path = write_gguf(tmp_path / "m.gguf", type_of=lambda name: title, **WIDE)
    assert check_bits(path, keep(path, tmp_path / "out")) == {"groups"}


def test_each_layer_may_have_its_own_form(tmp_path):
    titles = {"ffn_down": "Q8_0", "attn_q": "F16", "attn_v": "F32", "token_embd": "F16", "ffn_up": "Q5_1"}

    def type_of(name):
        return next((title for part, title in titles.items() if part in name), "Q4_1")

    path = write_gguf(tmp_path / "m.gguf", type_of=type_of)
    checkpoint = keep(path, tmp_path / "out")
    assert {"groups", "float16", "float32"} == check_bits(path, checkpoint)
    bits = {name.rpartition(".")[2]: record.bits for name, record in checkpoint.records.items() if record.bits}
    assert (bits["down_proj"], bits["up_proj"], bits["k_proj"]) == (8, 5, 4)


def test_the_folder_computes_what_transformers_does(tmp_path):
    from transformers import AutoModelForCausalLM

    path = write_gguf(tmp_path / "m.gguf", type_of=lambda name: "Q8_0" if "token" in name else "Q4_1")
    built = package_checkpoint(keep(path, tmp_path / "out"), tmp_path / "folder", quiet=True)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ids = np.arange(20) * 7 % model.config.vocab_size
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    reference, _ = open_model(built, "float32")
    np.testing.assert_allclose(reference.forward(reference.new_state(), ids), expected, atol=1e-5 * abs(expected).max())
    engine, why = open_model(built)
    assert why == "", "the compiled machine plans it"
    state, bound = engine.new_state(), 0.05 * expected.std()  # what int8 activations cost
    found = np.concatenate([engine.forward(state, ids[:9]), *(engine.forward(state, [i]) for i in ids[9:])])
    assert np.sqrt(np.square(found - expected).mean()) < bound
    last = engine.forward(engine.new_state(), ids, last_only=True)
    assert np.sqrt(np.square(last - expected[-1]).mean()) < bound


def test_a_second_run_continues_and_is_the_same(tmp_path):
    """As after a kill: a shard is missing, and the manifest has no totals yet."""
    path, out = write_gguf(tmp_path / "m.gguf", type_of=lambda name: "Q4_0"), tmp_path / "out"
    keep(path, out)
    shard, manifest = (out / "block-00001.safetensors").read_bytes(), read_json(out / "athena.json")
    (out / "block-00001.safetensors").unlink()
    begun = {name: value for name, value in manifest.items() if name not in ("totals", "tensors", "shard_prefix")}
    write_json(out / "athena.json", begun)
    keep(path, out)
    assert (out / "block-00001.safetensors").read_bytes() == shard
    assert read_json(out / "athena.json") == manifest


@pytest.mark.parametrize("title", ["Q4_K", "Q6_K", "IQ4_NL"])
def test_types_with_scales_of_scales_are_refused_by_name(tmp_path, title):
    path = write_gguf(tmp_path / "m.gguf", type_of=lambda name: title if "ffn_up" in name else "Q4_0", **WIDE)
    with pytest.raises(InputError, match=rf"mlp\.up_proj\.weight is stored as GGUF {title}, which cannot be kept"):
        keep(path, tmp_path / "out")


def test_plain_floats_are_refused(tmp_path):
    with pytest.raises(InputError, match="needs a source whose weights are quantized already"):
        keep(DEMO, tmp_path / "out")


@pytest.mark.parametrize("option", [
    {"bits": 4}, {"budget": 3.1}, {"group_size": 32}, {"tune_steps": 10}, {"rank": 2}, {"outliers": 0.01},
    {"rotation": "values"}, {"equalize": True}, {"guided": True}, {"block_steps": 1}, {"own_text": 0.5},
    {"activation_bits": 8}, {"kv": 8}, {"preset": "best"},
])  # fmt: skip
def test_options_that_would_change_something_are_refused(option):
    with pytest.raises(InputError, match="--method keep"):
        Quantization.from_given({"method": "keep", **option})


def test_the_format_is_for_keep_alone():
    with pytest.raises(InputError, match="--format groups is for --method keep"):
        QuantizeSettings(format="groups")


def random_codes(rng, bits, size, zero, minimum=False, dtype=np.float16) -> GroupCodes:
    rows, columns = 6, 80
    shape = rows, -(-columns // size)
    scale = rng.standard_normal(shape).astype(dtype).astype(np.float32)
    low = rng.standard_normal(shape).astype(dtype).astype(np.float32) if minimum else None
    codes = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    return GroupCodes(codes, bits, size, scale, low, zero(rng, shape) if zero else None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("zero", [
    None, lambda rng, shape: 3, lambda rng, shape: rng.integers(0, 5, shape).astype(np.uint8),
    lambda rng, shape: np.full(shape, 4, np.uint8),
])  # fmt: skip
@pytest.mark.parametrize("size", [16, 32, 80, 128])
def test_codes_of_any_source_are_kept_to_the_bit(dtype, bits, zero, size):
    """GPTQ, AWQ and compressed-tensors come as these."""
    rng = np.random.default_rng(bits)
    for minimum in (False, True) if zero is None else (False,):
        given = random_codes(rng, bits, size, zero, minimum, dtype)
        found = kept(given)
        np.testing.assert_array_equal(found.dequantized().view(np.uint32), given.weight().view(np.uint32))
        assert found["scale"].dtype == dtype


def test_float_types_are_the_narrowest_that_hold_all():
    assert narrowest(np.array([1.5, -0.0], np.float32)).dtype == np.float16
    for value in (1e-9, 70000.0, 1 + 2**-12):
        assert narrowest(np.array([1.0, value], np.float32)).dtype == np.float32


def test_microscaled_blocks_become_mxfp4():
    rng = np.random.default_rng(0)
    given = Microscaled(rng.integers(0, 16, (5, 64)).astype(np.uint8), rng.integers(100, 140, (5, 2)).astype(np.uint8))
    found = kept_mxfp4(given)
    assert found.layout.SCHEME == "mxfp4"
    np.testing.assert_array_equal(found.dequantized(), given.weight())
    with pytest.raises(ValueError, match="exponent is above"):
        kept_mxfp4(Microscaled(given.codes, np.full((5, 2), 254, np.uint8)))
