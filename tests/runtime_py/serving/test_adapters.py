"""Adapters as models of the server: listed, chosen by each request, beside others, each as alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoModel

from runtime_py.chat.template import open_template
from runtime_py.serving.app import Server
from runtime_py.serving.embeddings import EmbeddingServer
from runtime_py.serving.requests.adapters import adapter_model, asked_model
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.scheduler import Finished, Scheduler
from runtime_py.serving.settings import ServeSettings
from runtime_py.text.encoder import TextEncoder
from runtime_py.text.generation import GenerationRequest
from runtime_py.text.generator import TextGenerator
from runtime_py.text.sampling import SamplingSettings
from tests.peft_folders import random_pairs, write_peft
from tests.runtime_py.tiny import write_tiny
from tests.toolchain.adapters.test_bottlenecks import adapted
from tests.toolchain.adapters.test_families import exported
from toolchain.adapters.adding import add_adapter, sites_of

NAMES = ("", "one", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served-adapters")
    made = write_tiny(root / "model", {})
    for seed, name in enumerate(NAMES[1:]):
        add_adapter(made, name, write_peft(root / name, random_pairs(sites_of(made), 4, seed, 1.0)))
    return made


def alone(folder, name, prompt, tokens):
    generator = TextGenerator(folder, adapters=[name] if name else [])
    request = GenerationRequest(tuple(prompt), SamplingSettings(0.0), tokens, adapter=name)
    return [token for token, _ in generator.answer(request) if token is not None]


def test_requests_beside_others_are_those_alone(folder):
    """Caches go from one adapter's request to another's, too: more requests than sessions, with prefixes in common."""
    generator = TextGenerator(folder, adapters=None)
    scheduler = Scheduler(generator.session, generator.tokenizer, ServeSettings(sessions=3))
    asked = [(NAMES[i % 3], [5, 6, 7, 8, 9 + i // 6]) for i in range(12)]
    found: dict[int, list[int]] = {i: [] for i in range(len(asked))}
    ends = []
    try:
        for i, (name, prompt) in enumerate(asked):

            def listen(index, event, i=i):
                ends.append(event) if isinstance(event, Finished) else found[i].append(event.token)

            request = GenerationRequest(tuple(prompt), SamplingSettings(0.0), 6, adapter=name)
            scheduler.submit([request], listen, 600)
        while len(ends) < len(asked) and scheduler.alive():
            pass
    finally:
        scheduler.close()
    assert len({tuple(tokens) for tokens in found.values()}) > 2
    for (name, prompt), tokens in zip(asked, found.values()):
        assert tokens == alone(folder, name, prompt, 6)


def test_names_of_models(folder):
    generator, template = TextGenerator(folder, adapters=None), open_template(folder, None)
    server = Server(generator, template, "m", ServeSettings())
    try:
        client = TestClient(server.application())
        listed = client.get("/v1/models").json()["data"]
        assert [one["id"] for one in listed] == ["m", "m:one", "m:two"]
        assert [one.get("parent") for one in listed] == [None, "m", "m"]
        assert client.get("/v1/models/m:two").json()["id"] == "m:two"
        assert client.get("/v1/models/m:three").status_code == 404
        texts = {}
        for name in ("m", "m:one", "one", "two"):
            body = {"model": name, "prompt": [5, 6, 7], "max_tokens": 5, "temperature": 0, "logprobs": 1}
            answer = client.post("/v1/completions", json=body).json()
            assert answer["model"] == {"one": "m:one", "two": "m:two"}.get(name, name)
            texts[name] = answer["choices"][0]["logprobs"]["token_logprobs"]
        assert texts["m:one"] == texts["one"] and len({tuple(text) for text in texts.values()}) == 3
        refused = client.post("/v1/completions", json={"model": "three", "prompt": "x"})
        assert refused.status_code == 404 and "m:one" in refused.json()["error"]["message"]
    finally:
        server.close()


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A tiny BERT with a low-rank adapter and a bottleneck."""
    root = tmp_path_factory.mktemp("served-encoder")
    made = exported(root, "bert")
    pairs = random_pairs(sites_of(made), 3, only="query")
    add_adapter(made, "low", write_peft(root / "low", pairs, r=3, target_modules=["query"]), 32)
    model = AutoModel.from_pretrained(root / "source", dtype=torch.float32)
    add_adapter(made, "neck", adapted(model, root / "neck", "pfeiffer"), 32)
    return made


def test_embeddings_of_adapters(encoder_folder):
    """Every adapter is a model: its vectors are those of the encoder with it, texts together as each alone."""
    encoder = TextEncoder(encoder_folder, adapters=None)
    server = EmbeddingServer(encoder, "e", ServeSettings())
    client = TestClient(server.application())
    texts = [[5, 6, 7], [8, 9, 10, 11], [5], [12, 13]]
    try:
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["e", "e:low", "e:neck"]
        found = {}
        for name, adapter in (("e", ""), ("e:low", "low"), ("low", "low"), ("e:neck", "neck"), ("neck", "neck")):
            answer = client.post("/v1/embeddings", json={"model": name, "input": texts}).json()
            assert answer["model"] == (f"e:{adapter}" if adapter else "e")
            found[name] = [one["embedding"] for one in answer["data"]]
            for ids, vector in zip(texts, found[name]):
                np.testing.assert_array_equal(np.float32(vector), encoder.embed_ids(ids, adapter))
                one = client.post("/v1/embeddings", json={"model": name, "input": ids}).json()
                assert one["data"][0]["embedding"] == vector
        assert found["low"] == found["e:low"] and found["neck"] == found["e:neck"]
        assert found["e"] != found["low"] != found["neck"] != found["e"]
        refused = client.post("/v1/embeddings", json={"model": "other", "input": "x"})
        assert refused.status_code == 404 and "e:neck" in refused.json()["error"]["message"]
    finally:
        server.close()


def test_what_a_name_stands_for():
    assert asked_model({}, "m", ["a"]) == ("m", "")
    assert asked_model({"model": "a"}, "a", ["a"]) == ("a", "")  # the model's own name comes first
    assert asked_model({"model": "a:a"}, "a", ["a"]) == ("a:a", "a")
    assert adapter_model("m", "") == "m"
    for wrong in ("b", "m:", "m:m:a", "a:m", ""):
        with pytest.raises(ApiError):
            asked_model({"model": wrong}, "m", ["a"])
