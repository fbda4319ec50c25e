"""A step table with its memory and its threads: one call computes a chunk of tokens. The caller knows its caches."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Sequence

import numpy as np

from runtime_py.engine.layout import attention, integer_cache, products, razor
from runtime_py.engine.layout.products import MOST_TOKENS, width_tag
from runtime_py.engine.objects.drivers import drivers, run_steps
from runtime_py.engine.objects.wanted import AMX, LOOP, Wanted
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.placement import finish
from runtime_py.engine.records.call import Call
from runtime_py.engine.records.claims import Case
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.makers import APART, MAKERS, PACKED
from runtime_py.engine.steps.table import NAMES, OPERATION
from runtime_py.engine.verify.verifier import Promises, verify
from runtime_py.machine.isa import has_amx, pick
from runtime_py.system.guard_pages import aligned_bytes, settled
from runtime_py.system.thread_pool import ThreadPool, available_threads

_SMALL_WORK = 6 << 20  # bytes of weights a token below which starting a second thread costs more than it saves


class Program:
    """Not to be called by two threads at once."""

    def __init__(
        self,
        planned: Context,
        promises: Callable[[int], Promises],
        cases: Sequence[Case],
        threads: int | None = None,
        processors: Sequence[int] = (),
        texts: bool = False,
    ) -> None:
        """promises: what the caller will set, from the number of threads. cases: the kinds of calls (verifier.py).

        threads: None for all processors. processors: numbers of those that keep one thread each; empty for none.
        texts: whether run_apart() is wanted; `takes_apart` says whether it can be had. Raises Unplannable where the
        plan is not proven to stay inside its memory.
        """
        self.table = finish(planned.steps, planned.keep)
        isa = pick()
        amx = isa == "avx512vbmi" and has_amx() and _allow_amx()
        rows, vectors = products.tile_shape(isa, amx)
        self._config = _amx_config()
        self.threads = len(processors) or threads or available_threads()
        self._pool = ThreadPool(self.threads, processors)
        head_dim = max((a.head_dim for a in planned.attention), default=16)
        attending = max(room.scratch_bytes(head_dim) for room in (attention, integer_cache, razor))
        per_thread = products.scratch_bytes(planned.widest) + 4 * planned.widest + attending + 4096 + planned.gathering
        self._scratch_stride = -(-per_thread // 64) * 64
        self._scratch = aligned_bytes(self._scratch_stride * self.threads)
        cases = [case._replace(threads=self.threads) for case in cases]
        self.limits = verify(self.table, promises(self.threads), cases, self._scratch_stride)
        self.takes_apart = texts and self._proven_apart(promises, cases)
        self._counters = settled(np.zeros(len(self.table.steps), np.int64))
        self._gate = aligned_bytes(128)
        self._addresses = tuple(a.ctypes.data for a in (self._counters, self._gate, self._scratch))
        self._isa = isa + (AMX if amx else "")
        self._tile = {"rows": rows, "vectors": vectors, "amx": self._config.ctypes.data if amx else 0}
        self._call = settled(np.zeros(len(Call.names()), np.int64))
        self._drivers: dict[str, np.ndarray] = {}
        self.instruction_set = isa + (" with AMX" if amx else "")
        self.alone_below = _SMALL_WORK
        self.bytes_per_token = planned.bytes_per_token  # weights read for one token

    @property
    def takes_packed(self) -> bool:
        """Whether run_packed() can be had: what it touches are parts of what the longest call touches."""
        return PACKED.keys() >= set(self._operations())

    def _proven_apart(self, promises: Callable[[int], Promises], cases: Sequence[Case]) -> bool:
        """Whether the table may run for single tokens of several texts."""
        if not APART.keys() >= set(self._operations()):
            return False
        single = [case._replace(tokens=MOST_TOKENS, apart=True) for case in cases if case.tokens == 1]
        try:
            verify(self.table, promises(self.threads), single, self._scratch_stride)
        except Unplannable:
            return False
        return True

    def arrays(self) -> list[np.ndarray]:
        """What the program keeps in memory."""
        return [*self.table.constants, *self.table.memory, self.table.steps, self._scratch]

    def run(self, tokens: int, past: int, last_only: bool) -> None:
        """Compute `tokens` tokens behind `past` others; every External of the table has its address by now."""
        self._run("plain", tokens, Call(tokens=tokens, past=past, last_only=last_only, **self._tile))

    def run_packed(self, texts: np.ndarray, places: np.ndarray) -> None:
        """Compute some whole texts. texts: int64 [texts, TEXT], places: int64 [tokens, TOKEN], as loop/packed.py has.

        Only where `takes_packed`; two tokens or more, and no text may reach beyond the cache.
        """
        rows = {"texts": texts.ctypes.data, "count": len(texts), "places": places.ctypes.data}
        self._run("packed", len(places), Call(tokens=len(places), **rows, **self._tile))

    def run_apart(self, texts: np.ndarray, layers: np.ndarray) -> None:
        """Compute a token of each of some texts. texts: int64 rows as loop/apart.py reads them; layers: int64 [steps].

        Only where `takes_apart`; at most MOST_TOKENS texts.
        """
        rows = {"texts": texts.ctypes.data, "stride": texts.strides[0], "layers": layers.ctypes.data}
        self._run("apart", len(texts), Call(tokens=len(texts), **rows, **{**self._tile, "amx": 0}))

    def run_step(self, number: int, tokens: int, past: int, last_only: bool) -> None:
        """Compute one step of a call of run(), on this thread alone: for those who look between the steps."""
        Call(tokens=tokens, past=past, last_only=last_only, **self._tile).write(self._call, _as_it_is)
        drivers, steps = self._compiled("plain")[number : number + 1], self.table.steps[number : number + 1]
        self._counters[:] = 0
        counters, gate, scratch = self._addresses
        run_steps(self._isa)(
            drivers.ctypes.data, steps.ctypes.data, 1, self._call.ctypes.data, counters, gate, 0, 1, scratch
        )  # fmt: skip

    def _run(self, kind: str, tokens: int, call: Call[int]) -> None:
        """All steps. kind: of the call, of those in _MAKERS; tokens: how many share a weight that is read."""
        call.write(self._call, _as_it_is)
        self._counters[:] = 0
        counters, gate, scratch = self._addresses
        drivers, steps = self._compiled(kind).ctypes.data, self.table.steps
        places = drivers, steps.ctypes.data, len(steps), self._call.ctypes.data, counters, gate

        run, failed = run_steps(self._isa), []

        def work(thread: int, threads: int) -> None:
            failed.append(run(*places, thread, threads, scratch + thread * self._scratch_stride))

        alone = self.bytes_per_token * min(tokens, 16) < self.alone_below
        self._pool.run(work, 1 if alone else self.threads)
        if any(failed):
            raise RuntimeError("a kernel failed: it divided by zero, or there is an error in it")

    def wanted(self, kind: str) -> list[Wanted]:
        """The objects of a kind of call: one for each step, then the loop."""
        found = []
        for operation, width in zip(self._operations(), self.table.widths()):
            tag = None if width is None else width_tag(width)
            of = None if tag is None else (tag.kind, int(tag.value))
            found.append(Wanted(MAKERS[kind][operation], NAMES[operation], of, self._isa))
        return [*found, Wanted(LOOP, "", None, self._isa)]

    def _compiled(self, kind: str) -> np.ndarray:
        """Addresses of the steps' drivers, int64 [steps]; from disk, or compiled, at the first call of the kind."""
        if kind not in self._drivers:
            wanted = self.wanted(kind)
            found = drivers(wanted)
            self._drivers[kind] = settled(np.array([found[one] for one in wanted[:-1]], np.int64))
        return self._drivers[kind]

    def _operations(self) -> list[int]:
        return self.table.steps[:, OPERATION].tolist()


def _as_it_is(place: int, number: float) -> float:
    return number


def _allow_amx() -> bool:
    """Ask Linux for the AMX tile registers (arch_prctl ARCH_REQ_XCOMP_PERM); False where it refuses."""
    if platform.system() != "Linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return int(libc.syscall(arch_prctl, request_permission, tile_data)) == 0


def _amx_config() -> np.ndarray:
    """Palette 1, eight tiles of 16 rows x 64 bytes."""
    config = aligned_bytes(64)
    config[0] = 1
    config[16:32].view(np.uint16)[:] = 64
    config[48:56] = 16
    return config
