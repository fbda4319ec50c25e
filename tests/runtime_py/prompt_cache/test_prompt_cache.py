"""Prompts on disk: the same answers to the bit, whatever lies in the folder."""

from __future__ import annotations

import os
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from runtime_py.engine.saved import BLOCK
from runtime_py.load import open_model
from runtime_py.prompt_cache import entry
from runtime_py.prompt_cache.fingerprint import fingerprint
from runtime_py.prompt_cache.store import PromptCache
from runtime_py.text.generation import Generation, GenerationRequest, prompted
from runtime_py.text.generator import load_tokenizer
from runtime_py.text.sampling import SamplingSettings
from tests.runtime_py.tiny import times, write_tiny

LFM2 = {"model_type": "lfm2", "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False, "conv_L_cache": 4}  # fmt: skip
PROMPT = tuple(np.random.default_rng(0).integers(3, 1500, 400).tolist())
MOST = 1 << 30


@pytest.fixture(scope="module", params=["qwen2", "lfm2"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "model"
    write_tiny(folder, {}, **(LFM2 if request.param == "lfm2" else {}))
    runner, why = open_model(folder)
    assert why == ""
    return folder, runner, load_tokenizer(folder.with_name("model-source")), request.param == "lfm2"


def answer(model, prompt, cache=None, tenant=""):
    """(tokens, how many of the prompt's were found, last logits)"""
    _, runner, tokenizer, _ = model
    state = runner.new_state()
    reused = cache.restore(state, prompt, tenant) if cache else 0
    asked = GenerationRequest(prompt=tuple(prompt), sampling=SamplingSettings(0.0, 0, 1.0, 0), max_tokens=4)
    generation = Generation(asked, runner, tokenizer, state, reused)
    while not generation.finish_reason:
        generation.step()
    logits = runner.forward(state, [5], last_only=True)
    if cache:
        cache.keep(state, generation.cached_tokens(answers=False), tenant)
    return generation.tokens, generation.reused, logits.tobytes()


def opened(model, folder, most=MOST):
    return PromptCache(folder, most, model[0], model[1])


def kept(model, folder, *prompts):
    cache = opened(model, folder)
    for prompt in prompts:
        answer(model, prompt, cache)
    cache.close()


def test_a_second_start_computes_only_the_end(model, tmp_path):
    alone = answer(model, PROMPT)
    kept(model, tmp_path / "c", PROMPT)
    cache = opened(model, tmp_path / "c")
    tokens, reused, logits = answer(model, PROMPT, cache)
    assert (tokens, logits) == (alone[0], alone[2])
    assert reused == (256 if model[3] else 384)  # a recurrent state is kept where chunks of a prompt end
    cache.close()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_answers_never_depend_on_what_is_kept(model, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("c")
    cache = opened(model, folder)
    for _ in range(data.draw(st.integers(1, 4))):
        shared, own = data.draw(st.integers(0, 330)), data.draw(st.integers(1, 150))
        prompt = (*PROMPT[:shared], *(3 + (shared * own + i) % 1400 for i in range(own)))
        found = answer(model, prompt, cache)
        assert found[0::2] == answer(model, prompt)[0::2]
        cache.close()
        cache = opened(model, folder)
    cache.close()


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), what=st.sampled_from(["flip", "cut", "grow", "empty", "swap"]))
def test_a_damaged_file_is_as_none(model, tmp_path_factory, place, what):
    folder = tmp_path_factory.mktemp("c")
    kept(model, folder, PROMPT)
    files = sorted(folder.iterdir())
    path = files[int(place * len(files))]
    data = bytearray(path.read_bytes())
    at = int(place * 997 % 1 * len(data))
    if what == "flip":
        data[at] ^= 1 << (at % 8)
    elif what == "cut":
        del data[at:]
    elif what == "grow":
        data += b"x" * (1 + at)
    elif what == "empty":
        data.clear()
    else:
        data = bytearray(files[int(place * len(files)) - 1].read_bytes())
    path.write_bytes(bytes(data))
    cache = opened(model, folder)
    assert answer(model, PROMPT, cache)[0::2] == answer(model, PROMPT)[0::2]
    cache.close()
    cache = opened(model, folder)
    assert answer(model, PROMPT, cache)[1] >= 256  # written again
    cache.close()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_forged_file_with_no_numbers_is_as_none(model, tmp_path, number):
    kept(model, tmp_path, PROMPT)
    for path in tmp_path.iterdir():
        key = bytes.fromhex(path.name.split(".")[0])
        items, payload = entry.read(path, key, MOST)
        forged = np.frombuffer(payload, np.float16 if items else np.float32).copy()
        forged[:: max(forged.size // 3, 1)] = number
        entry.write(path, key, items, forged.tobytes())
    cache = opened(model, tmp_path)
    found = answer(model, PROMPT, cache)
    assert found[1] == 0 and found[0::2] == answer(model, PROMPT)[0::2]
    cache.close()


@pytest.mark.parametrize("items", [[], [2], [2, 2, 4, 3], [4] * 4, [2] * 6, [255] * 4000])
def test_a_forged_file_of_other_layers_is_as_none(model, tmp_path, items):
    kept(model, tmp_path, PROMPT)
    for path in tmp_path.glob("*.part"):
        key = bytes.fromhex(path.name.split(".")[0])
        entry.write(path, key, items, b"\0" * 1000)
    cache = opened(model, tmp_path)
    found = answer(model, PROMPT, cache)
    assert found[1] == 0 and found[0::2] == answer(model, PROMPT)[0::2]
    cache.close()


def test_tenants_find_only_their_own(model, tmp_path):
    cache = opened(model, tmp_path)
    answer(model, PROMPT, cache, "a")
    cache.close()
    cache = opened(model, tmp_path)
    assert answer(model, PROMPT, cache, "b")[1] == 0 and answer(model, PROMPT, cache, "a")[1] > 0
    cache.close()


def test_another_model_finds_nothing(model, tmp_path, tmp_path_factory):
    kept(model, tmp_path / "c", PROMPT)
    other = tmp_path_factory.mktemp("other") / "model"
    write_tiny(other, {"self_attn.q_proj": times(1.5)}, **(LFM2 if model[3] else {}))
    runner, _ = open_model(other)
    cache = PromptCache(tmp_path / "c", MOST, other, runner)
    assert cache.restore(runner.new_state(), PROMPT) == 0
    cache.close()
    assert fingerprint(other) != fingerprint(model[0])


def test_the_folder_stays_within_its_size_and_the_beginning_stays_longest(model, tmp_path):
    kept(model, tmp_path, PROMPT)
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    most = sum(files.values()) - 1
    (tmp_path / "notes.txt").write_text("mine")
    cache = opened(model, tmp_path, most)
    answer(model, PROMPT[::-1], cache)
    cache.close()
    left = [path for path in tmp_path.iterdir() if path.name != "notes.txt"]
    assert sum(path.stat().st_size for path in left) <= most and (tmp_path / "notes.txt").read_text() == "mine"
    cache = opened(model, tmp_path, MOST)
    key = next(iter(cache._keys(PROMPT[::-1][:BLOCK], "", "")))
    assert (tmp_path / f"{key.hex()}.part").exists()
    cache.close()


def test_what_was_never_finished_goes_after_an_hour(model, tmp_path):
    old, new, foreign = (tmp_path / f".{'0' * 64}.part.{c * 16}.tmp" for c in "abz")
    for path in (old, new, foreign):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - 7200,) * 2)
    os.utime(new)
    kept(model, tmp_path, PROMPT)
    assert not old.exists() and new.exists() and foreign.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have modes on POSIX")
def test_a_folder_that_others_can_write_into_is_refused(model, tmp_path):
    tmp_path.chmod(0o777)
    (tmp_path / "theirs").write_text("x")
    with pytest.raises(InputError, match="others can write into it"):
        opened(model, tmp_path)
    assert (tmp_path / "theirs").exists()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="--prompt-cache"):
        opened(model, file)


def test_a_full_disk_ends_the_keeping_and_nothing_else(model, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(entry, "write", full)
    kept(model, tmp_path, PROMPT, PROMPT[::-1])
    assert capsys.readouterr().err.count("No space left on device") == 1 and not list(tmp_path.iterdir())


def test_a_folder_that_goes_meanwhile_ends_the_keeping_and_nothing_else(model, tmp_path, capsys):
    cache = opened(model, tmp_path / "c")
    put = cache._files.trim
    cache._files.trim = lambda: (shutil.rmtree(tmp_path / "c"), put())
    expected = answer(model, PROMPT)
    for prompt in (PROMPT, PROMPT[::-1], PROMPT):
        found = answer(model, prompt, cache)
    end = time.monotonic() + 10
    while not cache._tasks.empty() and time.monotonic() < end:
        time.sleep(0.01)
    assert cache._tasks.empty() and cache._writer.is_alive()
    cache.close()
    assert found[0::2] == expected[0::2] and capsys.readouterr().err.count("keeps no more") <= 1


def test_files_are_the_users_alone(model, tmp_path):
    kept(model, tmp_path / "c", PROMPT)
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "c", *(tmp_path / "c").iterdir())} == {0}


def test_caches_of_float32_come_back(tmp_path):
    """Numbers beyond float16: the engine finds that out once, and a new start takes it from the files."""
    folder = write_tiny(tmp_path / "model", {"k_proj": times(1e6), "v_proj": times(1e6)})
    tokenizer = load_tokenizer(folder.with_name("model-source"))
    found = []
    for _ in range(2):
        runner, _ = open_model(folder)
        model = folder, runner, tokenizer, False
        cache = opened(model, tmp_path / "c")
        found.append(answer(model, PROMPT, cache))
        cache.close()
    assert runner.new_state().items == ((4, 4), (4, 4))
    assert found[0][0::2] == found[1][0::2] and found[1][1] == 384


def test_prompted_tokens():
    assert prompted(clean=0, reused=0, length=9) == 9
    assert prompted(clean=5, reused=5, length=9) == 9  # all that follows is computed as a prompt
    assert prompted(clean=5, reused=7, length=9) == 5  # two came from an answer, and what follows stands on them
