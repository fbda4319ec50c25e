"""Adapters of a model folder: what the reference computes is the merged model, what the engine computes is the same."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.adapters.factors import factors
from export.adapters.folder import folder_adapters, folder_sites
from export.adapters.store import RECORD, Adapter, adapter_names, read_adapter, remove_adapter, write_adapter
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from runtime_py.reference.session import Session
from tests.peft_folders import random_pairs, write_peft
from tests.runtime_py.tiny import write_tiny
from toolchain.adapters.adding import add_adapter, sites_of
from toolchain.settings.quantize import QuantizeSettings

IDS = [5, 6, 7, 8, 9, 300, 20, 11, 12]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A tiny model with three adapters of different ranks, layers and numbers."""
    root = tmp_path_factory.mktemp("adapted")
    folder = write_tiny(root / "model", {})
    sites = sites_of(folder)
    for name, rank, bits, only in (("all", 5, 32, ""), ("half", 4, 16, "q_proj"), ("whole", 16, 8, "down_proj")):
        write_peft(root / name, random_pairs(sites, rank, rank, only=only), r=rank)
        add_adapter(folder, name, root / name, bits)
    return folder


class Merged(Session):
    """The interpreter with float products: dense weights, a term merged into them by the plain formula."""

    def __init__(self, folder, adapter=None):
        graph = read_graph(folder)
        self._sites = {site.node: site.module for site in folder_sites(graph)}
        self._deltas = {} if adapter is None else {m: delta(term) for m, term in adapter.terms.items()}
        super().__init__(graph)

    def _take_over(self, node, inputs):
        module = self._sites.get(node.name)
        if module is None or not node.is_product:
            return None
        weight = node.matrix_layout().dequantized(*inputs[1:])
        return (inputs[0] @ (weight + self._deltas.get(module, np.float32(0))).T,)


def delta(term):
    """W' - W, float32 [rows, columns]."""
    a, b = term.floats()
    return b.T @ a


def logits(model, adapter=""):
    state = model.new_state()
    model.adapt(state, adapter)
    return model.forward(state, IDS)


@pytest.mark.parametrize("name", ["all", "half", "whole"])
def test_the_reference_is_the_merged_model(adapted, name):
    model, _ = open_model(adapted, "float32", adapters=None)
    merged = logits(Merged(adapted, read_adapter(adapted, name)))
    np.testing.assert_allclose(logits(model, name), merged, atol=2e-4)  # sums in another order
    assert np.abs(merged - logits(Merged(adapted))).max() > 0.01


@pytest.mark.parametrize("name", ["", "all", "half", "whole"])
def test_the_engine_is_as_near_to_the_merged_model_as_without_an_adapter(adapted, name):
    model, why = open_model(adapted, adapters=None)
    assert isinstance(model, Engine) and not why and model.adapters == ("all", "half", "whole")
    far = np.abs(logits(model, name) - logits(Merged(adapted, read_adapter(adapted, name) if name else None))).max()
    spread = np.abs(logits(Merged(adapted))).max()
    assert far < 0.02 * spread * (10 if name else 1)  # int8 activations, of larger numbers with an adapter


def test_a_model_without_a_chosen_adapter_is_the_one_without_any(adapted):
    some, none = (open_model(adapted, adapters=names)[0] for names in (None, ()))
    np.testing.assert_array_equal(logits(some), logits(none))
    assert len(some._table.steps) > len(none._table.steps)


FORMS = {
    "3 bits": QuantizeSettings(bits=3, method="rtn"),
    "trellis": QuantizeSettings(bits=2, format="trellis"),
    "groups of columns": QuantizeSettings(bits=3, method="rtn", group_size=32),
    "outliers": QuantizeSettings(bits=4, method="rtn", outliers=0.01),
    "low rank": QuantizeSettings(bits=4, method="athena", rank=2),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_forms_of_weights_and_heads(tmp_path, form, tied):
    folder = write_tiny(tmp_path / "model", {}, FORMS[form], tie_word_embeddings=tied)
    sites = sites_of(folder)
    assert sites[-1].module == "lm_head"
    add_adapter(folder, "x", write_peft(tmp_path / "lora", random_pairs(sites, 3), r=3), 16)
    model, why = open_model(folder, adapters=["x"])
    reference, _ = open_model(folder, "float32", adapters=["x"])
    assert isinstance(model, Engine) and not why
    wanted = logits(reference, "x")
    assert np.abs(logits(model, "x") - wanted).max() < 0.1 * np.abs(wanted).max()
    state = model.new_state()
    model.adapt(state, "x")
    last = model.forward(state, IDS, last_only=True)
    np.testing.assert_allclose(last[0], logits(model, "x")[-1], atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "all", "half", "whole"]), st.integers(0, 30)), min_size=1, max_size=18),
       st.integers(0, 2**31))  # fmt: skip
def test_texts_with_different_adapters_together(adapted, texts, seed):
    """To the bit what each text gets alone."""
    rng = np.random.default_rng(seed)
    model, _ = open_model(adapted, threads=2, adapters=None)
    assert model._program.takes_apart
    both = []
    prompts = [rng.integers(3, 1500, length) for _, length in texts]
    for _ in range(2):
        states = [model.new_state() for _ in texts]
        for state, (adapter, _), prompt in zip(states, texts, prompts):
            model.adapt(state, adapter)
            if len(prompt):
                model.forward(state, prompt, last_only=True)
        both.append(states)
    for _ in range(3):
        ids = rng.integers(3, 1500, len(texts)).tolist()
        alone = [model.forward(state, [i], last_only=True)[-1] for state, i in zip(both[1], ids)]
        for one, other in zip(model.step(both[0], ids), alone):
            np.testing.assert_array_equal(one, other)


def test_chunks_of_a_prompt_change_nothing(adapted):
    model, _ = open_model(adapted, adapters=["all"])
    ids = np.random.default_rng(0).integers(3, 1500, 400)
    found = []
    for cut in (400, 250):
        state = model.new_state()
        model.adapt(state, "all")
        parts = [model.forward(state, part) for part in (ids[:cut], ids[cut:]) if len(part)]
        found.append(np.concatenate(parts))
    np.testing.assert_array_equal(*found)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 70), st.sampled_from([8, 16, 32]), st.floats(-20, 20),
       st.integers(0, 2**31))  # fmt: skip
def test_stored_factors_are_those_given(rank, rows, columns, bits, size, seed):
    rng = np.random.default_rng(seed)
    a = (rng.standard_normal((rank, columns)) * 2.0**size).astype(np.float32)
    b = (rng.standard_normal((rank, rows)) * 2.0**-size).astype(np.float32)
    wanted = b.astype(np.float64).T @ a
    found_a, found_b = factors(a, b, bits, "x").floats()
    error = {8: 2 / 127, 16: 2**-10, 32: 1e-6}[bits]  # each factor rounds to half a step of its largest
    limit = error * sum(np.abs(b[r]).max() * np.abs(a[r]).max() for r in range(rank))
    assert np.abs(found_b.T.astype(np.float64) @ found_a - wanted).max() <= limit


def test_names_and_what_is_there(adapted, tmp_path):
    assert adapter_names(adapted) == ("all", "half", "whole")
    for name in ("../x", "", "a b", ".hidden", "x" * 65, "a/b"):
        with pytest.raises(InputError, match="adapter name"):
            write_adapter(tmp_path, Adapter(name, 16, {}))
    with pytest.raises(InputError, match="has no adapter 'none'; there is all, half, whole"):
        read_adapter(adapted, "none")
    with pytest.raises(InputError, match="not loaded"):
        logits(open_model(adapted, adapters=["half"])[0], "all")
    one = read_adapter(adapted, "half")
    (tmp_path / "model.onnx").touch()
    write_adapter(tmp_path, replace(one, name="copy"))
    assert adapter_names(tmp_path) == ("copy",)
    with pytest.raises(InputError, match="of this name"):
        write_adapter(tmp_path, replace(one, name="copy"))
    remove_adapter(tmp_path, "copy")
    assert adapter_names(tmp_path) == () and not (tmp_path / "adapters").exists()


EDITS = {
    "version": lambda r: r.update(version=2),
    "kind": lambda r: r.update(kind="ia3"),
    "bits": lambda r: r.update(bits=4),
    "no terms": lambda r: r.update(terms=[]),
    "rank": lambda r: r["terms"][0].update(rank=7),
    "huge rank": lambda r: r["terms"][0].update(rank=10**9),
    "rows": lambda r: r["terms"][0].update(rows=65),
    "twice": lambda r: r["terms"].append(r["terms"][0]),
    "missing": lambda r: r["terms"][0].update(module="model.layers.9.self_attn.q_proj"),
    "text": lambda r: r["terms"][0].update(rank="4"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_record_that_is_wrong_is_refused(tmp_path, edit):
    folder = write_tiny(tmp_path / "model", {})
    add_adapter(folder, "x", write_peft(tmp_path / "lora", random_pairs(sites_of(folder))))
    path = folder / "adapters" / "x" / RECORD
    record = json.loads(path.read_text())
    EDITS[edit](record)
    path.write_text(json.dumps(record))
    with pytest.raises(InputError):
        folder_adapters(read_graph(folder))


def test_an_adapter_of_another_graph_is_refused(tmp_path, adapted):
    other = write_tiny(tmp_path / "other", {}, hidden_size=32, num_attention_heads=4)
    write_adapter(other, read_adapter(adapted, "half"))
    with pytest.raises(InputError, match="the graph has"):
        open_model(other, adapters=None)
    assert open_model(other)[0].adapters == ()
