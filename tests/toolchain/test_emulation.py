"""`eval --emulate`: any target computes what its description says, decoders by perplexity and encoders by cosine."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from export.contract.errors import InputError
from tests.conftest import _checkpoint, _package, shared
from tests.export.graph.families import random_text, tiny_model
from toolchain.evaluate.arithmetic import arithmetic_of
from toolchain.evaluate.emulate import EmulatedScorer, emulated_target
from toolchain.evaluate.perplexity import FolderScorer
from toolchain.evaluate.similarity import compare_encoder

ROOT = Path(__file__).resolve().parents[2]
TOKENS = np.random.default_rng(0).integers(3, 90, 24)


def exported(family: str, work: Path, **settings) -> Path:
    tiny_model(family, work / "source")
    text = random_text(work / "text.txt")
    return _package(_checkpoint(work / "source", str(text), None, work / "q", **settings), work / "model")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    return exported("llama", tmp_path_factory.mktemp("emulated"), bits=4, sequences=2, sequence_length=16, passes=1)


def divergence(folder: Path, name: str, *constants: str, noise: float = 0.0) -> float:
    """Mean squared distance of the logits from the runtime's, over their variance."""
    exact = FolderScorer(folder, "float32").logits(TOKENS)
    found = EmulatedScorer(folder, emulated_target(name, constants), noise).logits(TOKENS)
    return float(((found - exact) ** 2).mean() / exact.var())


def test_targets_that_lose_nothing_are_near_and_fewer_bits_are_farther(decoder):
    assert divergence(decoder, "digital-sram-pim") == divergence(decoder, "rap-baseline") < 1e-2
    assert divergence(decoder, "rap") < 0.05  # rounds down, integer softmax and norms
    analog = [divergence(decoder, "rap-baseline", f"adc_bits={bits}") for bits in (4, 6, 8)]
    assert analog == sorted(analog, reverse=True) and analog[0] > 10 * analog[-1]
    exact = divergence(decoder, "rap", "adc_bits=3")  # 7 ones a conversion instead of 15: slower, not worse
    assert exact == pytest.approx(divergence(decoder, "rap"))
    assert divergence(decoder, "rap", "adc.enob=3", "rows_active=15") > 2 * exact
    assert divergence(decoder, "rap", noise=0.2) > 2 * exact


def test_codes_of_four_bits_are_farther_than_of_eight(decoder):
    razored = [divergence(decoder, "qrazor-pim", f"input_bits={w}.25", f"weight_bits={w}.25") for w in (3, 4, 6, 8)]
    assert razored == sorted(razored, reverse=True)
    grouped = [divergence(decoder, "tender", f"activation_groups={g}", "weight_bits=8") for g in (1, 4, 14)]
    assert grouped[2] < grouped[0]
    assert divergence(decoder, "tender", "activation_bits=8", "weight_bits=8") < divergence(decoder, "tender")


def test_a_file_of_ones_own_works(decoder, tmp_path):
    text = (ROOT / "targets" / "devices" / "rap-baseline.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("adc_bits = { value = 8", "adc_bits = { value = 3"))
    mine = divergence(decoder, str(tmp_path / "mine.toml"))
    assert mine == pytest.approx(divergence(decoder, "rap-baseline", "adc_bits=3"))


@pytest.mark.parametrize(
    "name, constants, noise, message",
    [
        ("abacus", (), 0, "is unknown"), ("rpi5", (), 0, "without --emulate"), ("hetero-albert", (), 0, "pruned"),
        ("rap", ("adc_bits",), 0, "NAME=VALUE"), ("rap", ("adc_bits=3,4",), 0, "one value"),
        ("rap", ("enob=3",), 0, "no constant"), ("rap", ("adc_bits=0",), 0, "adc_bits of 1 to 16"),
        ("rap", ("input_bits=12",), 0, "at most 8 bits"),
        ("rap", ("input_bits=4",), 0.1, "of 8 bits"), ("rap-baseline", ("bits_per_cycle=3",), 0, "1, 2, 4 or 8"),
        ("rap", (), 11, "0 to 10"), ("tender", (), 0.1, "has none"),
        ("tender", ("activation_groups=99",), 0, "1 to 24"),
        ("qrazor-pim", ("input_bits=1.25",), 0, "2 to 8 bits"), ("rap", ("rows=0",), 0, "rows must be 1 to 65536"),
    ],
)  # fmt: skip
def test_what_has_no_arithmetic_is_refused(name, constants, noise, message):
    with pytest.raises(InputError, match=message):
        arithmetic_of(emulated_target(name, constants), noise)


def test_encoders_are_compared_by_cosine(tmp_path):
    folder = exported("bert", tmp_path, bits=4, sequences=2, sequence_length=16, passes=1)
    text = (tmp_path / "text.txt").read_text()
    near = compare_encoder(folder, text, 6, emulated_target("digital-sram-pim"), 0.0)
    far = compare_encoder(folder, text, 6, emulated_target("rap-baseline", ["adc_bits=2"]), 0.0)
    assert near.texts == far.texts and far.lowest <= far.mean < near.mean and near.lowest > 0.98
    assert json.dumps(near.to_json())
    with pytest.raises(InputError, match="no line"):
        compare_encoder(folder, "\n \n", None, emulated_target("rap"), 0.0)


@pytest.mark.long
def test_twenty_points_of_stories_take_two_minutes(tmp_path):
    source = shared("models/stories260K")
    text = Path(__file__).parents[2] / "README.md"
    folder = _package(
        _checkpoint(source, str(text), None, tmp_path / "q", bits=4, passes=1, sequences=8), tmp_path / "m"
    )
    points = [("rap", f"adc_bits={b}", f"rows_active={a}") for b in (2, 3, 4) for a in (7, 15, 31)]
    points += [("rap-baseline", f"adc_bits={b}", f"rows={r}") for b in (3, 4, 5, 6, 7) for r in (64, 128)]
    points += [("tender", "activation_groups=14", "weight_bits=4")]
    tokens = np.random.default_rng(0).integers(3, 500, 256)
    EmulatedScorer(folder, emulated_target("rap", ["adc_bits=2"])).logits(tokens[:2])  # compiles
    start = time.process_time()
    for name, *constants in points:
        assert np.isfinite(EmulatedScorer(folder, emulated_target(name, constants)).logits(tokens)).all()
    assert len(points) == 20 and time.process_time() - start < 120
