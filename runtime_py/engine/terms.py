"""The adapters that an engine holds, as its compiled code reads them: one row of records for each, factors padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.adapters.sites import Site
from export.adapters.store import Adapter, Factors
from export.contract.errors import InputError
from runtime_py.engine.plan.adapters import Slots
from runtime_py.engine.records.term import TERM, Term
from runtime_py.engine.verify.verifier import Promise
from runtime_py.system.guard_pages import aligned_bytes, settled

_LANES = 16


class Terms:
    """Made before the plan; `slots` is what the planner is told."""

    def __init__(self, adapters: Sequence[Adapter] = (), sites: Sequence[Site] = ()) -> None:
        """sites: of the graph. Every term has one, of its size."""
        used = {module for adapter in adapters for module in adapter.terms}
        modules = list(dict.fromkeys(site.module for site in sites if site.module in used))
        number = {module: i for i, module in enumerate(modules)}
        self._count = len(modules)
        self._keep: list[np.ndarray] = []
        self._rows = {"": self._row(None, number)} | {one.name: self._row(one, number) for one in adapters}
        self._addresses = {name: row.ctypes.data for name, row in self._rows.items()}
        self.names = tuple(adapter.name for adapter in adapters)
        self.slots = Slots(
            {site.node: number[site.module] for site in sites if site.module in number},
            max((adapter.rank() for adapter in adapters), default=1),
        )

    def address(self, name: str) -> int:
        """Of an adapter's records; "": of records that add nothing. Raises InputError on another name."""
        found = self._addresses.get(name)
        if found is None:
            raise InputError(f"adapter {name[:100]!r} is not loaded; {', '.join(self.names) or 'none'} is")
        return found

    def promise(self) -> Promise:
        """What the verifier is told of the memory behind an address."""
        size = 8 * TERM * max(self._count, 1)
        return Promise(lambda case: size)

    def _row(self, adapter: Adapter | None, number: dict[str, int]) -> np.ndarray:
        row = aligned_bytes(8 * TERM * max(self._count, 1)).view(np.int64).reshape(-1, TERM)
        for module, term in adapter.terms.items() if adapter else ():
            self._record(term).write(row[number[module]], lambda place, value: value)
        return row

    def _record(self, term: Factors) -> Term[int]:
        a, b = self._padded(term.a), self._padded(term.b)
        scales = [0, 0]
        if term.scales is not None:
            kept = [settled(np.ascontiguousarray(part, np.float32)) for part in term.scales]
            self._keep += kept
            scales = [part.ctypes.data for part in kept]
        return Term(
            rank=term.rank,
            item_bytes=term.a.itemsize,
            a=a.ctypes.data,
            a_scales=scales[0],
            b=b.ctypes.data,
            b_scales=scales[1],
        )

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        wide = -(-rows.shape[1] // _LANES) * _LANES
        made = aligned_bytes(rows.shape[0] * wide * rows.itemsize).view(rows.dtype).reshape(rows.shape[0], wide)
        made[:, : rows.shape[1]] = rows
        self._keep.append(made)
        return made
