"""Experts of a block that a checkpoint holds in one tensor: a tensor for each expert and matrix instead.

As transformers' save_pretrained writes them when it is told not to write the original format:

    experts.gate_up_proj         floats [experts, 2 rows, columns], rows of gate before those of up
    experts.down_proj            floats [experts, rows, columns]

As in gpt-oss:

    experts.gate_up_proj         floats [experts, columns, 2 rows], columns of gate and up in turns
    experts.down_proj            floats [experts, columns, rows]
    experts.NAME_bias            floats [experts, 2 rows], [experts, rows]
    experts.NAME_blocks, _scales uint8 [experts, 2 rows or rows, groups, 16] and [experts, 2 rows or rows, groups]

Other families (qwen3_5_moe) have them as rows, those of the gate before those of up, floats only:

    experts.gate_up_proj         floats [experts, 2 rows, columns]
    experts.down_proj            floats [experts, rows, columns]

nemotron_h has up_proj, without a gate. granitemoehybrid calls those of the second form input_linear.weight and
output_linear.weight of a block_sparse_moe.

The last two of gpt-oss are the matrix in MXFP4: the bytes of a group are 32 4-bit floats, the first of two in the low
half, with one power of two, stored plus 127. What is read is one expert's part of a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from export.contract.errors import InputError
from toolchain.source.checkpoint_files import StoredTensor
from toolchain.source.group_codes import GroupCodes
from toolchain.source.packings.base import Microscaled
from toolchain.source.quantization import unreadable
from toolchain.source.stored_weights import StoredWeights

METHOD = "mxfp4"  # of quantization_config
_TITLE = "MXFP4"
_NAME = re.compile(r"(.*\.experts)\.(gate_up_proj|up_proj|down_proj)(_bias|_blocks|_scales|)")
_GRANITE = re.compile(r"(.*\.block_sparse_moe)\.(input_linear|output_linear)\.weight")
_GRANITE_MATRICES = {"input_linear": "gate_up_proj", "output_linear": "down_proj"}
_MATRICES = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}
_FLOATS = ("F64", "F32", "F16", "BF16")
_BYTES = 16  # of a group
_GROUP = 32


def is_stacked(stored: str) -> bool:
    """Whether a tensor of this name holds something of all experts."""
    return _parts_of(stored) is not None


def _parts_of(stored: str) -> tuple[str, str, str] | None:
    """The module of the experts, the matrix, and what follows its name."""
    if (found := _NAME.fullmatch(stored)) is not None:
        return found.group(1), found.group(2), found.group(3)
    if (found := _GRANITE.fullmatch(stored)) is not None:
        return f"{found.group(1)}.experts", _GRANITE_MATRICES[found.group(2)], ""
    return None


@dataclass(frozen=True)
class _Part:
    """Where a tensor of one expert lies. Of gate and up in one tensor it is the part `turn` of `turns`."""

    stored: str  # the tensor that holds it, without _blocks
    kind: str  # what follows the name of the matrix: "", "_bias" or "_blocks"
    expert: int
    turn: int
    turns: int
    in_turns: bool  # as in gpt-oss: rows of gate and up alternate, and floats lie as [columns, rows]

    def own(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of this matrix out of all."""
        return rows[self.turn :: self.turns] if self.in_turns else rows.chunk(self.turns)[self.turn]


class StackedExperts:
    """StoredWeights of a family whose experts are stored so."""

    in_layout = False

    def __init__(self, inner: StoredWeights, count: int, in_turns: bool) -> None:
        """count: experts of a block; in_turns: as in gpt-oss. Raises InputError for tensors that do not go together."""
        self._inner, self._count, self._in_turns = inner, count, in_turns
        self._parts = dict[str, _Part]()
        self.tensors = {name: stored for name, stored in inner.tensors.items() if not is_stacked(name)}
        packed = inner.quantization is not None and inner.quantization.method == METHOD
        for name in inner.tensors:
            if (found := _parts_of(name)) is None:
                continue
            experts, matrix, kind = found
            if kind and not in_turns:
                raise InputError(f"{inner.tensors[name].path}: {name} is nothing that experts of this family have")
            if kind in ("_blocks", "_scales") and not packed:
                raise unreadable(_TITLE, f"{inner.tensors[name].path}: {name} without quantization_config")
            if kind == "_scales":
                self._with(name, f"{experts}.{matrix}_blocks")
                continue
            for number, part, stored in self._split(name, f"{experts}.{matrix}", kind):
                ours = f"{experts}.{part.expert}.{_MATRICES[matrix][number]}.{'bias' if kind == '_bias' else 'weight'}"
                if ours in self.tensors:
                    raise InputError(f"{stored.path}: {ours} is stored twice, once in {name}")
                self.tensors[ours], self._parts[ours] = stored, part
        if packed and not any(part.kind == "_blocks" for part in self._parts.values()):
            raise InputError(f"config.json says that experts are packed ({METHOD}), but none is")

    def _with(self, name: str, other: str) -> StoredTensor:
        if other not in self._inner.tensors:
            raise InputError(f"{self._inner.tensors[name].path}: {other} is missing, {name} needs it ({_TITLE})")
        return self._inner.tensors[other]

    def _split(self, name: str, matrix: str, kind: str) -> Iterator[tuple[int, _Part, StoredTensor]]:
        """The parts of a tensor: which of its matrices, where it lies and what it looks like."""
        header, turns = self._inner.tensors[name], len(_MATRICES[matrix.rpartition(".")[2]])
        shape, dtype, where = header.shape, header.dtype, f"{header.path}: {name}"
        if len(shape) != {"": 3, "_bias": 2, "_blocks": 4}[kind] or 0 in shape:
            raise InputError(f"{where} has shape {list(shape)}, which is none of experts")
        if shape[0] != self._count:
            raise InputError(f"{where} is of {shape[0]} experts, the model of config.json has {self._count}")
        if kind == "_blocks":
            scales, dtype = self._with(name, f"{matrix}_scales"), _TITLE
            if (header.dtype, scales.dtype) != ("U8", "U8") or shape[3] != _BYTES or scales.shape != shape[:3]:
                raise InputError(f"{where} and its scales ({header.dtype} {list(shape)}, {scales.dtype} "
                                 f"{list(scales.shape)}) do not go together")  # fmt: skip
            own: tuple[int, ...] = (shape[1] // turns, shape[2] * _GROUP)
        elif dtype not in _FLOATS:
            raise unreadable(f"type {dtype}", where)
        elif kind == "_bias" or not self._in_turns:
            own = (shape[1] // turns, *shape[2:])
        else:
            own = (shape[2] // turns, shape[1])
        if own[0] * turns != shape[2 if kind == "" and self._in_turns else 1]:
            raise InputError(f"{where} has shape {list(shape)}: rows of gate and up do not come in pairs")
        for expert in range(shape[0]):
            for turn in range(turns):
                part = _Part(name, kind, expert, turn, turns, self._in_turns)
                yield turn, part, StoredTensor(header.path, dtype, own)

    def names(self) -> list[str]:
        return sorted([*(name for name in self._inner.names() if not is_stacked(name)), *self._parts])

    def check(self, name: str) -> str:
        """As StoredWeights.check()."""
        if name not in self._parts:
            return self._inner.check(name)
        return _TITLE if self._parts[name].kind == "_blocks" else ""

    def read(self, name: str) -> torch.Tensor:
        """As StoredWeights.read()."""
        part = self._parts.get(name)
        if part is None:
            return self._inner.read(name)
        found = self.mxfp4(name)
        if found is not None:
            value = torch.from_numpy(found.weight())
        else:
            stored = self._raw(part.stored, part.expert).float()
            value = part.own(stored.mT if part.in_turns and part.kind == "" else stored).contiguous()
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{self.tensors[name].path}: {part.stored} holds NaN or infinite values")
        return value

    def read_rows(self, name: str, rows: slice) -> torch.Tensor:
        """As StoredWeights.read_rows()."""
        return self.read(name)[rows] if name in self._parts else self._inner.read_rows(name, rows)

    def group_codes(self, name: str) -> GroupCodes | None:
        return None if name in self._parts else self._inner.group_codes(name)

    def mxfp4(self, name: str) -> Microscaled | None:
        """As StoredWeights.mxfp4()."""
        part = self._parts.get(name)
        if part is None or part.kind != "_blocks":
            return None if part is not None else self._inner.mxfp4(name)
        packed = part.own(self._raw(part.stored, part.expert)).numpy()
        scales = part.stored.removesuffix("_blocks") + "_scales"
        exponents = np.ascontiguousarray(part.own(self._raw(scales, part.expert)).numpy())
        if int(exponents.max()) == 255:
            raise InputError(f"{self.tensors[name].path}: {scales} holds 255, which stands for no number")
        codes = np.stack([packed & 15, packed >> 4], axis=3).reshape(len(packed), -1)
        return Microscaled(codes, exponents)

    def _raw(self, stored: str, expert: int) -> torch.Tensor:
        path = self._inner.tensors[stored].path
        try:
            with safe_open(path, framework="pt") as file:
                found: torch.Tensor = file.get_slice(stored)[expert : expert + 1]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: {stored} cannot be read ({error})") from None
        return found[0]
