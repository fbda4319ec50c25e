"""What a checkpoint stores for each weight, and the weight that it stands for, in float32.

Plain floats are taken as they are. 8-bit codes with scales beside them are undone exactly:

- float8 and int8 codes: (code - zero point) * scale. Scales `weight_scale` or `weight_scale_inv` (despite its name a
  factor, too: DeepSeek) are one for the tensor, one for each row, or one for each block of rows and columns; zero
  points `weight_zero_point` are laid out alike. Formats: FP8 of DeepSeek, Qwen, fbgemm, ModelOpt; compressed-tensors.
- int8 codes of bitsandbytes: code * SCB / 127, `SCB` the largest magnitude of the row.

Weights that are packed into integers of several tensors are undone by their packing (packings/), one weight of the name
that the module's weight has in the model.

All else is refused. Scales of activations and of the key-value cache change no weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from export.contract.errors import InputError
from toolchain.source.checkpoint_files import StoredTensor
from toolchain.source.group_codes import GroupCodes
from toolchain.source.packings import packing_of
from toolchain.source.packings.base import Grouped, Microscaled, Packing, Values
from toolchain.source.quantization import DEFAULT_BLOCK, SourceQuantization, unreadable

_FLOATS = ("F64", "F32", "F16", "BF16")
_FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_SCALES = ("weight_scale", "weight_scale_inv", "SCB")
COMPANIONS = (*_SCALES, "weight_zero_point", "weight_format")  # beside `weight`, in the same module
_ACTIVATION_SCALES = re.compile(
    r"(^|\.)(input_scale(_ub)?|output_scale|activation_scale|[kvq]_scale|kv_scale|prob(_output)?_scale"
    r"|(input|output|[kv])_zero_point)$"
)
# names beside a weight, or in its place, that tell the format
_SIGNS = (
    ("weight_scale_2", "NVFP4"), ("weight_packed", "compressed-tensors, packed"), ("quant_state", "bitsandbytes 4-bit"),
    ("absmax", "bitsandbytes 4-bit"), ("quant_map", "bitsandbytes 4-bit"), ("g_idx", "GPTQ"), ("qzeros", "GPTQ or AWQ"),
    ("q_invperm", "EXL2"), ("trellis", "EXL3"), ("W_q", "HQQ"), ("_blocks", "MXFP4"), ("codebooks", "AQLM"),
    ("centroids", "VPTQ"), ("_data", "quanto"), ("qdata", "torchao"), ("weight_scales", "EETQ"), ("Qidxs", "QuIP#"),
    ("dense_weights", "SpQR"), ("biases", "MLX"), ("qweight", "GPTQ or its kin"),
)  # fmt: skip


def changes_activations_only(name: str) -> bool:
    """Whether a stored tensor scales activations or the key-value cache."""
    return _ACTIVATION_SCALES.search(name) is not None


def format_of(names: Iterable[str]) -> str | None:
    """The quantization format that tensors of such names belong to, if they tell it."""
    present = list(names)
    return next((title for sign, title in _SIGNS if any(sign in name for name in present)), None)


@dataclass
class StoredWeights:
    """The weights of a checkpoint by stored name; companions such as scales belong to their weight."""

    tensors: Mapping[str, StoredTensor]
    quantization: SourceQuantization | None
    companions: dict[str, dict[str, str]] = field(default_factory=dict)  # of a weight: kind and stored name
    packed: dict[str, dict[str, str]] = field(default_factory=dict)  # of a packed weight: kind and stored name
    in_layout = False  # matrices come out as they are stored

    def __post_init__(self) -> None:
        method, self._files = self.quantization, self.tensors
        self._packing = packing_of(method.method, method.raw) if method else None
        if self._packing is not None and method is not None:
            self._gather(self._packing, method)
        for name in self.tensors:
            module, _, kind = name.rpartition(".")
            if kind in COMPANIONS and f"{module}.weight" in self.tensors:
                self.companions.setdefault(f"{module}.weight", {})[kind] = name

    def _gather(self, packing: Packing, method: SourceQuantization) -> None:
        """Put one tensor in the place of those that make up a packed weight."""
        found = dict(self.tensors)
        for name in self.tensors:
            if not name.endswith(f".{packing.FIRST}"):
                continue
            module, path = name.removesuffix(f".{packing.FIRST}"), self.tensors[name].path
            kinds = (packing.FIRST, *packing.NEEDED, *packing.OPTIONAL)
            parts = {kind: f"{module}.{kind}" for kind in kinds if f"{module}.{kind}" in self.tensors}
            if missing := [kind for kind in packing.NEEDED if kind not in parts]:
                raise InputError(f"{path}: {module}.{missing[0]} is missing, {name} needs it ({packing.TITLE})")
            weight = f"{module}.weight"
            if weight in self.tensors and "weight" not in parts:
                raise InputError(f"{path}: {weight} is stored as it is and packed ({name})")
            with _about(f"{path}: {module}"):
                headers = {kind: self.tensors[part] for kind, part in parts.items()}
                shape = packing.shape(headers, partial(self._kind, parts))
            for part in parts.values():
                del found[part]
            found[weight] = StoredTensor(path, packing.TITLE, shape)
            self.packed[weight] = parts
        if not self.packed and self.tensors:
            path = next(iter(self.tensors.values())).path
            says = f"{method.method}: {packing.TITLE}"
            raise InputError(
                f"{path}: config.json says that weights are packed ({says}), but no {packing.FIRST} is here"
            )
        self._files, self.tensors = self.tensors, found

    def names(self) -> list[str]:
        """Everything stored but the companions."""
        beside = {name for kinds in self.companions.values() for name in kinds.values()}
        return sorted(self.tensors.keys() - beside)

    def check(self, name: str) -> str:
        """How a weight is stored: "" for plain floats, else a title. Raises InputError when it cannot be read."""
        stored, beside = self.tensors[name], self.companions.get(name, {})
        if name in self.packed:
            return stored.dtype
        where, scales = f"{stored.path}: {name}", [kind for kind in _SCALES if kind in beside]
        if len(scales) > 1:
            raise InputError(f"{where} has two scales beside it ({' and '.join(scales)})")
        if stored.dtype in _FLOATS:
            if beside:
                raise InputError(
                    f"{where} is of type {stored.dtype} but {next(iter(beside))} lies beside it: whether that is still "
                    "to be applied cannot be told; remove the tensor if it is left over"
                )
            return ""
        if "SCB" in beside and stored.dtype == "I8":
            return "bitsandbytes int8"
        if scales and scales[0] != "SCB" and stored.dtype in (*_FLOAT8, "I8"):
            return f"{'int8' if stored.dtype == 'I8' else 'float8'} with scales"
        if stored.dtype in _FLOAT8 and not beside and self._plain_float8():
            return ""
        if stored.dtype in (*_FLOAT8, "I8"):
            raise InputError(f"{where} is of type {stored.dtype} and its scale is not stored beside it")
        title = format_of(n for n in self.tensors if n.startswith(name.removesuffix("weight")))
        if title is not None:
            raise unreadable(title, where)
        raise unreadable(f"type {stored.dtype}", where)

    def _plain_float8(self) -> bool:
        """Nothing says that there are scales: float8 values are the weights themselves, as transformers reads them."""
        return self.quantization is None and not any("scale" in name.lower() for name in self.tensors)

    def _has_exponents(self) -> bool:
        """Whether scales that are bytes mean 2 ** (byte - 127), as in MXFP8."""
        return self.quantization is not None and self.quantization.method in ("fp8", "mxfp8", "compressed-tensors")

    def read(self, name: str) -> torch.Tensor:
        """The weight that is stored under this name, float32. Raises InputError when it cannot be, or is not finite."""
        title, beside = self.check(name), self.companions.get(name, {})
        where = f"{self.tensors[name].path}: {name}"
        if name in self.packed:
            value = torch.from_numpy(_weight(self._unpacked(name)))
        else:
            value = self._raw(name).float()
        if title == "bitsandbytes int8":
            if "weight_format" in beside and bool(self._raw(beside["weight_format"]).count_nonzero()):
                raise unreadable("bitsandbytes int8 in the layout of a GPU", where)
            # bitsandbytes multiplies by 1 / 127 in float32, too (functional.int8_vectorwise_dequant)
            value = value * self._spread(beside["SCB"], value, None) * (1 / 127)
        elif title and name not in self.packed:
            block = self.quantization.block if self.quantization else DEFAULT_BLOCK
            if "weight_zero_point" in beside:
                value = value - self._spread(beside["weight_zero_point"], value, block)
            value = value * self._spread(beside[next(k for k in _SCALES if k in beside)], value, block)
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{where} holds NaN or infinite values")
        return value

    def read_rows(self, name: str, rows: slice) -> torch.Tensor:
        """Neighbouring rows of a weight whose check() is "", float32; no other is read. Raises as read() does."""
        path = self.tensors[name].path
        try:
            with safe_open(path, framework="pt") as file:
                value: torch.Tensor = file.get_slice(name)[rows].float()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: {name} cannot be read ({error})") from None
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{path}: {name} holds NaN or infinite values")
        return value

    def group_codes(self, name: str) -> GroupCodes | None:
        """The codes and scales of a matrix of the model; None where it is not stored so."""
        found = self._unpacked(name) if name in self.packed else None
        return _group_codes(found) if isinstance(found, Grouped) and found.groups is None else None

    def mxfp4(self, name: str) -> Microscaled | None:
        """The codes and exponents of a matrix; None where it is not stored so."""
        found = self._unpacked(name) if name in self.packed else None
        return found if isinstance(found, Microscaled) else None

    def _unpacked(self, name: str) -> Grouped | Microscaled | Values:
        assert self._packing is not None
        stored = self.tensors[name]
        with _about(f"{stored.path}: {name}"):
            parts = {kind: self._part(part) for kind, part in self.packed[name].items()}
            return self._packing.unpack(parts, stored.shape)

    def _kind(self, parts: Mapping[str, str], kind: str) -> np.ndarray:
        return self._part(parts[kind])

    def _part(self, name: str) -> np.ndarray:
        """A tensor of a packed weight: integers as stored, floats in float32."""
        value = self._raw(name, packed=True)
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        elif value.dtype.itemsize == 1:  # of any kind, as bytes
            value = value.view(torch.uint8)
        found = value.numpy()
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise InputError(f"{name} holds NaN or infinite values")
        return found

    def _spread(self, name: str, weight: torch.Tensor, block: tuple[int, int] | None) -> torch.Tensor:
        """A companion as float32 that can be multiplied with the weight [rows, columns] or [rows]."""
        stored, values = self.tensors[name], self._raw(name)
        is_scale = not name.endswith("zero_point")
        if is_scale and (stored.dtype == "F8_E8M0" or (stored.dtype == "U8" and self._has_exponents())):
            # a power of two: 2 ** (byte - 127)
            values = torch.ldexp(torch.ones(values.shape), values.view(torch.uint8).int() - 127)
        elif is_scale and stored.dtype not in _FLOATS:
            raise InputError(f"{stored.path}: {name} is of type {stored.dtype}, which is not one for scales")
        values = values.float()
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"{stored.path}: {name} holds NaN or infinite values")
        found = _runs(tuple(values.shape), tuple(weight.shape), block)
        if found is None:
            raise InputError(
                f"{stored.path}: {name} has shape {list(values.shape)}, which does not fit a weight of shape "
                f"{list(weight.shape)}"
            )
        grid, runs = found
        values = values.reshape(grid)
        for axis, run in enumerate(runs):
            if grid[axis] > 1 and run > 1:
                values = values.index_select(axis, torch.arange(weight.shape[axis]) // run)
        return values

    def _raw(self, name: str, packed: bool = False) -> torch.Tensor:
        stored = (self._files if packed else self.tensors)[name]
        try:
            with safe_open(stored.path, framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{stored.path}: {name} cannot be read ({error})") from None


@contextmanager
def _about(where: str) -> Iterator[None]:
    """What is wrong with a packed weight, with its place before it."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(("config.json", where)) else f"{where}: {error}") from None


def _weight(found: Grouped | Microscaled | Values) -> np.ndarray:
    """float32, in the order of steps that GroupCodes states."""
    if isinstance(found, Values):
        return found.values
    if isinstance(found, Microscaled):
        return found.weight()
    if found.groups is None:
        return _group_codes(found).weight()
    zero = found.zero[:, found.groups].astype(np.int16) if isinstance(found.zero, np.ndarray) else found.zero
    return found.scale[:, found.groups] * (found.codes - zero).astype(np.float32)


def _group_codes(found: Grouped) -> GroupCodes:
    return GroupCodes(found.codes, found.bits, found.group_size, found.scale, zero=found.zero)


def _runs(
    scales: tuple[int, ...], weight: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Scales as one axis for each of the weight's, and how many neighbours along each axis share one of them.

    `block` is what the config says: the last block of an axis may be a part of one. Where it says nothing, or does not
    fit, blocks are equal. None where the scales fit in no way.
    """
    if math.prod(scales) == 1:
        return (1,) * len(weight), weight
    if len(weight) == 1:
        return (scales, (1,)) if scales == weight else None
    if len(weight) != 2 or len(scales) > 2 or 0 in scales:
        return None
    if len(scales) == 1:  # a list is one for each row
        return ((weight[0], 1), (1, weight[1])) if scales[0] == weight[0] else None
    if block and all(-(-size // run) == parts for size, run, parts in zip(weight, block, scales)):
        return scales, block
    if any(size % parts for size, parts in zip(weight, scales)):
        return None
    return scales, (weight[0] // scales[0], weight[1] // scales[1])
