"""The adapters that an engine holds, as its compiled code reads them: one row of records for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.adapters.factors import Factors
from export.adapters.sites import Site
from export.adapters.store import NO_ACTIVATION, Adapter
from export.contract.errors import InputError
from runtime_py.engine.layout.factors import laid_down, laid_up
from runtime_py.engine.layout.functions import GELU, GELU_TANH, RELU, SIGMOID, SILU, TANH
from runtime_py.engine.plan.adapters import Slots
from runtime_py.engine.records.term import TERM, Term
from runtime_py.engine.verify.verifier import Promise
from runtime_py.system.guard_pages import ALIGN, aligned_bytes, checking, settled

_PARTS = 6  # of a term, see _parts()
_KINDS = {NO_ACTIVATION: 0} | {
    name: 1 + kind
    for name, kind in (
        ("relu", RELU), ("gelu", GELU), ("gelu_tanh", GELU_TANH), ("silu", SILU), ("tanh", TANH), ("sigmoid", SIGMOID)
    )
}  # fmt: skip


class Terms:
    """Made before the plan; `slots` is what the planner is told."""

    def __init__(self, adapters: Sequence[Adapter] = (), sites: Sequence[Site] = ()) -> None:
        """sites: of the graph. Every term has one, of its size."""
        used = {(term.place, module) for adapter in adapters for module, term in adapter.terms.items()}
        keys = dict.fromkeys((site.place, site.module) for site in sites)
        number = {key: i for i, key in enumerate(key for key in keys if key in used)}
        self._count = len(number)
        self._keep: list[np.ndarray] = []
        self._rows = {"": self._row(None, number)} | {one.name: self._row(one, number) for one in adapters}
        self._addresses = {name: row.ctypes.data for name, row in self._rows.items()}
        self.names = tuple(adapter.name for adapter in adapters)
        self.slots = Slots(
            {site.node: number[site.place, site.module] for site in sites if (site.place, site.module) in number},
            max((adapter.rank() for adapter in adapters), default=1),
            {site.node: (site.rows, site.columns) for site in sites},
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

    def _row(self, adapter: Adapter | None, number: dict[tuple[str, str], int]) -> np.ndarray:
        row = aligned_bytes(8 * TERM * max(self._count, 1)).view(np.int64).reshape(-1, TERM)
        if adapter is None:
            return row
        terms = sorted(
            ((number[term.place, module], term) for module, term in adapter.terms.items()), key=lambda one: one[0]
        )
        places = self._together([part for _, term in terms for part in _parts(term)])
        for i, (slot, term) in enumerate(terms):
            a, b, a_scales, b_scales, a_bias, b_bias = places[_PARTS * i : _PARTS * (i + 1)]
            record = Term[int](
                rank=term.rank,
                item_bytes=term.a.itemsize,
                a=a,
                a_scales=a_scales if term.scales is not None else 0,
                b=b,
                b_scales=b_scales if term.scales is not None else 0,
                a_bias=a_bias if term.biases is not None else 0,
                b_bias=b_bias if term.biases is not None else 0,
                activation=_KINDS[adapter.activation],
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
    """a and b as kernels read them, their scales and their biases, empty where there are none."""
    none = (np.zeros(0, np.float32),) * 2
    vectors = (*(term.scales or none), *(term.biases or none))
    return [laid_down(term.a), laid_up(term.b), *(np.ascontiguousarray(part, np.float32) for part in vectors)]
