"""Bottleneck adapters on encoders: the numbers of transformers with the published formula, in both runtimes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel
from transformers.activations import ACT2FN

from export.adapters.store import BOTTLENECK, read_adapter
from runtime_py.engine.encoder import EncoderEngine
from runtime_py.text.encoder import TextEncoder
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import random_text, tiny_model
from tests.hub_folders import HOULSBY, PARALLEL, PARENTS, SEQUENTIAL, random_tensors, write_hub
from tests.peft_folders import write_peft
from tests.toolchain.adapters.test_families import IDS, exported, layers
from toolchain.adapters.adding import add_adapter

RANK = 5
FORMS = {
    "pfeiffer": {}, "houlsby": HOULSBY, "parallel": PARALLEL,
    "channel": {**HOULSBY, "scaling": "channel", "non_linearity": "gelu"},
    "learned": {"mh_adapter": True, "scaling": "learned", "non_linearity": "gelu_new"},
    "left out": {"leave_out": [1], "non_linearity": "tanh"},
}  # fmt: skip


class End(torch.nn.Module):
    """The norm behind a residual sum s = d + r, with a bottleneck: d as its product made it last."""

    def __init__(self, norm, product, term, place):
        super().__init__()
        self.norm, self.term, self.place = norm, term, place
        product.register_forward_hook(lambda module, given, made: setattr(self, "d", made))

    def forward(self, s):
        x = {"output": self.d, "normed": self.norm(s), "residual": s - self.d}[self.place]
        return self.norm(s + self.term(x))


def term_of(tensors, parent, config):
    parts = {key[len(parent) + len(".adapters.task.") :]: torch.from_numpy(value)
             for key, value in tensors.items() if key.startswith(f"{parent}.adapters.")}  # fmt: skip
    scale = parts.get("scaling", config["scaling"])

    def term(x):
        down = x @ parts["adapter_down.0.weight"].T + parts["adapter_down.0.bias"]
        up = ACT2FN[config["non_linearity"]](down) @ parts["adapter_up.weight"].T + parts["adapter_up.bias"]
        return scale * up

    return term


def adapted(model, folder, form, seed=0):
    """The folder of an adapter in this form, and the model computing it."""
    config = {**SEQUENTIAL, **FORMS[form], "reduction_factor": {"default": model.config.hidden_size / (RANK + 0.5)}}
    kind, width = model.config.model_type, model.config.hidden_size
    inside, last = PARENTS[kind].items()
    ends = [one for one, asked in ((inside, "mh_adapter"), (last, "output_adapter")) if config[asked]]
    names = [name for name, _ in model.named_modules()]
    blocks = sorted({n[: -len(last[1][1]) - 1] for n in names if n.endswith(last[1][1]) and "attention" not in n})
    scaling = {"learned": 1, "channel": width}.get(config["scaling"], 0)
    tensors = {}
    for number, block in enumerate(blocks):
        if number in config["leave_out"]:
            continue
        for parent, (product, norm) in ends:
            own = random_tensors([f"{block}.{parent}"], width, RANK, seed + len(tensors), scaling=scaling)
            tensors |= own
            place = "normed" if config["original_ln_before"] else "residual" if config["is_parallel"] else "output"
            if kind == "albert" and "attention" in parent:  # the package exchanges them
                place = {"output": "residual", "residual": "output"}.get(place, place)
            owner, _, leaf = f"{block}.{norm}".rpartition(".")
            end = End(model.get_submodule(f"{block}.{norm}"), model.get_submodule(f"{block}.{product}"),
                      term_of(own, f"{block}.{parent}", config), place)  # fmt: skip
            setattr(model.get_submodule(owner), leaf, end)
    tensors = {f"{kind}.{key}": value for key, value in tensors.items()}  # as of a model with a head
    return write_hub(folder, tensors, None, **config)


def states(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).last_hidden_state[0].numpy()


def source(root):
    return AutoModel.from_pretrained(root / "source", dtype=torch.float32).eval()


@pytest.mark.parametrize("variant", PARENTS)
def test_forms_are_those_of_the_float_model(tmp_path, variant):
    """Each beside the others and none, 32 bits in both runtimes; fewer bits as near as they are."""
    folder = exported(tmp_path, variant)
    wanted = {"": states(source(tmp_path))}
    for seed, form in enumerate(FORMS):
        model, name = source(tmp_path), form.replace(" ", "-")
        add_adapter(folder, name, adapted(model, tmp_path / name, form, 100 * seed), 32)
        wanted[name] = states(model)
    for name, bits in (("houlsby-16", 16), ("houlsby-8", 8)):
        add_adapter(folder, name, tmp_path / "houlsby", bits)
        wanted[name] = wanted["houlsby"]
    assert read_adapter(folder, "houlsby").kind == BOTTLENECK and read_adapter(folder, "houlsby").rank() == RANK
    for activations in ("float32", "int8"):  # float weights: products of both are of floats
        encoder = TextEncoder(folder, activations, adapters=None)
        assert isinstance(encoder._runner, EncoderEngine) == (activations == "int8"), encoder.interpreted
        for name, expected in wanted.items():
            limit = 0.05 if name == "houlsby-8" else 5e-3
            found = encoder.states(IDS, adapter=name)
            assert np.abs(found - expected).max() < limit * np.abs(expected).max(), (activations, name)
            assert not name or np.abs(expected - wanted[""]).max() > 0.1
    plain = TextEncoder(folder)
    np.testing.assert_array_equal(plain.states(IDS), encoder.states(IDS, adapter=""))


@pytest.mark.parametrize("bits", [8, 4])
def test_on_a_quantized_backbone(tmp_path, bits):
    """As near to the float model as without a bottleneck, the engine as near to the interpreter."""
    tiny_model("bert", tmp_path / "source")
    text, options = random_text(tmp_path / "text.txt"), {"bits": bits, "method": "rtn", "sequence_length": 32}
    checkpoint = _checkpoint(tmp_path / "source", str(text), None, tmp_path / "quantized", **options)
    folder = _package(checkpoint, tmp_path / "model")
    wanted = {"": states(source(tmp_path))}
    for seed, form in enumerate(("pfeiffer", "houlsby", "parallel")):
        model = source(tmp_path)
        add_adapter(folder, form, adapted(model, tmp_path / form, form, 100 * seed), 16)
        wanted[form] = states(model)
    runners = [TextEncoder(folder, activations, adapters=None) for activations in ("float32", "int8")]
    assert isinstance(runners[1]._runner, EncoderEngine), runners[1].interpreted
    far = {}
    for name, expected in wanted.items():
        reference, found = (runner.states(IDS, adapter=name) for runner in runners)
        size = np.abs(expected).max()
        far[name] = np.abs(found - reference).max() / size, np.abs(reference - expected).max() / size
    for name in wanted:  # from int8 activations, from the weights' bits
        assert far[name][0] < max(3 * far[""][0], 0.03) and far[name][1] < max(3 * far[""][1], 0.03), far


def test_low_rank_terms_and_bottlenecks_in_one_folder(tmp_path):
    folder, model = exported(tmp_path, "bert"), source(tmp_path)
    add_adapter(folder, "bottleneck", adapted(model, tmp_path / "hub", "houlsby"), 32)
    wanted = {"bottleneck": states(model)}
    model, rng, pairs = source(tmp_path), np.random.default_rng(0), {}
    for name, module in layers(model).items():
        rows, columns = module.weight.shape
        a, b = (rng.standard_normal(s).astype(np.float32) * 0.3 for s in ((3, columns), (rows, 3)))
        pairs[name] = (a, b)
        with torch.no_grad():
            module.weight += torch.from_numpy(2.0 * b @ a)
    add_adapter(folder, "lora", write_peft(tmp_path / "lora", pairs, r=3, lora_alpha=6), 32)
    wanted["lora"] = states(model)
    encoder = TextEncoder(folder, adapters=None)
    texts = [(IDS, None), (IDS[:4], None), (IDS[::-1], None)]
    for name, expected in wanted.items():
        assert np.abs(encoder.states(IDS, adapter=name) - expected).max() < 5e-3 * np.abs(expected).max()
        groups = encoder.groups([len(ids) for ids, _ in texts])
        assert groups == [[0, 2, 1]], "texts with an adapter pass together"
        for (ids, _), together in zip(texts, encoder.states_together(texts, name)):
            np.testing.assert_array_equal(together, encoder.states(ids, adapter=name))
