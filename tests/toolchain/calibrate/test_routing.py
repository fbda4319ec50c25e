"""Experts: unpacked ones compute what transformers does; each has the Hessian of its own tokens, or a pooled one."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.artefacts.records import POOLED, final_loss
from export.contract.errors import InputError
from export.contract.formats import CodebookLayout
from export.contract.formats.trellis import TrellisLayout
from tests.conftest import _checkpoint
from tests.export.graph.families import random_text, tiny_model
from toolchain.calibrate.blocks import BlockRunner, get_weight
from toolchain.calibrate.gradients import measure_gradients
from toolchain.calibrate.own_text import whole_model
from toolchain.calibrate.routing import expert_groups, expert_tokens, pooled_hessians, too_few
from toolchain.pipeline.blocks.apart import apart
from toolchain.quantize.methods.athena import choose_layout
from toolchain.quantize.solvers.trellis import choose_layout as choose_trellis
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.heads import open_model
from toolchain.system.progress import Reporter

FAMILIES = ["qwen3_moe", "olmoe", "mixtral"]
TOKENS = np.random.default_rng(3).integers(3, 90, (3, 16))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp(family)
        tiny_model(family, found[family])
    return found


def runner_of(folder):
    source, spec = open_model(folder)
    runner = BlockRunner(source, spec)
    return runner, runner.embed(TOKENS), runner.load_block(0)


def has_expert(runner, block, hidden, number):
    """Which tokens of which sequence the router sends to an expert, bool [sequences, length]."""
    picks: list[torch.Tensor] = []
    handle = block.get_submodule("mlp.experts").register_forward_pre_hook(lambda m, given: picks.append(given[1]))
    for sequence in hidden:  # one after another: several at once come in any order
        runner.run(block, sequence[None])
    handle.remove()
    return np.stack([(picked == number).any(dim=1).numpy() for picked in picks])


@pytest.mark.parametrize("family", FAMILIES)
def test_unpacked_experts_compute_what_packed_ones_do(family, folders):
    source, spec = open_model(folders[family])
    theirs = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32).eval()
    ours = whole_model(source)
    assert set(spec.quantizable()) <= {name for name, _ in ours.named_modules()}
    ids = torch.from_numpy(TOKENS)
    with torch.no_grad():
        np.testing.assert_allclose(ours(ids).logits, theirs(ids).logits, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_hessians_are_those_of_the_tokens_that_the_router_sends(family, folders):
    runner, hidden, block = runner_of(folders[family])
    spec, inputs = runner.spec, []
    experts = block.get_submodule("mlp.experts")
    handle = experts.register_forward_pre_hook(lambda module, given: inputs.append(given))
    runner.run(block, hidden)
    handle.remove()
    found, _ = runner.hessians(block, spec.block.linears(), hidden)
    counts, names = expert_tokens(runner, block, hidden), spec.block.by_expert()
    assert counts.sum() == TOKENS.size * spec.block.experts.per_token
    for number, (gate, up, down) in enumerate(names):
        rows = torch.cat([x[(picked == number).any(dim=1)] for x, picked, _ in inputs])
        assert len(rows) == counts[number]
        expected = 2 / TOKENS.size * (rows.T @ rows).numpy()
        np.testing.assert_allclose(found[gate], expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
        np.testing.assert_array_equal(found[gate], found[up])
        expert = experts[number]
        with torch.no_grad():
            inner = expert.gated(expert.gate_proj(rows), expert.up_proj(rows))
        expected = 2 / TOKENS.size * (inner.T @ inner).numpy()
        np.testing.assert_allclose(found[down], expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
    pooled = pooled_hessians(runner, spec.block, block, hidden)
    for template, place in zip(spec.block.of_experts(), range(3)):
        expected = sum(found[expert[place]] for expert in names) / spec.block.experts.per_token
        np.testing.assert_allclose(pooled[template], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_weighted_tokens_weigh_in_the_experts_that_have_them(folders):
    """A weight for each token: experts see that of their own tokens."""
    runner, hidden, block = runner_of(folders["olmoe"])
    names = runner.spec.block.by_expert()[1]
    plain, _ = runner.hessians(block, names, hidden)
    has = has_expert(runner, block, hidden, 1).astype(np.float32)
    only, _ = runner.hessians(block, names, hidden, dict.fromkeys(names, has))
    others, _ = runner.hessians(block, names, hidden, dict.fromkeys(names, 1 - has))
    for name in names:
        np.testing.assert_allclose(only[name] * has.mean(), plain[name], rtol=1e-4, atol=1e-5)
        assert not others[name].any()


def test_gradients_stand_at_the_tokens_that_an_expert_has(folders):
    source, spec = open_model(folders["qwen3_moe"])
    found = measure_gradients(source, spec, TOKENS, quiet=True, per_weight=True, groups=2)
    runner, hidden, block = runner_of(folders["qwen3_moe"])
    for number, names in enumerate(spec.block.by_expert()):
        has = has_expert(runner, block, hidden, number)
        for name in names:
            full = spec.block_name(0) + name
            assert found.outputs[full].shape == (2, *TOKENS.shape)
            assert not found.outputs[full][:, ~has].any()
            assert (found.outputs[full][:, has].sum(axis=0) > 0)[:, None].any() == has.any()
            assert found.weights[full].any() == has.any()


def unreachable(folder, block: int, expert: int) -> None:
    """Let no token reach an expert: its row of the router opposes what all tokens have in common."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    prefix = f"model.layers.{block}."
    router = next(name for name in tensors if name.startswith(prefix) and name.endswith(".gate.weight"))
    tensors[f"{prefix}self_attn.o_proj.weight"].zero_()
    tensors["model.embed_tokens.weight"][:, 0] = 5.0
    tensors[f"{prefix}post_attention_layernorm.weight"][0] = 5.0
    tensors[router][:, 0] = 1.0
    tensors[router][expert, 0] = -10.0
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_that_no_token_reaches_takes_the_pooled_hessian(family, tmp_path, monkeypatch):
    tiny_model(family, tmp_path / "source")
    unreachable(tmp_path / "source", 0, 2)
    runner, hidden, block = runner_of(tmp_path / "source")
    assert expert_tokens(runner, block, hidden)[2] == 0
    few = too_few(runner.spec.block, block, expert_tokens(runner, block, hidden))
    assert set(runner.spec.block.by_expert()[2]) <= few.keys()
    text = random_text(tmp_path / "text.txt")
    options = {"bits": 4, "sequences": 8, "sequence_length": 32, "guided": True, "asymmetric": True, "spread": True}
    notes = noted(monkeypatch)
    checkpoint = _checkpoint(tmp_path / "source", str(text), None, tmp_path / "q", **options)
    said = next(note for note in notes if note.startswith("block 1: few tokens reached experts "))
    assert "2" in said.removeprefix("block 1: few tokens reached experts ").partition(":")[0].split(", ")
    assert said.endswith(": they share a pooled Hessian")
    for name in runner.spec.block.by_expert()[2]:
        record = checkpoint.records[runner.spec.block_name(0) + name]
        assert record.losses[POOLED] == 0
        assert 0 <= record.losses["refinement"] < 0.1  # of the layer's output: quantized to its width like others
    reached = checkpoint.records[runner.spec.block_name(0) + runner.spec.block.by_expert()[1][0]]
    assert POOLED not in reached.losses
    widths = {
        (name.partition(".experts.")[0], name.rpartition(".")[2], record.bits)
        for name, record in checkpoint.records.items()
        if ".experts." in name
    }
    assert len(widths) == 2 * 3  # all experts of a block have one width in the same layer


def test_groups_of_experts_hold_no_more_than_the_block(folders):
    runner, _, block = runner_of(folders["qwen3_moe"])
    groups = list(expert_groups(runner.spec.block, block))
    assert sum(groups, ()) == tuple(name for names in runner.spec.block.by_expert() for name in names)
    room = sum(parameter.nbytes for parameter in block.parameters())
    for group in expert_groups(runner.spec.block, block, 20):
        size = sum(8 * 20 * get_weight(block.get_submodule(name)).shape[1] ** 2 for name in group)
        assert size <= room or len(group) == 3
    assert len(list(expert_groups(runner.spec.block, block, 20))) > 1


def test_128_experts_never_have_their_hessians_in_memory_together(tmp_path, monkeypatch):
    """Those that are alive at once take no more than the block's own weights, where all take eight times as much."""
    sizes = {"num_hidden_layers": 1, "num_experts": 128, "num_experts_per_tok": 8, "hidden_size": 64,
             "moe_intermediate_size": 16}  # fmt: skip
    tiny_model("qwen3_moe", tmp_path / "source", **sizes)
    alive, most = dict[int, int](), [0]
    measured = BlockRunner.hessians

    def hessians(*arguments):
        found, outputs = measured(*arguments)
        for array in {id(array): array for array in found.values()}.values():
            alive[id(array)] = array.nbytes
            weakref.finalize(array, alive.pop, id(array))
        most[0] = max(most[0], sum(alive.values()))
        return found, outputs

    monkeypatch.setattr(BlockRunner, "hessians", hessians)
    notes = noted(monkeypatch)
    options = {"bits": 4, "sequences": 4, "sequence_length": 32, "passes": 1}
    checkpoint = _checkpoint(
        tmp_path / "source", str(random_text(tmp_path / "text.txt")), None, tmp_path / "q", **options
    )
    runner, _, block = runner_of(tmp_path / "source")
    room = sum(parameter.nbytes for parameter in block.parameters())
    every = sum(
        8 * get_weight(block.get_submodule(n)).shape[1] ** 2 for own in runner.spec.block.by_expert() for n in own
    )
    assert every > 4 * room >= 4 * most[0] > 0
    experts = [record for name, record in checkpoint.records.items() if ".experts." in name]
    assert len(experts) == 3 * 128 > sum(POOLED in record.losses for record in experts) > 128  # eight tokens for each
    assert any("few tokens reached experts 0, 1, " in note and " more: they share" in note for note in notes)


def noted(monkeypatch) -> list[str]:
    """The lines for the user from now on."""
    found: list[str] = []
    monkeypatch.setattr(Reporter, "note", lambda self, text: found.append(text))
    return found


@pytest.mark.parametrize("rows", [24, 96, 192, 768])
@pytest.mark.parametrize("columns", [32, 300, 2048])
def test_codebooks_of_experts_end_where_experts_do(rows, columns):
    for settings in (QuantizeSettings(bits=3), QuantizeSettings(bits=2, format="trellis"), QuantizeSettings(bits=4)):
        chosen = apart(settings, rows, columns)
        trellis = choose_trellis(rows, columns, chosen) if chosen.uses_trellis else None
        layout = trellis[0] if trellis else choose_layout(rows, columns, chosen)[0]
        assert isinstance(layout, CodebookLayout | TrellisLayout)
        assert rows % layout.rows_per_codebook == 0
        plain = choose_trellis(rows, columns, settings) if settings.uses_trellis else None
        usual = plain[0] if plain else choose_layout(rows, columns, settings)[0]
        assert layout.rows_per_codebook >= usual.rows_per_codebook
        if rows % usual.rows_per_codebook == 0:
            assert chosen == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "qrazor", "bits": 4}, "--method qrazor"),
        ({"outliers": 0.01}, "--outliers"),
        ({"equalize": True}, "--equalize"),
        ({"rotation": "residual"}, "--rotation residual"),
    ],
)
def test_what_experts_do_not_have_is_refused(options, message, folders, tmp_path):
    settings = QuantizeSettings(**options) if "method" not in options else None
    if settings is None:
        plain = QuantizeSettings(method="qrazor", bits=4, razor=_razor())
        settings = replace(plain)
    from toolchain.pipeline.run import CalibrationChoice, quantize_model

    with pytest.raises(InputError, match=f"{message} is not available for models with a mixture of experts"):
        quantize_model(str(folders["olmoe"]), tmp_path / "q", settings, CalibrationChoice("built-in"), quiet=True)
    assert not (tmp_path / "q").exists()


def _razor():
    from toolchain.settings.razor import RazorSettings

    return RazorSettings(activation_bits=8)


def test_layer_losses_are_not_counts_of_tokens():
    assert final_loss({"sweep": 0.5, "refinement": 0.25, "damping": 0.1, POOLED: 3.0}) == 0.25
    assert final_loss({POOLED: 3.0}) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_more_experts_than_the_config_says_are_refused(family, folders, tmp_path):
    """transformers refuses the shapes of what it packs then; leaving some out would be another model."""
    config = json.loads((folders[family] / "config.json").read_text())
    for name in ("num_experts", "num_local_experts"):
        if name in config:
            config[name] -= 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copyfile(folders[family] / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="belongs to an expert that the model of config.json does not have"):
        open_model(tmp_path)
