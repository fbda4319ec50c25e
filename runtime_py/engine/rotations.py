"""Cosines and sines of rotary positions, as steps read them."""

from __future__ import annotations

import numpy as np

from export.contract.errors import InputError
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.handlers.attention import heads_of_rotations
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.table import StepTable
from runtime_py.system.guard_pages import settled

_CHUNK = 1024  # positions by which tables grow


class Rotations:
    """Of a decoder: tables float32 [positions, half] that grow with the positions that are asked for."""

    def __init__(self, planned: Context, checked: bool) -> None:
        """checked: whether heads are turned by them. Raises Unplannable where they do not fit these."""
        self.positions = 0
        self.tables: list[np.ndarray] = []
        self.heads = heads_of_rotations(planned)  # columns of the narrowest heads that each turns
        self._folder, self._names = planned.folder, planned.rotations
        for names, head_dim in zip(self._names, self.heads) if checked else ():
            (cos, _) = self._folder.given(names, {"position_ids": np.zeros((1, 1), np.int64)})
            if 2 * cos.shape[-1] > head_dim:
                raise Unplannable(f"rotations of {cos.shape[-1]} angles beside heads of {head_dim}")

    def bytes(self, capacity: int) -> int:
        """Most that they take for so many positions: they grow by doubling."""
        return 2 * 2 * 4 * sum(head_dim // 2 for head_dim in self.heads) * capacity

    def reach(self, total: int, table: StepTable) -> None:
        """Make them reach `total` positions at least. Raises InputError where the graph gives other shapes."""
        if total <= self.positions:
            return
        positions = max(-(-total // _CHUNK) * _CHUNK, 2 * self.positions)
        inputs = {"position_ids": np.arange(positions, dtype=np.int64)[None]}
        tables: list[np.ndarray] = []
        for names, head_dim in zip(self._names, self.heads):
            cos, sin = (settled(a[0].astype(np.float32)) for a in self._folder.given(names, inputs))
            if cos.shape != sin.shape or cos.ndim != 2 or len(cos) != positions or 2 * cos.shape[1] > head_dim:
                raise InputError(f"model.onnx: rotations of shape {list(cos.shape)} do not fit heads of {head_dim}")
            tables += [cos, sin]
        for number, (cos, sin) in enumerate(zip(tables[::2], tables[1::2])):
            put_rotation(table, number, cos, sin)
        self.positions, self.tables = positions, tables  # only now: steps read what they were given before


def put_rotation(table: StepTable, number: int, cos: np.ndarray, sin: np.ndarray) -> None:
    """Have steps read a rotation from these arrays, float32 [positions, half]."""
    for name, value in (("cos", cos.ctypes.data), ("sin", sin.ctypes.data), ("half", cos.shape[1])):
        table.set(f"{name}.{number}", value)


def rotations_below(planned: Context, limit: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """cos and sin of the positions below `limit` for every rotation of an encoder. Raises Unplannable."""
    found = []
    for names, head_dim in zip(planned.rotations, heads_of_rotations(planned)):
        mask = np.ones((1, limit), np.int64)
        cos, sin = (settled(a[0].astype(np.float32)) for a in planned.folder.given(names, {"attention_mask": mask}))
        if cos.shape != sin.shape or cos.ndim != 2 or len(cos) != limit or 2 * cos.shape[1] > head_dim:
            raise Unplannable(f"rotations of shape {list(cos.shape)} beside heads of {head_dim}")
        found.append((cos, sin))
    return found
