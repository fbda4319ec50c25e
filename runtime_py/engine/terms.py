"""The adapters that an engine holds, as its compiled code reads them: one row of records for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.adapters.sites import Site
from export.adapters.store import Adapter, Factors
from export.contract.errors import InputError
from runtime_py.engine.kernels.adapters.low_rank import laid_down, laid_up
from runtime_py.engine.plan.adapters import Slots
from runtime_py.engine.records.term import TERM, Term
from runtime_py.engine.verify.verifier import Promise
from runtime_py.system.guard_pages import ALIGN, aligned_bytes, checking, settled


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
        terms = [(number[module], term) for module, term in adapter.terms.items()] if adapter else []
        parts = [part for _, term in sorted(terms, key=lambda one: one[0]) for part in _parts(term)]
        places = self._together(parts)
        for i, (slot, term) in enumerate(sorted(terms, key=lambda one: one[0])):
            a, b, a_scales, b_scales = places[4 * i : 4 * i + 4]
            record = Term[int](
                rank=term.rank,
                item_bytes=term.a.itemsize,
                a=a,
                a_scales=a_scales if term.scales is not None else 0,
                b=b,
                b_scales=b_scales if term.scales is not None else 0,
            )
            record.write(row[slot], lambda place, value: value)
        return row

    def _together(self, parts: list[np.ndarray]) -> list[int]:
        """Addresses of copies in one piece of memory, which has large pages where it is large."""
        if checking():
            kept = [settled(part) for part in parts]
            self._keep += kept
            return [part.ctypes.data for part in kept]
        starts = np.cumsum([0, *(-(-part.nbytes // ALIGN) * ALIGN for part in parts)]).tolist()
        memory = aligned_bytes(starts[-1])
        self._keep.append(memory)
        for start, part in zip(starts, parts):
            memory[start : start + part.nbytes] = part.reshape(-1).view(np.uint8)
        return [memory.ctypes.data + start for start in starts[:-1]]


def _parts(term: Factors) -> list[np.ndarray]:
    """a and b as kernels read them, and their scales, empty where there are none."""
    scales = term.scales or (np.zeros(0, np.float32),) * 2
    return [laid_down(term.a), laid_up(term.b), *(np.ascontiguousarray(part, np.float32) for part in scales)]
