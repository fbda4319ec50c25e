"""Encoders with a head of one label, which score pairs of texts: transformers, onnxruntime, our runtime, HTTP."""

from __future__ import annotations

import json
import urllib.request

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification

from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.model_folder import write_model_folder
from hw_model.graph_work.workload import Phase, operations
from runtime_py.serving.embeddings import EmbeddingServer
from runtime_py.serving.rerank import RerankServer
from runtime_py.serving.settings import ServeSettings
from runtime_py.text.encoder import TextEncoder
from runtime_py.text.reranker import Reranker, is_reranker, relevance
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import (
    COMMON,
    TINY_ENCODERS,
    FloatCheckpoint,
    dequantized_model,
    random_text,
    tiny_model,
    write_tokenizer,
)
from tests.export.graph.test_sentence_modules import write_modules
from tests.runtime_py.serving.helpers import ServerProcess
from toolchain.source.checkpoint import SourceModel

VARIANTS = {
    "xlm-roberta": {},
    "roberta": {},
    "bert": {},
    "distilbert": {},
    "albert": {},
    "modernbert": {},
    "modernbert mean": {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True,
                        "classifier_activation": "relu"},
}  # fmt: skip
PAIR = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "#", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "$", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                 {"SpecialToken": {"id": "$", "type_id": 1}}],
        "special_tokens": {"#": {"id": "#", "ids": [2], "tokens": ["#"]},
                           "$": {"id": "$", "ids": [3], "tokens": ["$"]}}}  # fmt: skip


def classifier(variant, folder, labels=1):
    """A random tiny model with its head, and a tokenizer that puts two texts together."""
    family = variant.split()[0]
    config = AutoConfig.for_model(
        family, **{**COMMON, **TINY_ENCODERS[family], **VARIANTS.get(variant, {}), "num_labels": labels}
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            one = 1.0 if "norm" in name.lower() else 0.0
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.3) + one)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": PAIR}))
    return folder


def exported(source, folder):
    folder.mkdir()
    write_model_folder(FloatCheckpoint(source), folder)
    return folder


def check(model, folder, tolerance):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(5, 90, (2, 14)), np.ones((2, 14), np.int64)
    mask[1, 9:] = 0
    ids[1, 9:] = model.config.pad_token_id
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.arange(14)[None].repeat(2, 0) // 6 % 2}
    feeds = {i.name: feeds[i.name] for i in session.get_inputs()}
    (scores,) = session.run(["scores"], feeds)
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(value) for name, value in feeds.items()}).logits.numpy()
    assert expected.shape == (2, 1)
    np.testing.assert_allclose(scores, expected, atol=tolerance)
    return session


@pytest.mark.parametrize("variant", VARIANTS)
def test_float_scores_are_those_of_transformers(variant, tmp_path):
    source = classifier(variant, tmp_path / "source")
    folder = exported(source, tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32).eval()
    check(model, folder, 1e-4)
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    assert is_reranker(folder)
    with pytest.raises(InputError, match="rerankers run by `athena-export serve`"):
        TextEncoder(folder)
    reranker, tokenizer = Reranker(folder, "float32"), Tokenizer.from_file(str(source / "tokenizer.json"))
    for query, document in (("what", "this or that"), ("a", ""), ("abc", "x" * 40)):
        pair = tokenizer.encode(query, document)
        with torch.no_grad():
            kinds = {"token_type_ids": torch.tensor([pair.type_ids])} if "token_type_ids" in reranker._inputs else {}
            expected = model(input_ids=torch.tensor([pair.ids]), **kinds).logits.item()
        assert reranker.scores(query, [document]) == [pytest.approx(expected, abs=1e-4)]
    work = operations(read_graph(folder), Phase.of("prefill", 5))
    assert sum(op.macs for op in work if op.name.startswith("/scores")) == 32 * 32 + 32


@pytest.mark.parametrize("variant", ["bert", "modernbert"])
def test_quantized_scores_run_alike_everywhere(variant, tmp_path):
    source, text = classifier(variant, tmp_path / "source"), random_text(tmp_path / "text.txt")
    checkpoint = _checkpoint(source, str(text), None, tmp_path / "quantized", bits=4, sequence_length=32)
    folder = _package(checkpoint, tmp_path / "model")
    check(dequantized_model(source, checkpoint), folder, 1e-4)
    exact, engine = Reranker(folder, "float32"), Reranker(folder)
    assert engine.interpreted == ""
    for query, document in (("what", "this or that"), ("abcdef", "x" * 40)):
        ids, segments = engine.encode_pair(query, document)
        states = exact.states(ids, segments)
        error = engine.states(ids, segments) - states
        assert np.sqrt(np.mean(error**2)) < 0.05 * np.sqrt(np.mean(states**2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "BertForSequenceClassification with 2 labels is not supported"),
        ({"id2label": None, "num_labels": None}, "with 2 labels is not supported"),
        ({"id2label": None, "num_labels": 3}, "with 3 labels is not supported"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]}, "a decoder with a head"),
    ],
)
def test_heads_that_are_refused(change, message, tmp_path):
    folder = classifier("bert", tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message):
        SourceModel(folder)


def test_modules_decide_what_it_is_for(tmp_path):
    folder = classifier("bert", tmp_path / "source")
    assert SourceModel(folder).config["export_task"] == "scoring"
    write_modules(folder, ["Transformer"])
    assert SourceModel(folder).config["export_task"] == "scoring"
    write_modules(folder, ["Transformer", "Dense"])
    with pytest.raises(InputError, match="modules Transformer, Dense are not supported beside Bert"):
        SourceModel(folder)
    write_modules(folder, ["Transformer", "Pooling"], {"pooling_mode": "mean"})
    assert "export_task" not in SourceModel(folder).config


@pytest.mark.parametrize("score", [0.0, 1.0, -1.0, 30.0, -800.0, 800.0])
def test_relevance_is_a_probability(score):
    assert relevance(score) == pytest.approx(torch.sigmoid(torch.tensor(score, dtype=torch.float64)).item(), abs=1e-300)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    work = tmp_path_factory.mktemp("bert")
    return Reranker(exported(classifier("bert", work / "source"), work / "model"), "float32")


@pytest.fixture(scope="module")
def client(ranked):
    server = RerankServer(ranked, "tiny", ServeSettings())
    with TestClient(server.application()) as client:
        yield client
    server.close()


DOCUMENTS = ["this", "or that", "neither", "or that"]


def test_rerank_over_http(client, ranked):
    scores = ranked.scores("what", DOCUMENTS)
    order = sorted(range(4), key=lambda i: (-scores[i], i))
    answer = client.post("/v1/rerank", json={"model": "tiny", "query": "what", "documents": DOCUMENTS}).json()
    assert [r["index"] for r in answer["results"]] == order and answer["model"] == "tiny"
    for result in answer["results"]:
        assert result == {"index": result["index"], "relevance_score": relevance(scores[result["index"]])}
    tokens = sum(len(ranked.encode_pair("what", d)[0]) for d in DOCUMENTS)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"model": "tiny", "query": "what", "top_n": 2, "return_documents": True}
    answer = client.post("/v1/rerank", json={**body, "documents": [{"text": d} for d in DOCUMENTS]}).json()
    assert [(r["index"], r["document"]) for r in answer["results"]] == [(i, {"text": DOCUMENTS[i]}) for i in order[:2]]
    answer = client.post("/v1/rerank", json={**body, "documents": ["a"], "top_n": 100}).json()
    assert len(answer["results"]) == 1
    assert 'path="/v1/rerank"' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": None}, "query"),
        ({"query": ["a"]}, "query"),
        ({"query": "\ud800"}, "query"),
        ({"documents": None}, "documents"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"documents": ["a", 5]}, "documents[1]"),
        ({"documents": ["a", {"title": "b"}]}, "documents[1].title"),
        ({"documents": [{"text": 5}]}, "documents[0]"),
        ({"documents": [{}]}, "documents[0]"),
        ({"documents": [{"text": "a", "image": "b"}]}, "documents[0].image"),
        ({"documents": ["a", "\udc00"]}, "documents[1]"),
        ({"documents": ["a", "x" * 100]}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"top_n": "2"}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"truncate": True}, "truncate"),
        ({"temperature": 0.5}, "temperature"),
        ({"nonsense": 1}, "nonsense"),
        ({"model": 5}, "model"),
    ],
)
def test_a_bad_request_is_answered_by_its_field(client, change, param):
    answer = client.post(
        "/v1/rerank", content=json.dumps({"model": "tiny", "query": "a", "documents": ["b"], **change})
    )
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_other_routes_and_models(client, ranked):
    assert client.post("/v1/rerank", json={"model": "other", "query": "a", "documents": ["b"]}).status_code == 404
    assert client.post("/v1/rerank", content=b"[").status_code == 400
    for path in ("/v1/embeddings", "/v1/completions", "/v1/chat/completions"):
        answer = client.post(path, json={"model": "tiny", "input": "a"})
        assert answer.status_code == 400 and "is a reranker" in answer.text
    assert client.get("/healthz").status_code == 200 and client.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_prompts_of_embeddings(tmp_path):
    source = tmp_path / "source"
    tiny_model("bert", source)
    write_modules(source, ["Transformer", "Pooling"], {"pooling_mode": "mean"})
    prompts = {"prompts": {"query": "Q:", "document": ""}, "default_prompt_name": "query"}
    (source / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = TextEncoder(exported(source, tmp_path / "model"), "float32")
    np.testing.assert_array_equal(encoder.embed(["abc"]), encoder.embed(["Q:abc"], "document"))
    with pytest.raises(InputError, match="'x' is unknown; config_sentence_transformers.json of the model has query"):
        encoder.embed(["abc"], "x")
    server = EmbeddingServer(encoder, "tiny", ServeSettings())
    with TestClient(server.application()) as client:
        for name, text in ((None, "Q:abc"), ("query", "Q:abc"), ("document", "abc")):
            body = {"model": "tiny", "input": "abc", "prompt_name": name}
            found = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
            np.testing.assert_allclose(found, encoder.embed([text], "document")[0], rtol=1e-6)
        answer = client.post("/v1/embeddings", json={**body, "prompt_name": "x"})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt_name"
        ids = client.post("/v1/embeddings", json={"model": "tiny", "input": [[1, 2]]}).json()["data"][0]["embedding"]
        np.testing.assert_allclose(ids, encoder.embed_ids([1, 2]), rtol=1e-6)
    server.close()


def test_served_from_the_command_line(tmp_path):
    source = classifier("bert", tmp_path / "source")
    folder = exported(source, tmp_path / "model")
    body = {"model": "tiny", "query": "what", "documents": DOCUMENTS, "top_n": 1}
    with ServerProcess(folder, "--model-name", "tiny") as server:
        answer = urllib.request.urlopen(f"{server.url}/rerank", json.dumps(body).encode(), timeout=60).read()
    (best,) = json.loads(answer)["results"]
    expected = Reranker(folder, "float32").scores("what", DOCUMENTS)
    assert best["relevance_score"] == pytest.approx(max(map(relevance, expected)), abs=0.05)
