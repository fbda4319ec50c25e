"""A plan with its memory and its threads: one call computes a chunk of tokens. What a cache is, the caller knows."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Sequence

import numpy as np

from runtime_py.engine.kernels import attention, matmul, razor_attention
from runtime_py.engine.kernels.matrix import width_tag
from runtime_py.engine.plan.plan import finish
from runtime_py.engine.plan.planner import Planner
from runtime_py.engine.steps.loop import run_steps
from runtime_py.engine.verify.verifier import Case, Promises, verify
from runtime_py.simd.codes import RAW
from runtime_py.simd.isa import ISAS, WEIGHT_OFFSET, pick
from runtime_py.simd.tile import has_amx
from runtime_py.system.guard_pages import aligned_bytes, settled
from runtime_py.system.thread_pool import Team, available_threads

_SMALL_WORK = 6 << 20  # bytes of weights a token below which starting a second thread costs more than it saves


class Program:
    """Not to be called by two threads at once."""

    def __init__(
        self,
        planner: Planner,
        promises: Callable[[int], Promises],
        cases: Sequence[Case],
        threads: int | None = None,
        processors: Sequence[int] = (),
    ) -> None:
        """promises: what the caller will set, from the number of threads. cases: the kinds of calls (verifier.py).

        threads: None for all processors. processors: numbers of those that keep one thread each; empty for none.
        Raises Unplannable where the plan is not proven to stay inside its memory.
        """
        self.plan = finish(planner.steps, planner.keep)
        isa = pick()
        amx = isa == "avx512vbmi" and has_amx() and _allow_amx()
        rows, vectors = matmul.tile_shape(isa, amx)
        widths = tuple(map(width_tag, planner.widths())) or (RAW,)
        self._config = _amx_config()
        self.threads = len(processors) or threads or available_threads()
        self._team = Team(self.threads, processors)
        head_dim = max((a.head_dim for a in planner.attention), default=16)
        attending = max(attention.scratch_bytes(head_dim), razor_attention.scratch_bytes(head_dim))
        per_thread = matmul.scratch_bytes(planner.widest) + 4 * planner.widest + attending + 4096
        self._scratch_stride = -(-per_thread // 64) * 64
        self._scratch = aligned_bytes(self._scratch_stride * self.threads)
        cases = [case._replace(threads=self.threads) for case in cases]
        self.limits = verify(self.plan, promises(self.threads), cases, self._scratch_stride)
        self._counters = settled(np.zeros(len(self.plan.steps), np.int64))
        self._meeting = aligned_bytes(128)
        self._addresses = tuple(a.ctypes.data for a in (self._counters, self._meeting, self._scratch))
        self._machine = (
            ISAS[isa], widths, WEIGHT_OFFSET[isa], (rows, vectors, amx), self._config.ctypes.data,
            self.plan.steps.ctypes.data, len(self.plan.steps),
        )  # fmt: skip
        self.instruction_set = isa + (" with AMX" if amx else "")
        self.alone_below = _SMALL_WORK
        self.bytes_per_token = planner.bytes_per_token  # weights read for one token

    def run(self, tokens: int, past: int, last_only: bool) -> None:
        """Compute `tokens` tokens behind `past` others; every External of the plan has its address by now."""
        self._counters[:] = 0
        counters, meeting, scratch = self._addresses

        def work(thread: int, threads: int) -> None:
            run_steps(
                *self._machine, tokens, past, last_only, counters, meeting, thread, threads,
                scratch + thread * self._scratch_stride,
            )  # fmt: skip

        alone = self.bytes_per_token * min(tokens, 16) < self.alone_below
        self._team.run(work, 1 if alone else self.threads)


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
