"""`schedule`: what it measures, what its classifier learns, and the command from a text to an answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from export.contract.errors import InputError
from runtime_py.load import open_model
from runtime_py.widths.learned import FILE, NEVER, Classifier, read_switch
from tests.runtime_py.tiny import write_tiny
from toolchain.cli import app
from toolchain.evaluate.perplexity import compared
from toolchain.scheduling.measure import Prompts, measure, open_both
from toolchain.scheduling.training import _classes, _Network, train
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.scheduling.schedule import ScheduleSettings

NESTED = QuantizeSettings(bits=4, nested=2, rows_per_codebook=8)
STEPS = (0, 64, 128, NEVER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("schedule") / "nested", {}, NESTED)


def athena(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 12), st.integers(0, 5))
def test_torch_and_numpy_have_one_classifier(tokens, width, padded):
    """In float32 and float64, so within a hundred-thousandth."""
    torch.manual_seed(tokens)
    network = _Network(width, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    keys, values = torch.randn(1, tokens + padded, width), torch.randn(1, tokens + padded, width)
    hidden = torch.arange(tokens + padded)[None] >= tokens
    expected = torch.softmax(network(keys, values, hidden), dim=-1)[0].detach().numpy()
    one = Classifier(**{name: value.detach().numpy() for name, value in network.arrays.items()})
    found = one.chances(keys[0, :tokens].numpy(), values[0, :tokens].numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_first_step_late_enough_is_what_the_runtime_takes():
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(4), 200)
    for confidence in (0.0, 0.3, 0.9, 1.0):
        found = _classes(chances, confidence)
        late = [next((i for i in range(4) if row[: i + 1].sum() >= confidence), 3) for row in chances]
        np.testing.assert_array_equal(found, late)


def prompts_that_tell(count: int = 200, told: bool = True) -> Prompts:
    """Half of the answers cannot be narrow at all; the first key says which, or nothing does."""
    rng = np.random.default_rng(1)
    hard = rng.random(count) < 0.5
    keys = [rng.standard_normal((rng.integers(8, 30), 16)).astype(np.float32) for _ in range(count)]
    for own, one in zip(keys, hard):
        own[:, 3] += 3.0 * (one if told else rng.random() < 0.5)
    easy = [0.001, 0.0005, 0.0002, 0.0]
    divergences = np.array([[0.5, 0.4, 0.3, 0.0] if one else easy for one in hard])
    return Prompts(keys, [np.zeros_like(own) for own in keys], divergences, STEPS, 0)


def test_what_a_prompt_tells_is_learned():
    found = {row["step"]: row for row in train(prompts_that_tell(), 1.02, (4, 2), 192, 0).rows}
    assert found["4 bits throughout"]["ratio"] == 1.0 and found["4 bits throughout"]["width"] == 4.0
    assert found["2 bits from token 0 on"]["width"] == 2.0
    assert found["learned"]["ratio"] < 1.03 and found["learned"]["width"] < 3.4
    assert found["earliest that is good enough"]["width"] <= found["learned"]["width"] + 0.2


def test_where_a_prompt_tells_nothing_answers_stay_wide():
    found = {row["step"]: row for row in train(prompts_that_tell(told=False), 1.02, (4, 2), 192, 0).rows}
    assert found["learned"]["width"] > 3.5


def test_training_is_the_same_again():
    one, two = (train(prompts_that_tell(60), 1.02, (4, 2), 192, 7) for _ in range(2))
    assert one.rows == two.rows and one.switch.confidence == two.switch.confidence
    np.testing.assert_array_equal(one.switch.classifier.queries, two.switch.classifier.queries)


def test_divergences_are_those_of_answers_computed_token_by_token(folder):
    """Two widths at one cache, each token alone; rounding of sums in another order aside."""
    asked = ScheduleSettings(prompt=16, answer=12, windows=20)
    runner, layer = open_both(folder, 4, 2)
    windows = np.random.default_rng(0).integers(0, 900, (3, 28))
    found = measure(runner, windows, asked, (4, 2), layer, quiet=True)
    assert [len(keys) for keys in found.keys] == [16, 8, 8] and found.steps == (0, 4, 8, NEVER)
    engines = {bits: open_model(folder, bits=bits)[0] for bits in (2, 4)}
    for row, (window, prompt) in zip(found.divergences, zip(windows, (16, 8, 8))):
        tokens = window[16 - prompt :]
        logits = {}
        for step in found.steps:
            state = engines[4].new_state()
            rows = [engines[4].forward(state, tokens[:prompt], last_only=True)[-1]]
            for number, token in enumerate(tokens[prompt:-1]):
                rows.append(engines[2 if number >= step else 4].forward(state, [token])[0])
            logits[step] = np.array(rows)
        expected = [compared(logits[s], logits[NEVER], tokens[prompt:])[2].mean() for s in found.steps]
        np.testing.assert_allclose(row, expected, rtol=0.05, atol=1e-5)
        assert row[0] > row[2] > row[3] == 0.0


def test_the_command_trains_what_run_then_uses(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and then it sleeps. " * 200, encoding="utf-8")
    small = ["--text", str(text), "--prompt", "16", "--answer", "12", "--windows", "20"]
    done = athena("schedule", str(folder), *small, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["rows"][0]["step"] == "4 bits throughout" and told["answers"] == 4
    assert read_switch(folder).steps == (0, 4, 8, NEVER)
    ran = athena("run", str(folder), "--prompt", "The quick", "--schedule", "learned", "--max-tokens", "8")
    assert ran.exit_code == 0, ran.output
    shown = athena("schedule", str(folder), *small, "--wide", "3", "--narrow", "2", "--quality", "50")
    assert shown.exit_code == 0 and "2 bits from token 0 on" in shown.stdout and FILE in shown.stdout
    assert (read_switch(folder).wide, read_switch(folder).narrow) == (3, 2)
    priced = athena("cost", str(folder), "--target", "rpi5", "--generate", "16:12", "--schedule", "learned")
    assert priced.exit_code == 2 and "give the step instead" in priced.stderr


@pytest.mark.parametrize(
    "options, told",
    [
        (["--windows", "200"], "fewer than --windows 200"),
        (["--prompt", "60000"], "the model has"),
        (["--wide", "2", "--narrow", "4"], "--wide 2 must be more than --narrow 4"),
        (["--wide", "2"], "--wide must be the larger"),
        (["--wide", "8"], "8 bits are not among the widths of its codes, 2 to 4"),
        (["--quality", "0.5"], "--quality"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, tmp_path, options, told):
    text = tmp_path / "text.txt"
    text.write_text("A text that is long enough for a few windows only. " * 60, encoding="utf-8")
    done = athena("schedule", str(folder), "--text", str(text), "--answer", "12", "--prompt", "16", *options)
    assert done.exit_code != 0 and told in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


def test_a_folder_of_one_width_has_nothing_to_schedule(demo_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("text " * 100, encoding="utf-8")
    done = athena("schedule", str(demo_folder), "--text", str(text))
    assert done.exit_code == 2 and "export --nested" in done.stderr
    with pytest.raises(InputError, match="--schedule learned"):
        open_model(demo_folder, bits="learned")
