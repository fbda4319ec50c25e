"""The contract of every family: no default of ours where its class in transformers has one (config_sweep.py)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from export.archs import supported_model_types
from tests.export.config_sweep import Evaluator, cells, default_config
from toolchain.source_config import resolved_config

FAST = ("bert", "gemma3_text", "gpt2", "llama")
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation")
EMPTY = ("must be a whole number from 1",)
# What transformers runs and we refuse: (family or *, key) and the beginning of what the message says of it.
UNSUPPORTED: dict[tuple[str, str], tuple[str, ...]] = {}


def allowed(family: str, key: str, refusal: str) -> bool:
    known = (*UNSUPPORTED.get((family, key), ()), *UNSUPPORTED.get(("*", key), ()))
    return key in refusal and any(text in refusal for text in known)


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in FAST else pytest.mark.long) for f in supported_model_types()]
)
def test_every_key_means_what_it_means_to_transformers(family, tmp_path, capsys):
    evaluator, wrong = Evaluator(family, tmp_path), []
    tried = cells(family)
    for cell in tried:
        different, refusal = evaluator.difference(cell)
        if different or (refusal and not allowed(family, cell.key, refusal)):
            wrong.append(f"{cell.key} {cell.change}: {different or refusal}")
    with capsys.disabled():
        print(f"\n{family}: {len(tried)} cells, {len(wrong)} differences", end=" ")
    assert not wrong, "\n".join(wrong)
    assert len(tried) > 100


@pytest.mark.parametrize("family", supported_model_types())
def test_resolving_twice_changes_nothing(family):
    raw = {"model_type": family}
    before = copy.deepcopy(raw)
    once = resolved_config(raw, Path("config.json"))
    assert raw == before
    assert resolved_config(once, Path("config.json")) == once
    full = default_config(family) | {"rope_theta": 5e5, "unknown_key": [1]}
    resolved = resolved_config(full, Path("config.json"))
    assert resolved["unknown_key"] == [1] and resolved["rope_theta"] == 5e5
    assert resolved_config(resolved, Path("config.json")) == resolved
