"""Whole models over caches of integer codes: near float16, the same bits however tokens pass, refused where not had."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError, NotFiniteError
from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from runtime_py.prompt_cache import entry
from runtime_py.prompt_cache.store import PromptCache
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import TINY, random_text, tiny_model
from tests.runtime_py.engine.test_apart import same
from tests.runtime_py.engine.test_range import huge
from tests.runtime_py.tiny import write_tiny
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings

IDS = np.random.default_rng(5).integers(3, 1500, 700)
WINDOW = {"model_type": "mistral", "sliding_window": 24, "head_dim": 24, "num_attention_heads": 6}
# Mean KL to float16 that a cache may cost the bundled model at random tokens, nats. Any change of the cache also turns
# roundings of activations, which is most of it at 8 bits.
MOST_KL = {8: 0.003, 4: 0.2}


@pytest.fixture(scope="module", params=[8, 4])
def bits(request):
    return request.param


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bits") / "model", {}, **WINDOW)


@pytest.fixture(scope="module")
def model(tiny, bits):
    runner, _ = open_model(tiny, cache_bits=bits)
    assert isinstance(runner, Engine) and runner.cache_bits == bits
    return runner


def logits(model, *pieces):
    state = model.new_state()
    return np.concatenate([model.forward(state, piece) for piece in pieces])


def test_near_to_float16(demo_folder, bits):
    """Of the bundled model, whose numbers are trained ones."""
    plain, coded = open_model(demo_folder)[0], open_model(demo_folder, cache_bits=bits)[0]
    one, other = (logits(model, IDS).astype(np.float64) for model in (plain, coded))
    one, other = (x - x.max(-1, keepdims=True) for x in (one, other))
    one, other = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (one, other))
    kl = (np.exp(one) * (one - other)).sum(-1).mean()
    print(f"KL at {bits} bits: {kl:.5f}")
    assert 0 < kl < MOST_KL[bits]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(2, 300), min_size=1, max_size=4))
def test_a_prompt_in_any_pieces(model, sizes):
    """Bits do not depend on where calls end; a piece of one token has products of its own, as everywhere."""
    edges = [0, *np.cumsum(sizes).tolist()]
    ids = np.resize(IDS, edges[-1])[:500]
    pieces = [ids[a:b] for a, b in itertools.pairwise(edges) if b <= len(ids)]
    if pieces:
        whole = np.concatenate(pieces)
        np.testing.assert_array_equal(logits(model, *pieces), logits(model, whole))


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=20), st.integers(0, 2**31))
def test_texts_together(model, lengths, seed):
    rng = np.random.default_rng(seed)
    same(model, [rng.integers(3, 1500, length) for length in lengths], 3, seed)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 7)), min_size=1, max_size=4), st.integers(0, 2**31))
def test_several_tokens_of_a_text(model, texts, seed):
    """Neighbours share bytes of the cache, which threads must not write at once."""
    rng = np.random.default_rng(seed)
    together, alone = ([model.new_state() for _ in texts] for _ in range(2))
    runs = [rng.integers(3, 1500, size).tolist() for _, size in texts]
    for (length, _), *states in zip(texts, together, alone):
        for state in states if length else ():
            model.forward(state, IDS[:length], last_only=True)
    found = model.advance(together, runs)
    for state, run, rows in zip(alone, runs, found):
        for token, row in zip(run, rows):
            np.testing.assert_array_equal(row, model.forward(state, [token])[0])
    for one, other in zip(together, alone):
        np.testing.assert_array_equal(model.forward(one, IDS[:5]), model.forward(other, IDS[:5]))


def test_threads_change_nothing(tiny, bits):
    found = [logits(open_model(tiny, threads=n, cache_bits=bits)[0], IDS[:45], IDS[45:90]) for n in (1, 2, 3)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_memory(tiny, model, bits):
    plain = open_model(tiny)[0]
    block = 2 * bits * 32 + 64  # of 16 positions: codes of heads of 24, padded to 32, and scales
    assert model.cache_bytes_per_token == 2 * 2 * 2 * block // 16
    assert model.state_bytes(400) < plain.state_bytes(400)
    state = model.new_state()
    model.forward(state, IDS[:400], last_only=True)
    assert state.bytes() == 2 * 2 * 2 * block * state.capacity // 16 <= model.state_bytes(400)


@pytest.mark.parametrize("key, value", [(20, 0), (0, 20), (20, 20)])
def test_numbers_beyond_float16_need_no_more_room(tmp_path, bits, key, value):
    folder = write_tiny(tmp_path / "huge", huge(key, value))
    model = open_model(folder, cache_bits=bits)[0]
    before = model.cache_bytes_per_token
    same(model, [[5, 6, 7], [9] * 33, []])
    assert model.cache_bytes_per_token == before and np.isfinite(logits(model, IDS[:40])).all()


@pytest.mark.parametrize("family", ["gemma2", "gemma3n_text", "gpt_oss", "lfm2", "nemotron_h dense"])
def test_families(family, tmp_path, bits):
    check(family, tmp_path, bits)


@pytest.mark.long
@pytest.mark.parametrize("family", TINY)
def test_every_family(family, tmp_path, bits):
    check(family, tmp_path, bits)


def check(family, tmp_path, bits):
    """Caps, sinks, keys of earlier layers, recurrent states beside a cache: near float16, the same in any pieces."""
    tiny_model(family, tmp_path / "source")
    text = random_text(tmp_path / "text.txt")
    made = _checkpoint(tmp_path / "source", str(text), None, tmp_path / "quantized", bits=4, method="rtn")
    folder = _package(made, tmp_path / "model")
    plain, why = open_model(folder)
    if why:
        with pytest.raises(InputError, match=f"--cache-bits {bits} cannot be had"):
            open_model(folder, cache_bits=bits)
        return
    model, ids = open_model(folder, cache_bits=bits)[0], IDS[:40] % 90
    one, other = logits(plain, ids), logits(model, ids)
    off = np.abs(one - other).mean(axis=1) / np.abs(one).mean()
    assert np.median(off) < (0.05 if bits == 8 else 0.5)  # of most tokens: others may have got another expert
    np.testing.assert_array_equal(logits(model, ids[:17], ids[17:]), other)
    together, alone = ([model.new_state() for _ in range(3)] for _ in range(2))
    for states in (together, alone):
        for state, length in zip(states, (3, 20, 1)):
            model.forward(state, ids[:length], last_only=True)
    for step in ([5, 6, 7], [9, 9, 8]):
        rows = model.step(together, step)
        for state, token, row in zip(alone, step, rows):
            np.testing.assert_array_equal(model.forward(state, [token])[0], row)


def test_refusals(tmp_path, demo_folder):
    razored = QuantizeSettings(method="qrazor", bits=4, razor=RazorSettings(activation_bits=4, kv=4))
    folder = write_tiny(tmp_path / "razored", {}, razored)
    with pytest.raises(InputError, match="--cache-bits 8 cannot be had: the model keeps razored keys and values"):
        open_model(folder, cache_bits=8)
    with pytest.raises(InputError, match="--cache-bits 4 goes with --activations int8"):
        open_model(demo_folder, "float32", cache_bits=4)
    with pytest.raises(InputError, match="must be one of 16, 8, 4, not 5"):
        open_model(demo_folder, cache_bits=5)


def test_logits_that_are_no_numbers_end_a_call(tmp_path, bits):
    folder = write_tiny(tmp_path / "nan", {"self_attn.k_proj.bias": lambda x: np.full_like(x, 3e38)})
    model = open_model(folder, cache_bits=bits)[0]
    with pytest.raises(NotFiniteError):
        model.forward(model.new_state(), IDS[:20])


def test_prompts_on_disk(tiny, model, bits, tmp_path):
    """A part says what its numbers are; caches of other bits are not found, and forged scales refused."""

    def opened(runner):
        return PromptCache(tmp_path / "kept", 1 << 30, tiny, runner)

    prompt = IDS[:200].tolist()
    state = model.new_state()
    whole = model.forward(state, prompt)
    cache = opened(model)
    cache.keep(state, prompt)
    cache.close()
    cache, again = opened(model), model.new_state()
    assert cache.restore(again, prompt) == 192
    np.testing.assert_array_equal(model.forward(again, prompt[192:]), whole[192:])
    for other in {16, 8, 4} - {bits}:
        runner = open_model(tiny, cache_bits=other)[0]
        others = opened(runner)
        assert others.restore(runner.new_state(), prompt) == 0
        others.close()
    assert cache.restore(model.new_state(), prompt) == 192  # nobody has removed it
    for path in (tmp_path / "kept").glob("*.part"):
        key = bytes.fromhex(path.name.split(".")[0])
        kinds, payload = entry.read(path, key, 1 << 30)
        assert set(kinds) == {16 + bits}
        forged = bytearray(payload)
        forged[-4:] = np.float32(-1.0 if bits == 8 else np.nan).tobytes()
        entry.write(path, key, kinds, bytes(forged))
    assert cache.restore(model.new_state(), prompt) == 0
    cache.close()
