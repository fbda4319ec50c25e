"""A config.json can name code on a hub, or code beside itself: nothing of it is ever asked for."""

from __future__ import annotations

import json
import shutil
import sys
import types
from contextlib import suppress

import pytest

from export.contract.errors import InputError
from tests.conftest import DEMO
from toolchain.calibrate.blocks import BlockRunner
from toolchain.calibrate.own_text import whole_model
from toolchain.source.heads import open_model
from toolchain.source.tokenizer import source_tokenizer

HUB = "kernels-community/flash-attn"
CHANGES = {
    "attn_implementation": {"attn_implementation": HUB},
    "_attn_implementation": {"_attn_implementation": HUB},
    "_attn_implementation_internal": {"_attn_implementation_internal": HUB},
    "attn_implementation by part": {"attn_implementation": {"": HUB, "text_config": HUB}},
    "experts_implementation": {"experts_implementation": HUB, "_experts_implementation": HUB},
    "use_kernels": {"use_kernels": True, "kernel_config": {"kernel_mapping": {"RMSNorm": f"{HUB}:RMSNorm"}}},
    "auto_map": {
        "auto_map": {
            "AutoConfig": "evil.Config",
            "AutoModelForCausalLM": "evil.Model",
            "AutoTokenizer": ["evil.Tokenizer", None],
        },
        "trust_remote_code": True,
    },
    "auto_map of another repository": {"auto_map": {"AutoModelForCausalLM": "someone/evil--evil.Model"}},
    "custom_pipelines": {"custom_pipelines": {"x": {"impl": "evil.Pipeline"}}, "custom_generate": "someone/evil"},
    "adapter": {"_name_or_path": "someone/evil", "base_model_name_or_path": "someone/evil"},
}


@pytest.fixture
def sentinels(monkeypatch):
    """Records every way to code from outside; a stand-in for the package `kernels` makes the loader believe in it."""
    asked: list[str] = []
    kernels = types.ModuleType("kernels")
    kernels.__getattr__ = lambda name: lambda *a, **k: asked.append(f"kernels.{name}")  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    from transformers import dynamic_module_utils
    from transformers.integrations import hub_kernels

    for module, name in (
        (hub_kernels, "load_and_register_attn_kernel"),
        (hub_kernels, "get_kernel"),
        (dynamic_module_utils, "get_class_from_dynamic_module"),
        (dynamic_module_utils, "get_cached_module_file"),
    ):
        monkeypatch.setattr(module, name, lambda *a, _name=name, **k: asked.append(_name), raising=False)
    monkeypatch.setattr("socket.socket.connect", lambda *a: asked.append("socket.connect"))
    return asked


def changed(tmp_path, change, file="config.json"):
    folder = tmp_path / "m"
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**config, **change}), encoding="utf-8")
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_no_code_is_asked_for(name, tmp_path, sentinels):
    folder = changed(tmp_path, CHANGES[name])
    source, spec = open_model(folder)
    BlockRunner(source, spec).load_block(0)
    model = whole_model(source)
    assert type(model).__module__.startswith("transformers.models.")
    assert "/" not in str(model.config._attn_implementation)
    source_tokenizer(folder)
    assert not sentinels
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [{"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}, "tokenizer_class": "Evil"},
     {"auto_map": {"AutoTokenizer": ["someone/evil--evil.T", None]}}, {"tokenizer_class": "os.system"}],
)  # fmt: skip
def test_no_code_of_a_tokenizer_runs(change, tmp_path, sentinels):
    source_tokenizer(changed(tmp_path, change, "tokenizer_config.json"))
    assert not sentinels
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["os.system", "__class__", "nn", "float16.__class__", 5, ["float32"], {"": "x"}])
@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_a_dtype_is_never_looked_up(field, name, tmp_path):
    folder = changed(tmp_path, {field: name})
    try:
        source, _ = open_model(folder)
        whole_model(source)
        source_tokenizer(folder)
    except InputError as error:
        assert "config.json" in str(error)


def test_the_sentinels_see_what_transformers_would_do(tmp_path, sentinels):
    from transformers import AutoModelForCausalLM

    folder = changed(tmp_path, CHANGES["_attn_implementation"] | CHANGES["attn_implementation"])
    with suppress(Exception):  # the stand-in gives no kernel
        AutoModelForCausalLM.from_pretrained(folder)
    assert sentinels
