"""Bottleneck folders of the package `adapters`: every field is honoured as there, or refused in one line."""

from __future__ import annotations

import pickle
import time
import zipfile

import numpy as np
import pytest
import torch

from export.adapters.bottleneck import bottleneck_sites, with_bottlenecks
from export.adapters.sites import NORMED, OUTPUT, PLACES, RESIDUAL, Site
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from tests.hub_folders import HOULSBY, PARALLEL, WEIGHTS, random_tensors, write_hub
from tests.runtime_py.tiny import write_tiny
from toolchain.adapters.adding import add_adapter
from toolchain.adapters.hub_folder import read_bottleneck
from toolchain.adapters.pickled import read_pickled

WIDTH, RANK = 32, 2
MODULES = [f"encoder.layer.{i}.{part}" for i in range(3) for part in ("attention.output.dense", "output.dense")]
SITES = [Site(f"/{m}/{place}", m, WIDTH, WIDTH, place) for m in MODULES for place in PLACES]
LAST = [f"bert.encoder.layer.{i}.output" for i in range(3)]
BOTH = [*LAST, *(f"bert.encoder.layer.{i}.attention.output" for i in range(3))]
TENSORS = random_tensors(LAST, WIDTH, RANK)


def read(folder, bits=32):
    return read_bottleneck(folder, "x", SITES, bits)


def test_places_scales_and_activations(tmp_path):
    for config, outer, parents, place, activation in (
        ({}, {}, LAST, NORMED, "relu"), (HOULSBY, {}, BOTH, OUTPUT, "silu"), (PARALLEL, {}, LAST, RESIDUAL, "relu"),
        ({"non_linearity": "gelu"}, {}, LAST, NORMED, "gelu"), ({"scaling": 2.5}, {}, LAST, NORMED, "relu"),
        ({"non_linearity": "gelu"}, {"version": None}, LAST, NORMED, "gelu"),
        ({"mh_adapter": True, "leave_out": [1]}, {}, [p for p in BOTH if ".1." not in p], NORMED, "relu"),
        ({"reduction_factor": {"1": 8, "default": 16}}, {}, LAST, NORMED, "relu"),
    ):  # fmt: skip
        tensors = random_tensors(parents, WIDTH, RANK)
        if isinstance(config.get("reduction_factor"), dict):
            tensors |= random_tensors(LAST[1:2], WIDTH, 2 * RANK)
        found = read(write_hub(tmp_path / "hub", tensors, outer, **config))
        assert (found.kind, found.activation, len(found.terms)) == ("bottleneck", activation, len(parents))
        for parent in parents:
            term = found.terms[parent.removeprefix("bert.") + ".dense"]
            parts = {part: tensors[f"{parent}.adapters.task.{part}"] for part in (
                "adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")}  # fmt: skip
            a, b = term.floats()
            scale = np.float32(config.get("scaling", 1.0))
            np.testing.assert_array_equal(a, parts["adapter_down.0.weight"])
            np.testing.assert_allclose(b, scale * parts["adapter_up.weight"].T, rtol=1e-6)
            np.testing.assert_array_equal(term.biases[0], parts["adapter_down.0.bias"])
            np.testing.assert_allclose(term.biases[1], scale * parts["adapter_up.bias"], rtol=1e-6)
            assert term.place == place


def test_names_of_former_versions(tmp_path):
    tensors = {key.replace(".adapters.", ".layer_text_task_adapters."): array for key, array in TENSORS.items()}
    folder = write_hub(tmp_path / "hub", tensors)
    path = folder / "adapter_config.json"
    path.write_text('{"config": "pfeiffer", "name": "task", "type": "text_task", "model_type": "bert"}')
    found = read(folder)
    assert len(found.terms) == 3 and found.activation == "relu"
    path.write_text('{"config": {"mh_adapter": false, "output_adapter": true, "reduction_factor": 16, "non_linearity": '
                    '"gelu", "original_ln_before": true}, "name": "task"}')  # fmt: skip
    assert read(folder).activation == "gelu_tanh"  # what the name meant before there was a version


REFUSED = {
    "another architecture": ({"architecture": "prefix_tuning"}, {}, "architecture is 'prefix_tuning'"),
    "norm before": ({"ln_before": True}, {}, "ln_before"),
    "norm behind": ({"ln_after": True}, {}, "ln_after"),
    "gate": ({"use_gating": True}, {}, "use_gating"),
    "invertible": ({"inv_adapter": "nice"}, {}, "inv_adapter"),
    "former invertible": ({"invertible_adapter": {"block_type": "nice"}}, {}, "invertible"),
    "compacter": ({"phm_layer": True}, {}, "phm_layer"),
    "no last norm": ({"original_ln_after": False}, {}, "original_ln_after"),
    "residual": ({"residual_before_ln": "post_add"}, {}, "residual_before_ln"),
    "another residual": ({"residual_before_ln": False}, {}, "residual_before_ln"),
    "activation": ({"non_linearity": "mish"}, {}, "non_linearity 'mish'"),
    "no activation": ({"non_linearity": None}, {}, "non_linearity"),
    "flag": ({"mh_adapter": 1}, {}, "mh_adapter must be true or false"),
    "scaling": ({"scaling": "much"}, {}, "scaling must be a number"),
    "endless scaling": ({"scaling": float("nan")}, {}, "scaling must be a number"),
    "layers": ({"leave_out": ["a"]}, {}, "leave_out"),
    "reduction": ({"reduction_factor": 0}, {}, "reduction_factor must be 0.001 or more"),
    "a tiny reduction": ({"reduction_factor": 1e-320}, {}, "reduction_factor must be 0.001 or more"),
    "reduction of text": ({"reduction_factor": "16"}, {}, "reduction_factor must be a number"),
    "unknown": ({"something_new": True}, {}, "something_new is not known"),
    "a name": ({}, {"config": "mam"}, "config 'mam'"),
    "no config": ({}, {"config": None}, "config must be"),
    "another name": ({}, {"name": "other"}, "different names"),
    "another size": ({"reduction_factor": 8}, {}, "adapter_config.json says 4"),
    "more ends": ({"mh_adapter": True}, {}, "has no bottleneck at encoder.layer.0.attention.output.dense"),
    "fewer layers": ({"leave_out": [2]}, {}, "has none there"),
    "other ends": ({"output_adapter": False}, {}, "has none there"),
    "learned": ({"scaling": "learned"}, {}, "scaling is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path, case):
    config, outer, told = REFUSED[case]
    with pytest.raises(InputError, match=told) as refused:
        read(write_hub(tmp_path / "hub", TENSORS, outer, **config))
    assert "\n" not in str(refused.value)


ROOT = f"{LAST[0]}.adapters.task"
CHANGED = {
    "nothing": (lambda t: t.clear(), "holds no bottleneck"),
    "missing": (lambda t: t.pop(f"{ROOT}.adapter_up.bias"), "adapter_up.bias is missing"),
    "no matrix": (lambda t: t.update({f"{ROOT}.adapter_down.0.weight": np.ones(3, np.float32)}), "no matrix"),
    "width": (lambda t: t.update({f"{ROOT}.adapter_down.0.weight": np.ones((2, 31), np.float32)}), "of shape"),
    "whole numbers": (lambda t: t.update({f"{ROOT}.adapter_up.bias": np.ones(32, np.int8)}), "not floats"),
    "infinite": (lambda t: t.update({f"{ROOT}.adapter_up.bias": np.full(32, np.inf, np.float32)}), "not finite"),
    "another method": (lambda t: t.update({"bert.encoder.layer.0.output.dense.loras.task.A": np.ones(2, np.float32)}),
                       "another method"),
    "another layer": (lambda t: t.update(random_tensors(["bert.encoder.layer.7.output"], WIDTH, RANK)), "no end of"),
    "a scaling": (lambda t: t.update({f"{ROOT}.scaling": np.ones(1, np.float32)}), "does not have"),
    "two adapters": (lambda t: t.update(random_tensors(LAST, WIDTH, RANK, name="b")), "is there twice"),
    "twice": (lambda t: t.update(random_tensors(["encoder.layer.0.output"], WIDTH, RANK)), "already"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_tensors_that_do_not_fit(tmp_path, case):
    change, told = CHANGED[case]
    tensors = dict(TENSORS)
    change(tensors)
    with pytest.raises(InputError, match=told) as refused:
        read(write_hub(tmp_path / "hub", tensors))
    assert "\n" not in str(refused.value)


def test_float16_that_is_too_narrow(tmp_path):
    tensors = {key: 1e6 * array for key, array in TENSORS.items()}
    with pytest.raises(InputError, match="--bits 32"):
        read(write_hub(tmp_path / "hub", tensors), 16)


def test_a_decoder_has_no_place_for_one(tmp_path):
    folder = write_tiny(tmp_path / "model", {})
    assert bottleneck_sites(read_graph(folder)) == ()
    with pytest.raises(InputError, match="no block that ends with a residual sum and a norm"):
        add_adapter(folder, "x", write_hub(tmp_path / "hub", TENSORS))
    graph = read_graph(folder)
    assert with_bottlenecks(graph, [(NORMED, "a")]) == (graph, ())


def pickled(folder, value):
    folder = write_hub(folder, {})
    (folder / WEIGHTS).unlink()
    torch.save(value, folder / "pytorch_adapter.bin")
    return folder


class Attack:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_pickles_of_torch(tmp_path):
    folder = pickled(tmp_path / "hub", {key: torch.from_numpy(array) for key, array in TENSORS.items()})
    wanted, found = read(write_hub(tmp_path / "safe", TENSORS)), read(folder)
    assert found.terms.keys() == wanted.terms.keys()
    for module, term in wanted.terms.items():
        np.testing.assert_array_equal(found.terms[module].a, term.a)
        np.testing.assert_array_equal(found.terms[module].b, term.b)
    path = tmp_path / "half.bin"
    torch.save({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(2, 2, dtype=torch.float16)}, path)
    half = read_pickled(path, tmp_path)
    assert half["a"].dtype == np.float32 and half["b"].shape == (2, 2)


def test_hostile_pickles_end_in_one_line(tmp_path):
    """Code does not run; memory and time are those of a process of its own."""
    made = tmp_path / "made"
    values = {
        "code": {"a": Attack(open, (str(made), "w"))},
        "memory": {"a": Attack(bytearray, (1 << 40,))},
        "no tensor": {"a": 1},
        "no names": {1: torch.ones(2)},
        "a list": [torch.ones(2)],
        "whole numbers": {"a": torch.ones(2, dtype=torch.int64)},
        "one number many times": {"a": torch.ones(1).expand(1 << 20, 1 << 10)},
        "nowhere": {"a": torch.empty(2, device="meta")},
        "sparse": {"a": torch.ones(2, 2).to_sparse()},
    }
    start = time.monotonic()
    for name, value in values.items():
        path = tmp_path / f"{name}.bin"
        torch.save(value, path)
        with pytest.raises(InputError, match="weights_only") as refused:
            read_pickled(path, tmp_path)
        assert "\n" not in str(refused.value) and not made.exists(), name
    for name, data in {"empty": b"", "text": b"hello", "plain": pickle.dumps({"a": 1})}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="weights_only"):
            read_pickled(tmp_path / name, tmp_path)
    packed = tmp_path / "packed.bin"  # a gigabyte of zeros in a megabyte
    torch.save({"a": torch.zeros(4)}, packed)
    with zipfile.ZipFile(packed) as before:
        entries = {info.filename: before.read(info) for info in before.infolist()}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as after:
        for name, data in entries.items():
            after.writestr(name, b"\0" * (1 << 30) if "/data/" in name else data)
    with pytest.raises(InputError, match="weights_only"):
        read_pickled(packed, tmp_path)
    outside = tmp_path / "folder"
    outside.mkdir()
    (outside / "link.bin").symlink_to(packed)
    with pytest.raises(InputError, match="link out of the folder"):
        read_pickled(outside / "link.bin", outside)
    assert time.monotonic() - start < 600
