"""Keys and values beyond float16, and logits that are no numbers: right, or said; never another answer in silence."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from export.contract.errors import NotFiniteError
from export.model_folder import write_model_folder
from runtime_py.chat.template import open_template
from runtime_py.chat.terminal import Chat, ChatSettings, converse
from runtime_py.engine.engine import Engine
from runtime_py.engine.kernels.attention import attend as attention
from runtime_py.engine.kernels.attention.kv_append import append_token
from runtime_py.engine.layout import attention as sizes
from runtime_py.load import open_model
from runtime_py.serving.scheduler import Failed, Scheduler
from runtime_py.serving.settings import ServeSettings
from runtime_py.system.finite import checked_logits
from runtime_py.system.guard_pages import aligned_bytes
from runtime_py.text.encoder import TextEncoder
from runtime_py.text.generation import IMPOSSIBLE, Generation, GenerationRequest, reusable
from runtime_py.text.generator import TextGenerator
from runtime_py.text.sampling import SamplingSettings
from tests.conftest import DEMO
from tests.runtime_py.engine.test_engine import reference_attention
from tests.runtime_py.serving.helpers import ServerProcess
from tests.runtime_py.tiny import Edit, filled, times, write_tiny
from toolchain.cli import app
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings

IDS = np.random.default_rng(0).integers(3, 1500, 120)


def engine(folder: Path, **options) -> Engine:
    model, why = open_model(folder, **options)
    assert isinstance(model, Engine), why
    return model


def in_parts(model, parts, ids=IDS) -> np.ndarray:
    """Logits of all ids, given in parts of these lengths and then one by one."""
    state, found, at = model.new_state(), [], 0
    for size in [*parts, *[1] * (len(ids) - sum(parts))]:
        found.append(model.forward(state, ids[at : at + size]))
        at += size
    return np.concatenate(found)


def huge(key: int, value: int) -> dict[str, Edit]:
    """Keys 2**key and values 2**value times as large, without another result: what follows is scaled back."""
    edits: dict[str, Edit] = {}
    for name, power in (("k_proj", key), ("q_proj", -key), ("v_proj", value), ("o_proj", -value)):
        edits[name], edits[f"{name}.bias"] = times(2.0**power), times(2.0**power)
    return edits


def slow_keys(size: float) -> Edit:
    """A bias on the pair of dimensions 4 and 12 of each head of 16: it turns by 0.01 a position."""

    def edit(bias: np.ndarray) -> np.ndarray:
        heads = bias.reshape(-1, 16).copy()
        heads[:, [4, 12]] = size
        return heads.reshape(-1)

    return edit


@settings(max_examples=40)
@given(
    st.integers(1, 20), st.integers(0, 300), st.sampled_from([(1, 1), (2, 3), (3, 1)]), st.sampled_from([8, 20, 64]),
    st.sampled_from([0, 5]), st.floats(4.9, 30), st.floats(4.9, 30), st.integers(0, 2**31),
)  # fmt: skip
def test_attention_with_numbers_beyond_float16(tokens, past, shape, head_dim, window, key_power, value_power, seed):
    rng = np.random.default_rng(seed)
    (kv_heads, repeat), total = shape, past + tokens
    heads, width, capacity = kv_heads * repeat, sizes.value_width(head_dim), -(-total // 16) * 16
    query, keys, values = (
        rng.standard_normal((n, h, head_dim)).astype(np.float32)
        for n, h in ((tokens, heads), (total, kv_heads), (total, kv_heads))
    )
    factors = np.float32(10.0**key_power), np.float32(10.0**value_power)
    for numbers, factor in zip((keys, values), factors):
        numbers[rng.random(numbers.shape) < 0.1] *= factor
    spare, cache = np.zeros((heads, head_dim), np.float32), [None, None]
    items = [sizes.HALF_ITEM, sizes.HALF_ITEM]
    while True:
        overflow = np.zeros(2, np.int64)
        cache = [aligned_bytes(item * kv_heads * n * capacity) for item, n in zip(items, (head_dim, width))]
        for p in range(total):
            append_token(
                spare.ctypes.data, keys[p].ctypes.data, values[p].ctypes.data, 0, 0, 0, cache[0].ctypes.data,
                cache[1].ctypes.data, *items, 16 * head_dim, capacity, heads, kv_heads, head_dim, p,
                overflow.ctypes.data,
            )  # fmt: skip
        beyond = [np.abs(a).max() > attention.LIMIT and item == 2 for a, item in zip((keys, values), items)]
        assert overflow.astype(bool).tolist() == beyond
        if not overflow.any():
            break
        items = [sizes.FLOAT_ITEM if flag else item for flag, item in zip(overflow, items)]
    scale, out = np.float32(1.0) / factors[0], np.zeros((tokens, heads * head_dim), np.float32)
    scratch = aligned_bytes(sizes.scratch_bytes(head_dim))
    for item in range(kv_heads * -(-repeat * tokens // attention.ROWS)):
        attention.attend_item(
            item, query.ctypes.data, heads * head_dim, cache[0].ctypes.data, cache[1].ctypes.data, *items,
            16 * head_dim, capacity, heads, kv_heads, head_dim, past, tokens, window, scale, np.float32(0), True, 0,
            out.ctypes.data, heads * head_dim, scratch.ctypes.data,
        )  # fmt: skip
    with np.errstate(over="ignore"):
        kept = [
            np.where(np.abs(a) > attention.LIMIT, a, a.astype(np.float16)).astype(np.float64) for a in (keys, values)
        ]
    expected = reference_attention(query.astype(np.float64), *kept, past, window, float(scale), 0.0, True)
    np.testing.assert_allclose(out, expected, atol=3e-5 * max(np.abs(values).max(), 1))


SCALED = [(20, 0), (0, 20), (20, 20), (60, 0), (0, 40), (-12, 20)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("plain") / "model", {"q_proj": times(40), "k_proj": times(4)})


@pytest.mark.parametrize("powers", SCALED)
@pytest.mark.parametrize("family", ["qwen2", "windows"])
def test_huge_keys_and_values_change_no_answer(powers, family, tmp_path):
    config = {"model_type": "mistral", "sliding_window": 24} if family == "windows" else {}
    base = {"q_proj": times(40), "k_proj": times(4)}
    both = huge(*powers) | {n: (lambda value, n=n: base[n](huge(*powers)[n](value))) for n in base}
    small = engine(write_tiny(tmp_path / "small", base, **config))
    large = engine(write_tiny(tmp_path / "large", both, **config))
    for parts in ([120], [70, 30], [1]):
        expected, found = in_parts(small, parts), in_parts(large, parts)
        assert (
            np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
        )  # int8 turns float16's rounding into steps
    assert small.cache_bytes_per_token < large.cache_bytes_per_token


@pytest.mark.parametrize("edits", [{"k_proj.bias": slow_keys(5e4)}, {"layers.1.self_attn.v_proj.bias": filled(1e6)}])
def test_results_do_not_depend_on_when_the_range_was_found(edits, tmp_path):
    """Keys pass float16 at position 40: fresh, already grown and shared caches must give the same bits."""
    folder = write_tiny(tmp_path / "model", edits)
    grown = engine(folder)
    in_parts(grown, [120])
    for parts in ([120], [20, 60], [39], [41, 2], [5]):
        fresh = engine(folder)
        np.testing.assert_array_equal(in_parts(fresh, parts), in_parts(grown, parts))
    late = engine(folder)
    early = late.new_state()
    late.forward(early, IDS[:30])  # before anybody knew
    in_parts(late, [120])
    np.testing.assert_array_equal(late.forward(early, IDS[30:]), in_parts(grown, [30, 90])[30:])


def test_keys_within_range_keep_their_small_cache(plain):
    model = engine(plain)
    in_parts(model, [60])
    assert model.cache_bytes_per_token == 2 * 2 * 2 * 2 * 16  # two layers, keys and values, two heads of 16, float16


def test_prefix_of_an_earlier_request(tmp_path):
    """A cache that grew behind the shared prefix gives the answer of an empty one."""
    folder = write_tiny(tmp_path / "model", {"k_proj.bias": slow_keys(5e4), "q_proj": times(40)})
    generator = TextGenerator(folder)

    def answer(prompt, state, reused):
        request = GenerationRequest(tuple(prompt), SamplingSettings(), 20)
        generation = Generation(request, generator.session, generator.tokenizer, state, reused)
        while not generation.finish_reason:
            generation.step()
        return generation.tokens

    first, second = IDS[:60].tolist(), [*IDS[:30].tolist(), *IDS[80:100].tolist()]
    state = generator.session.new_state()
    answer(first, state, 0)
    shared = answer(second, state, reusable(first, second))
    assert shared == answer(second, TextGenerator(folder).session.new_state(), 0)


@pytest.mark.parametrize("size", [7e4, 1e6, 1e10])
def test_key_biases_against_the_interpreter(size, tmp_path):
    """A key bias that all positions share moves no score where nothing turns: the slowest pair of a head."""

    def slowest(bias: np.ndarray) -> np.ndarray:
        heads = bias.reshape(-1, 16).copy()
        heads[:, 15] = size
        return heads.reshape(-1)

    def blind(scale: np.ndarray) -> np.ndarray:  # queries of that pair are zero, so that int8 noise is not multiplied
        heads = scale.reshape(-1, 16, 1).copy()
        heads[:, [7, 15]] = 0
        return heads.reshape(-1, 1)

    folder = write_tiny(tmp_path / "model", {"k_proj.bias": slowest, "q_proj": blind})
    model, exact = engine(folder), open_model(folder, "float32")[0]
    expected = exact.forward(exact.new_state(), IDS)
    assert np.abs(in_parts(model, [70]) - expected).max() < 0.05 * np.abs(expected).max()


NOT_NUMBERS = {
    "norm": {"model.norm.weight": filled(np.nan)},
    "first norm": {"layers.0.input_layernorm.weight": filled(np.nan)},
    "one of a norm": {"layers.0.input_layernorm.weight": lambda v: np.where(np.arange(v.size) == 5, np.nan, v)},
    "key": {"layers.0.self_attn.k_proj.bias": filled(np.nan)},
    "key inf": {"layers.1.self_attn.k_proj.bias": filled(np.inf)},
    "one value": {"layers.1.self_attn.v_proj.bias": lambda v: np.where(np.arange(v.size) == 5, np.nan, v)},
    "value inf": {"layers.0.self_attn.v_proj.bias": filled(-np.inf)},
    "query": {"layers.1.self_attn.q_proj.bias": filled(np.nan)},
    "residual overflow": {"mlp.down_proj": times(3e38), "mlp.up_proj": times(1e6)},
    "head overflow": {"lm_head": times(3e38), "model.norm.weight": times(1e6)},
    "scores overflow": {"k_proj.bias": filled(3e38), "q_proj.bias": filled(3e38)},
}


@pytest.mark.parametrize("activations", ["int8", "float32"])
@pytest.mark.parametrize("case", NOT_NUMBERS)
def test_logits_that_are_no_numbers_are_an_error(case, activations, tmp_path):
    folder = write_tiny(tmp_path / "model", NOT_NUMBERS[case])
    model, _ = open_model(folder, activations)
    state = model.new_state()
    for last_only in (True, False):
        for ids in (IDS[:1], IDS[:40]):
            with pytest.raises(NotFiniteError, match="NaN or infinite"):
                model.forward(state, ids, last_only=last_only)
            assert state.length == 0


@pytest.mark.parametrize("case", ["norm", "first norm", "one of a norm", "residual overflow"])
def test_razored_activations_do_not_hide_nan(case, tmp_path):
    chosen = QuantizeSettings(bits=4, method="qrazor", razor=RazorSettings(activation_bits=8))
    folder = write_tiny(tmp_path / "model", NOT_NUMBERS[case], chosen)
    model = engine(folder)
    for ids in (IDS[:1], IDS[:40]):
        with pytest.raises(NotFiniteError):
            model.forward(model.new_state(), ids, last_only=True)


@given(st.lists(st.sampled_from([0.0, -3.0, 4e4, np.nan, np.inf, -np.inf]), min_size=1, max_size=9), st.integers(1, 4))
def test_which_logits_are_numbers(row, height):
    """-inf rules a token out; NaN, +inf, or nothing but -inf is an error, in whatever row."""
    logits = np.zeros((height, len(row)), np.float32)
    logits[height - 1] = row
    good = not any(np.isnan(v) or v == np.inf for v in row) and any(np.isfinite(v) for v in row)
    if good:
        assert checked_logits(logits) is logits
    else:
        with pytest.raises(NotFiniteError):
            checked_logits(logits)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("broken") / "model", NOT_NUMBERS["norm"])


@pytest.fixture(scope="module")
def late(tmp_path_factory) -> Path:
    """Right for 51 positions, then keys beyond float32: a bias of 2.5e38 whose pair adds up while it turns."""
    edits = {"k_proj.bias": slow_keys(2.5e38), "q_proj": filled(0.0)}
    return write_tiny(tmp_path_factory.mktemp("late") / "model", edits)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{}", "--max-tokens", "5"],
        ["run", "{}", "--max-tokens", "5", "--temperature", "1", "--json"],
        ["run", "{}", "--max-tokens", "5", "--activations", "float32"],
        ["eval", "{}", "--text", "{text}", "--window", "32"],
        ["eval", "{}", "--text", "{text}", "--window", "32", "--json", "--reference", "{}"],
        ["bench", "{}", "--prompt-lengths", "8", "--depths", "8", "--tokens", "2", "--rounds", "1"],
    ],
)
def test_commands_end_with_a_line(arguments, broken, tmp_path):
    (tmp_path / "text.txt").write_text("Once upon a time there was a little model. " * 40)
    places = [a.replace("{text}", str(tmp_path / "text.txt")).replace("{}", str(broken)) for a in arguments]
    done = CliRunner().invoke(app, places)
    assert done.exit_code == 1
    assert done.stderr.strip().split("\n")[-1].startswith("athena-export: the model gives logits that are NaN")
    assert "Traceback" not in done.output and "internal error" not in done.output


def test_generation_fails_where_numbers_end(late):
    """After 51 positions the keys are infinite: tokens until then, an error there, no token 0."""
    generator = TextGenerator(late)
    request = GenerationRequest(tuple(IDS[:20].tolist()), SamplingSettings(), 200)
    tokens = []
    with pytest.raises(NotFiniteError):
        for token, _ in generator.answer(request):
            tokens.append(token)
    assert 28 <= len(tokens) <= 36


def test_chat_prints_a_line_and_goes_on(broken, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nagain\n/save /dev/null/no\n"))
    generator = TextGenerator(broken)
    chat = Chat(generator, open_template(broken, None), ChatSettings(SamplingSettings(), 5))
    assert not converse(chat)
    said = capsys.readouterr().err
    assert said.count("logits that are NaN") == 2
    assert chat.messages == []


@pytest.mark.parametrize(("lines", "code"), [("hello\n", 1), ("hello\n/reset\n/exit\n", 1), ("/help\n/nothing\n", 0)])
def test_a_scripted_chat_ends_with_an_exit_code(lines, code, broken):
    done = CliRunner().invoke(app, ["chat", str(broken), "--max-tokens", "5"], input=lines)
    assert done.exit_code == code
    assert done.stderr.count("logits that are NaN") == code


def test_scheduler_fails_the_request_and_goes_on(late):
    generator = TextGenerator(late)
    scheduler = Scheduler(generator.session, generator.tokenizer, ServeSettings(sessions=2))
    try:
        for length, fails in ((45, True), (3, False), (60, True), (5, False)):
            events: asyncio.Queue = asyncio.Queue()
            request = GenerationRequest(tuple(IDS[:length].tolist()), SamplingSettings(), 12)
            scheduler.submit([request], lambda _, event, events=events: events.put_nowait(event), 60)
            found = None
            while not hasattr(found, "reason") and not isinstance(found, Failed):
                while events.empty():
                    pass
                found = events.get_nowait()
            assert isinstance(found, Failed) == fails
            if fails:
                assert "NaN or infinite" in found.message
    finally:
        scheduler.close()


def ask(server, path, body):
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_serve_answers_with_an_error_and_goes_on(broken, late):
    with ServerProcess(broken) as server:
        assert any("requests will fail" in line for line in server.lines)
        for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}, {"prompt": [5, 6, 7], "temperature": 1}):
            status, text = ask(server, "/completions", body)
            assert status == 500 and "NaN or infinite" in json.loads(text)["error"]["message"]
        assert server.alive()
    with ServerProcess(late) as server:
        status, text = ask(server, "/completions", {"prompt": IDS[:20].tolist(), "stream": True, "max_tokens": 100})
        events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
        assert status == 200 and "NaN or infinite" in events[-1]["error"]["message"]
        assert len(events) > 1 and events[0]["choices"][0]["text"] and "[DONE]" not in text
        status, text = ask(server, "/completions", {"prompt": IDS[:20].tolist(), "max_tokens": 10})
        assert status == 200 and json.loads(text)["choices"][0]["finish_reason"] == "length"


def test_tokens_that_are_ruled_out_have_a_log_probability_in_json(plain):
    generator = TextGenerator(plain)

    class RulesOut:
        vocab_size, new_state = generator.session.vocab_size, generator.session.new_state
        rewind, adapt = generator.session.rewind, generator.session.adapt

        def forward(self, state, tokens, last_only=False):
            state.length += len(tokens)
            logits = np.full((1, self.vocab_size), -np.inf, np.float32)
            logits[0, 30] = 1.0
            return checked_logits(logits)

    request = GenerationRequest((5, 6), SamplingSettings(), 1, top_logprobs=3)
    runner = RulesOut()
    piece = Generation(request, runner, generator.tokenizer, runner.new_state()).step()
    assert piece is not None and piece.token == 30 and piece.logprob == 0.0
    assert [p for _, p in piece.alternatives] == [0.0, IMPOSSIBLE, IMPOSSIBLE]


@pytest.mark.parametrize("powers", [(20, 0), (0, 20), (20, 20)])
def test_encoders_with_huge_keys_and_values(powers, tmp_path):
    """A tiny BERT whose keys or values are scaled up and back: the same vector, also for the texts before and after."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from toolchain.pipeline.run import CalibrationChoice, quantize_model

    config = transformers.BertConfig(
        vocab_size=1536, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=64,
    )  # fmt: skip
    found = []
    for name, (key, value) in (("small", (0, 0)), ("large", powers)):
        torch.manual_seed(0)
        model = transformers.BertModel(config)
        with torch.no_grad():
            for layer in model.encoder.layer:
                inner = layer.attention.self
                for part, power in ((inner.query, -key), (inner.key, key), (inner.value, value)):
                    part.weight *= 2.0**power
                    part.bias *= 2.0**power
                layer.attention.output.dense.weight *= 2.0**-value
        source = tmp_path / name
        model.save_pretrained(source)
        shutil.copyfile(DEMO / "tokenizer.json", source / "tokenizer.json")
        settings_chosen = QuantizeSettings(bits=8, method="rtn", sequences=4, sequence_length=16)
        checkpoint = quantize_model(
            str(source), tmp_path / f"{name}-q", settings_chosen, CalibrationChoice("built-in", None), quiet=True
        )
        folder = tmp_path / f"{name}-out"
        folder.mkdir()
        write_model_folder(checkpoint, folder)
        encoder = TextEncoder(folder)
        assert not encoder.interpreted
        found.append([encoder.embed_ids(IDS[:length].tolist()) for length in (5, 40, 1)])
    with pytest.raises(NotFiniteError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "states", lambda ids, adapter=None: np.full((len(ids), 64), np.nan, np.float32))
        encoder.embed_ids([5, 6])
    for small, large in zip(*found):
        np.testing.assert_allclose(large, small, atol=0.02 * np.abs(small).max())
