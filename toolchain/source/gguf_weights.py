"""The weights of a GGUF model by transformers' names, each read and dequantized when it is asked for.

Which tensor is which parameter, and what llama.cpp changed in it (rows of queries and keys in another order, norms with
one added, matrices turned over), is transformers' own code (modeling_gguf_pytorch_utils), asked tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from export.contract.errors import InputError
from export.files.foreign import foreign
from export.graph.archs import model_spec
from toolchain.source.checkpoint_files import StoredTensor
from toolchain.source.config import transformers_config
from toolchain.source.gguf.blocks import PLAIN, codes, readable, values
from toolchain.source.gguf.files import GgufModel
from toolchain.source.gguf.folder import GgufFolder
from toolchain.source.gguf.header import GgufTensor
from toolchain.source.group_codes import GroupCodes
from toolchain.source.packings.base import Microscaled

_REORDERED = ("llama", "bloom")  # architectures with rows in llama.cpp's order; the others' rows are as they are
_HARMLESS = (".rot_embd", ".freqs")  # of early files: frequencies that the metadata give, too
_SIDEWAYS = "gpt2"  # the architecture whose linear weights are [in, out] in transformers
_KERNEL = ".shortconv.conv.weight"  # which transformers has with one dimension more
_STACKED = re.compile(r"(blk\.\d+\.ffn_(gate|up|down)_exps)\.weight")  # a matrix of all experts


@dataclass(frozen=True)
class GgufWeights:
    """As StoredWeights; names of what the model has no parameter for are the file's, with a mark."""

    model: GgufModel
    names_of: Mapping[str, str]  # in the file, by name here
    tensors: Mapping[str, StoredTensor]
    processor: Any  # transformers' TensorProcessor of the architecture
    architecture: str
    in_layout = True  # matrices come out as the model's class has them

    def notes(self) -> list[str]:
        """What transformers does not read and llama.cpp does."""
        values, where = self.model.first.values, self.model.paths[0]
        scaling = values.get(f"{self.architecture}.rope.scaling.type", "none")
        frequencies = sorted(name for name in self.model.tensors if name.startswith("rope_f"))
        if scaling == "none" and not frequencies:
            return []
        found = ", ".join([*([f"rope.scaling.type {scaling}"] if scaling != "none" else []), *frequencies])
        return [f"{where}: rotary positions are not scaled as the file says ({found}), as in transformers"]

    def names(self) -> list[str]:
        return sorted(self.tensors)

    def check(self, name: str) -> str:
        """How a weight is stored: "" for plain floats, else a title. Raises InputError when it cannot be read."""
        tensor = self.model.tensors[self.names_of[name]]
        if not readable(tensor):
            raise InputError(f"{tensor.path}: {self.names_of[name]} is of type {tensor.type}, which cannot be read")
        return "" if tensor.type in PLAIN else f"GGUF {tensor.type}"

    def read(self, name: str) -> torch.Tensor:
        """The weight, float32. Raises InputError when it cannot be read, or is not finite."""
        self.check(name)
        stored = self.names_of[name]
        tensor = self.model.tensors[stored]
        found = np.ascontiguousarray(self._processed(stored, values(tensor)), np.float32)
        value = torch.from_numpy(found if found.flags.writeable else found.copy())
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{tensor.path}: {stored} holds NaN or infinite values")
        return value

    def read_rows(self, name: str, rows: slice) -> torch.Tensor:
        """Rows of read()."""
        return self.read(name)[rows]

    def group_codes(self, name: str) -> GroupCodes | None:
        """The codes and scales of a matrix, in the rows of the model; None where it is not stored so."""
        stored = self.names_of[name]
        tensor = self.model.tensors[stored]
        found = None if self.architecture == _SIDEWAYS else codes(tensor)
        if found is None:
            return None
        kept = GroupCodes(*found)
        if self.architecture not in _REORDERED:
            return kept
        numbers = np.broadcast_to(np.arange(tensor.shape[0])[:, None], tensor.shape)
        order = self._processed(stored, numbers)
        return kept if order is numbers else kept.rows(order[:, 0])

    def mxfp4(self, name: str) -> Microscaled | None:
        """The codes and exponents of a matrix; None where it is not stored so. No family here has such weights."""
        return None

    def _processed(self, stored: str, weights: np.ndarray) -> np.ndarray:
        """What transformers makes of a tensor of the file."""
        apart: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}
        path = self.model.tensors[stored].path
        with foreign(path, f"{stored} does not fit its metadata"):
            result = self.processor.process(weights, stored, tensor_key_mapping={}, parsed_parameters=apart)
            if result.name is None:  # it was put apart, under its name
                return apart["tensors"].popitem()[1].numpy()
            return result.weights


def gguf_weights(source: GgufFolder, config: dict[str, Any]) -> GgufWeights:
    """config: the resolved one of the folder. Raises InputError where transformers has no rules for the model."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    path = source.model.paths[0]
    try:
        model_spec(config)
    except InputError as error:  # says config.json, which no one has written
        raise InputError(f"{path}: {error}") from None
    processor = TENSOR_PROCESSORS.get(source.architecture, TensorProcessor)(config=source.raw)
    with foreign(path, f"transformers has no rules for GGUF models of architecture {source.architecture}"):
        known, shapes = _parameters(source, config, processor)
        source, known, shapes = _experts_apart(source, known, shapes)
    names = {known.get(stored, f"{stored} (GGUF)"): stored for stored in source.model.tensors}
    for stored in source.model.tensors:
        if stored not in known and stored.startswith("blk.") and not stored.endswith(_HARMLESS):
            raise InputError(
                f"{path}: {stored} has no place in the {config.get('model_type')} model that transformers makes of "
                "this file; without it the model would be another one"
            )
    tensors = {
        name: StoredTensor(source.model.tensors[stored].path, "GGUF", _shape(source, stored, processor))
        for name, stored in names.items()
    }
    for name, stored in names.items():
        if name in shapes and tensors[name].shape != shapes[name]:
            found, wanted = list(tensors[name].shape), list(shapes[name])
            raise InputError(f"{tensors[name].path}: {stored} has shape {found}, the metadata ask for {wanted}")
    return GgufWeights(source.model, names, tensors, processor, source.architecture)


def _parameters(
    source: GgufFolder, config: dict[str, Any], processor: Any
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Parameters by the names of the file, and their shapes."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(config))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return get_gguf_hf_weights_map(model, processor), shapes


def _experts_apart(
    source: GgufFolder, known: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> tuple[GgufFolder, dict[str, str], dict[str, tuple[int, ...]]]:
    """The same with a tensor for each expert in place of one for all, where transformers has a place for that.

    known: parameters by the names of the file, and shapes by parameter.
    """
    tensors, known, shapes = dict(source.model.tensors), dict(known), dict(shapes)
    for stored, tensor in source.model.tensors.items():
        match = _STACKED.fullmatch(stored)
        packed = known.pop(match[1], None) if match is not None else None
        if match is None or packed is None or len(tensor.shape) != 3:
            continue
        count, rows, columns = shapes[packed]
        if tensor.shape[0] != count:
            path, found = tensor.path, list(tensor.shape)
            raise InputError(f"{path}: {stored} has shape {found}, the metadata ask for {count} experts")
        rows //= 1 if match[2] == "down" else 2
        del tensors[stored]
        for number, own in enumerate(_apart(tensor)):
            name = f"{packed.rpartition('.')[0]}.{number}.{match[2]}_proj.weight"
            tensors[f"{match[1]}.{number}.weight"] = own
            known[f"{match[1]}.{number}.weight"], shapes[name] = name, (rows, columns)
    return replace(source, model=replace(source.model, tensors=tensors)), known, shapes


def _apart(tensor: GgufTensor) -> Iterator[GgufTensor]:
    """The parts of a tensor along its first axis, which lie one behind another."""
    size = tensor.bytes // tensor.shape[0]
    for number in range(tensor.shape[0]):
        yield replace(tensor, shape=tensor.shape[1:], offset=tensor.offset + number * size, bytes=size)


def _shape(source: GgufFolder, stored: str, processor: Any) -> tuple[int, ...]:
    """A tensor's shape in the model."""
    shape = source.model.tensors[stored].shape
    turned = source.architecture == _SIDEWAYS and stored != "output.weight"  # which is the head, and copied
    if not turned and not stored.endswith(_KERNEL):
        return shape
    return processor.process(np.broadcast_to(np.float32(0), shape), stored).weights.shape
