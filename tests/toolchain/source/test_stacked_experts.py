"""Checkpoints that hold the experts of a block in one tensor: as transformers does, and as gpt-oss (floats, MXFP4)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from export.contract.errors import InputError
from export.model_folder import write_model_folder
from runtime_py.load import open_model as load_runner
from tests.conftest import _package
from tests.export.graph.families import FloatCheckpoint, compare, tiny_model
from toolchain.calibrate.own_text import whole_model
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings
from toolchain.source.checkpoint import SourceModel
from toolchain.source.heads import open_model

QUANTIZED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> None:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A tiny gpt-oss in MXFP4, as published, and the same with transformers' floats in place of codes."""
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    for folder in (packed, plain):
        tiny_model("gpt_oss", folder, intermediate_size=64)
    stored, rng = load_file(plain / "model.safetensors"), torch.Generator().manual_seed(1)
    stored = {name: value.half().float() for name, value in stored.items()}  # what is kept as float16 loses nothing
    codes, floats = dict(stored), dict(stored)
    for name, value in stored.items():
        if name.endswith(("gate_up_proj", "down_proj")) and ".experts." in name:
            experts, columns, rows = value.shape
            shape = (experts, rows, columns // 32, 16)
            blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
            scales = torch.randint(121, 126, shape[:3], dtype=torch.uint8, generator=rng)
            codes |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            del codes[name]
            floats[name] = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32)
    write(packed, codes, quantization_config=QUANTIZED)
    write(plain, floats)
    return packed, plain


def theirs(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def test_codes_are_read_as_transformers_does(folders, tmp_path):
    packed, plain = folders
    (tmp_path / "model").mkdir()
    write_model_folder(FloatCheckpoint(packed), tmp_path / "model")
    compare(theirs(plain), tmp_path / "model", 1e-4)


def test_codes_are_kept_exactly(folders, tmp_path):
    packed, plain = folders
    settings = QuantizeSettings(method="keep", embedding_bits=16)
    checkpoint = quantize_model(str(packed), tmp_path / "kept", settings, CalibrationChoice("none"), quiet=True)
    own, source = load_file(plain / "model.safetensors"), SourceModel(packed)
    kept = [record for record in checkpoint.records.values() if record.scheme == "mxfp4"]
    assert len(kept) == 3 * 5 * 3  # layers, experts, matrices
    both = own["model.layers.1.mlp.experts.gate_up_proj"][4]
    name = "model.layers.1.mlp.experts.4.{}_proj.weight"
    assert torch.equal(source.tensor(name.format("gate")), both[:, ::2].T)
    assert torch.equal(source.tensor(name.format("up")), both[:, 1::2].T)
    folder = _package(checkpoint, tmp_path / "model")
    compare(theirs(plain), folder, 1e-4)
    assert load_runner(folder)[1] == ""  # planned, not interpreted


def test_transformers_own_model_is_built_from_the_parts(folders):
    packed, plain = folders
    source, _ = open_model(packed)
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        found, expected = whole_model(source)(ids).logits, theirs(plain)(ids).logits
    assert float((found - expected).abs().max()) < 1e-5


def changed(folder: Path, change, **config: object) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    write(folder, tensors, **config)


FIRST = "model.layers.0.mlp.experts."
DOWN = FIRST + "down_proj"


def _top(tensors):
    tensors[f"{DOWN}_scales"][2, 3, 1] = 255


WRONG = {
    "no scales": (lambda t: t.pop(f"{DOWN}_scales"), {}, "down_proj_scales is missing"),
    "no blocks": (lambda t: t.pop(f"{DOWN}_blocks"), {}, "down_proj_blocks is missing"),
    "scales of another shape": (
        lambda t: t.update({f"{DOWN}_scales": t[f"{DOWN}_scales"][:, :-1]}), {}, "do not go together",
    ),
    "blocks of another size": (
        lambda t: t.update({f"{DOWN}_blocks": t[f"{DOWN}_blocks"][..., :8]}), {}, "do not go together",
    ),
    "no number": (_top, {}, "255, which stands for no number"),
    "floats beside the codes": (
        lambda t: t.update({DOWN: torch.zeros(5, 64, 32)}), {}, "is stored twice",
    ),
    "a bias missing": (lambda t: t.pop(f"{DOWN}_bias"), {}, "has no tensor .*down_proj.bias"),
    "an odd number of rows": (
        lambda t: t.update({f"{FIRST}gate_up_proj_bias": t[f"{FIRST}gate_up_proj_bias"][:, :-1]}), {},
        "do not come in pairs",
    ),
    "fewer experts in the config": (lambda t: None, {"num_local_experts": 4}, "of 5 experts, .* has 4"),
    "more experts in the config": (lambda t: None, {"num_local_experts": 6}, "of 5 experts, .* has 6"),
    "another width": (lambda t: None, {"intermediate_size": 32}, "config.json asks for"),
    "not said": (lambda t: None, {"quantization_config": None}, "without quantization_config"),
    "another family": (lambda t: None, {"model_type": "llama"}, "MXFP4"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_refused(case, folders):
    change, config, message = WRONG[case]
    changed(folders[0], change, **config)
    with pytest.raises(InputError, match=message) as raised:
        FloatCheckpoint(folders[0])
    assert "\n" not in str(raised.value)


def test_codes_said_but_not_there(folders):
    write(folders[1], load_file(folders[1] / "model.safetensors"), quantization_config=QUANTIZED)
    with pytest.raises(InputError, match="says that experts are packed"):
        FloatCheckpoint(folders[1])


def test_a_razored_cache_is_refused(folders, tmp_path):
    settings = QuantizeSettings(bits=4, razor=RazorSettings(kv=4))
    with pytest.raises(InputError, match="--kv is not available for models with attention sinks"):
        quantize_model(str(folders[1]), tmp_path / "out", settings, CalibrationChoice("none"), quiet=True)


def test_values_that_are_not_finite(folders):
    changed(folders[1], lambda t: t[f"{DOWN}_bias"].__setitem__((1, 2), float(np.nan)))
    with pytest.raises(InputError, match="down_proj_bias holds NaN"):
        FloatCheckpoint(folders[1])


@pytest.fixture
def rows(tmp_path) -> Path:
    """A tiny qwen3_5_moe as published: the gate's rows before those of up, all experts in one tensor."""
    tiny_model("qwen3_5_moe_text", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    model = theirs(tmp_path)
    own = {name: value for name, value in stored.items() if ".experts." not in name}
    own |= {name: p.detach() for name, p in model.named_parameters() if ".experts." in name}
    assert sum(name.endswith(".experts.gate_up_proj") for name in own) == 3
    write(tmp_path, own)
    return tmp_path


def test_rows_of_all_experts_are_read_as_transformers_does(rows, tmp_path):
    own, source = load_file(rows / "model.safetensors"), SourceModel(rows)
    both = own["model.layers.1.mlp.experts.gate_up_proj"][4]
    name = "model.layers.1.mlp.experts.4.{}_proj.weight"
    assert torch.equal(source.tensor(name.format("gate")), both[:24])
    assert torch.equal(source.tensor(name.format("up")), both[24:])
    (tmp_path / "model").mkdir()
    write_model_folder(FloatCheckpoint(rows), tmp_path / "model")
    compare(theirs(rows), tmp_path / "model", 1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:4], "is of 4 experts, the model of config.json has 5"),
        (lambda t: t[:, :47], "rows of gate and up do not come in pairs"),
        (lambda t: t[:, :, :31], "down_proj|gate_proj"),
        (lambda t: t[0], "which is none of experts"),
        (lambda t: t.to(torch.uint8), "type U8"),
    ],
)
def test_rows_of_another_form_are_refused(rows, change, message):
    own = load_file(rows / "model.safetensors")
    name = "model.layers.2.mlp.experts.gate_up_proj"
    write(rows, {**own, name: change(own[name])})
    with pytest.raises(InputError, match=message):
        FloatCheckpoint(rows)


@pytest.mark.parametrize("kind", ["_bias", "_blocks", "_scales"])
def test_what_such_experts_do_not_have_is_refused(rows, kind):
    own = load_file(rows / "model.safetensors")
    name = "model.layers.2.mlp.experts.gate_up_proj"
    write(rows, {**own, f"{name}{kind}": own[name].clone()})
    with pytest.raises(InputError):
        FloatCheckpoint(rows)


# As transformers 5 writes mixtures with save_original_format=False: experts as its own classes have them.
PACKED = ("qwen3_moe", "qwen3_moe dense", "olmoe", "mixtral", "lfm2_moe", "lfm2_moe without bias", "granitemoehybrid",
          "nemotron_h")  # fmt: skip


def own_form(variant: str, folder: Path) -> Path:
    """The tiny model of a variant in `folder`/plain, as checkpoints are, and in `folder`/packed, which is returned."""
    tiny_model(variant, folder / "plain")
    model = AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float32)
    model.save_pretrained(folder / "packed", save_original_format=False)
    return folder / "packed"


@pytest.mark.parametrize("variant", PACKED)
def test_packed_experts_are_the_same_model(variant, tmp_path):
    packed = own_form(variant, tmp_path)
    assert any(
        name.endswith(("experts.gate_up_proj", "experts.up_proj")) for name in load_file(packed / "model.safetensors")
    )
    ours, plain = SourceModel(packed), SourceModel(tmp_path / "plain")
    assert ours.parameters() == plain.parameters()
    for name in plain.parameters():
        torch.testing.assert_close(ours.tensor(name), plain.tensor(name), rtol=0, atol=0)
    (tmp_path / "model").mkdir()
    write_model_folder(FloatCheckpoint(packed), tmp_path / "model")
    compare(theirs(packed), tmp_path / "model", 1e-4)
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        found, expected = whole_model(ours)(ids).logits, theirs(packed)(ids).logits
    assert float((found - expected).abs().max()) < 1e-5


def test_packed_experts_under_the_names_of_checkpoints(tmp_path):
    """Mixtral's own name of the part with the router, which transformers renames; half precision."""
    packed = own_form("mixtral", tmp_path)
    stored = load_file(packed / "model.safetensors")
    write(packed, {name.replace(".mlp.", ".block_sparse_moe."): value.half() for name, value in stored.items()})
    (tmp_path / "model").mkdir()
    write_model_folder(FloatCheckpoint(packed), tmp_path / "model")
    compare(theirs(packed), tmp_path / "model", 1e-4)


BOTH = "model.layers.1.mlp.experts.gate_up_proj"
WRONG_PACKED = {
    "one expert less": (lambda t: t.update({BOTH: t[BOTH][:-1]}), "of 4 experts, the model of config.json has 5"),
    "rows that are odd": (lambda t: t.update({BOTH: t[BOTH][:, :-1]}), "do not come in pairs"),
    "fewer rows": (lambda t: t.update({BOTH: t[BOTH][:, :-2]}), "config.json asks for"),
    "turned over": (lambda t: t.update({BOTH: t[BOTH].mT}), "config.json asks for"),
    "a matrix": (lambda t: t.update({BOTH: t[BOTH][0]}), "which is none of experts"),
    "nothing": (lambda t: t.update({BOTH: t[BOTH][:, :0]}), "which is none of experts"),
    "integers": (lambda t: t.update({BOTH: t[BOTH].to(torch.int8)}), "type I8"),
    "missing": (lambda t: t.pop(BOTH), "has no tensor model.layers.1.mlp.experts.0.gate_proj.weight"),
    "not a number": (lambda t: t[BOTH].__setitem__((2, 3, 1), float("nan")), "gate_up_proj holds NaN"),
    "stored apart, too": (
        lambda t: t.update({"model.layers.1.mlp.experts.3.up_proj.weight": t[BOTH][3, 48:].clone()}), "stored twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_PACKED)
def test_wrong_packed_experts_are_refused(case, tmp_path):
    packed = own_form("olmoe", tmp_path)
    change, message = WRONG_PACKED[case]
    changed(packed, change)
    with pytest.raises(InputError, match=message) as raised:
        FloatCheckpoint(packed)
    assert "\n" not in str(raised.value)


def test_an_expert_of_mixtral_stored_twice_is_refused(tmp_path):
    packed = own_form("mixtral", tmp_path)
    both = load_file(packed / "model.safetensors")["model.layers.0.mlp.experts.gate_up_proj"]
    changed(packed, lambda t: t.update({"model.layers.0.mlp.experts.1.w1.weight": both[1, :48].clone()}))
    with pytest.raises(InputError, match="stored for one and the same tensor"):
        FloatCheckpoint(packed)
