"""Parts of a block that are kept between passes: the same bytes as computing them again, and fewer computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.graph.archs import model_spec
from tests.conftest import DEMO
from tests.export.graph.families import random_text, tiny_model
from toolchain.calibrate.blocks import BlockRunner
from toolchain.calibrate.finished import FinishedParts
from toolchain.pipeline.run import quantize_model
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.checkpoint import SourceModel


@pytest.fixture
def runner() -> BlockRunner:
    source = SourceModel(DEMO)
    return BlockRunner(source, model_spec(source.config))


def _counted(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_part_is_computed_once_for_each_sequence_when_its_layers_are_quantized(runner):
    hidden = runner.embed(np.arange(3, 63).reshape(3, 20))
    block, layers = runner.load_block(0), runner.spec.names(0).linears()
    wanted, calls = runner.run(block, hidden), _counted(block.self_attn.q_proj)
    finished = FinishedParts(runner, block, layers, hidden)
    finished.quantized(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
    runner.run(block, hidden)
    assert len(calls) == 3  # the output projection may still change
    finished.quantized(("self_attn.o_proj",))
    for _ in range(3):
        assert torch.equal(runner.run(block, hidden), wanted)
        assert len(calls) == 6
    finished.forget()
    assert torch.equal(runner.run(block, hidden), wanted) and len(calls) == 9


def test_what_is_kept_does_not_change_with_what_a_block_makes_of_it(runner):
    hidden = runner.embed(np.arange(3, 23).reshape(1, 20))
    block = runner.load_block(0)
    finished = FinishedParts(runner, block, ("self_attn.q_proj",), hidden)
    finished.quantized(("self_attn.q_proj",))
    block.self_attn.register_forward_hook(lambda module, inputs, output: (output[0].add_(1.0), *output[1:]))
    first = runner.run(block, hidden)
    assert torch.equal(runner.run(block, hidden), first)


FAMILIES = ("llama", "phi", "gemma2", "qwen3_5_text", "lfm2", "falcon_h1", "qwen3_moe", "gemma3n_text")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoint_is_the_same_to_the_byte(family, tmp_path, monkeypatch):
    """Blocks in sequence and in parallel, states, experts, and states with columns of their own."""
    tiny_model(family, tmp_path / "source")
    random_text(tmp_path / "text.txt")
    settings = QuantizeSettings(bits=3, sequences=2, sequence_length=32, passes=1, asymmetric=True)

    def made(name: str) -> dict[str, bytes]:
        out = tmp_path / name
        quantize_model(
            str(tmp_path / "source"), out, settings, CalibrationChoice(str(tmp_path / "text.txt")), quiet=True
        )
        return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}

    kept = made("kept")
    monkeypatch.setattr(FinishedParts, "quantized", lambda self, names: None)
    again = made("again")
    assert kept and kept == again
