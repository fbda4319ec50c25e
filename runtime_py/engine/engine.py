"""A planned model folder: weights mapped, buffers allocated once, one compiled call a token on a team of threads."""

from __future__ import annotations

import ctypes
import itertools
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.errors import InputError
from export.reader import Graph
from runtime_py.engine import attention, matmul
from runtime_py.engine.fence import aligned_bytes, settled
from runtime_py.engine.machine import run_steps
from runtime_py.engine.matrix import RAW_WIDTH
from runtime_py.engine.plan import finish
from runtime_py.engine.planner import Planner
from runtime_py.engine.team import Team, available_threads
from runtime_py.simd.codes import RAW, WIDTHS
from runtime_py.simd.isa import ISAS, WEIGHT_OFFSET, pick
from runtime_py.simd.tile import has_amx

_CHUNK = 256  # tokens that pass through the layers together: the codes are decoded once for all of them
_CACHE_CHUNK = 256  # tokens to whose multiples a key-value cache grows
_CACHE_STEP = 1024  # most tokens by which it grows beyond what is needed
_ROTATION_CHUNK = 1024  # positions by which the table of rotations grows
_STAMPS = itertools.count()
_SMALL_WORK = 6 << 20  # bytes of weights a token below which starting a second thread costs more than it saves


@dataclass
class EngineState:
    """Keys and values of the tokens seen so far, float16 as attention.py lays them out, one pair per layer."""

    length: int
    capacity: int
    keys: list[np.ndarray]
    values: list[np.ndarray]
    stamp: int = -1  # changes whenever the arrays do

    def bytes(self) -> int:
        return sum(a.nbytes for a in (*self.keys, *self.values))


class Engine:
    """Runs one model folder with int8 activations. Several states can share it; calls take turns."""

    def __init__(self, graph: Graph, threads: int | None = None, processors: Sequence[int] = ()) -> None:
        """threads: None for all processors. processors: numbers of those that keep one thread each; empty for none.

        Raises Unplannable when the graph has something this cannot run.
        """
        planner = Planner(graph, _CHUNK)
        planner.plan()
        self._folder = planner.folder
        self._attention = planner.attention
        self._rotation_names = planner.rotations
        self._position_rows = planner.position_rows
        self.vocab_size = planner.logits.width
        self._lookup_rows = planner.vocab_size
        self._plan = finish(planner.steps, planner.keep)
        self._isa = pick()
        amx = self._isa == "avx512vbmi" and has_amx() and _allow_amx()
        rows, vectors = matmul.tile_shape(self._isa, amx)
        self._tile = (rows, vectors, amx)
        self._widths = tuple(RAW if w == RAW_WIDTH else WIDTHS[w] for w in planner.widths()) or (RAW,)
        self._config = _amx_config()
        self._threads = len(processors) or threads or available_threads()
        self._team = Team(self._threads, processors)
        head_dim = max((a.head_dim for a in self._attention), default=16)
        per_thread = (
            matmul.scratch_bytes(planner.widest) + 4 * planner.widest + attention.scratch_bytes(head_dim) + 4096
        )
        self._scratch_stride = -(-per_thread // 64) * 64
        self._scratch = aligned_bytes(self._scratch_stride * self._threads)
        self._counters = settled(np.zeros(len(self._plan.steps), np.int64))
        self._meeting = aligned_bytes(128)
        self._rotations: list[np.ndarray] = []
        self._rotated = 0  # positions in the table
        self._bound = -1  # stamp of the state whose cache is in the step table
        self._ids, self._positions = settled(np.zeros(_CHUNK, np.int64)), settled(np.zeros(_CHUNK, np.int64))
        self._plan.set("input_ids", self._ids.ctypes.data)
        self._plan.set("position_ids", self._positions.ctypes.data)
        self._addresses = tuple(a.ctypes.data for a in (self._counters, self._meeting, self._scratch))
        self._machine = (
            ISAS[self._isa], self._widths, WEIGHT_OFFSET[self._isa], self._tile, self._config.ctypes.data,
            self._plan.steps.ctypes.data, len(self._plan.steps),
        )  # fmt: skip
        self._lock = threading.Lock()
        self.instruction_set = self._isa + (" with AMX" if amx else "")
        self.threads = self._threads
        self.alone_below = _SMALL_WORK
        self.bytes_per_token = planner.bytes_per_token  # weights read to decode one token
        widths = [a.kv_heads * (a.head_dim + attention.value_width(a.head_dim)) for a in self._attention]
        self.cache_bytes_per_token = 2 * sum(widths)

    def new_state(self) -> EngineState:
        """An empty key-value cache."""
        return EngineState(0, 0, [], [])

    def forward(self, state: EngineState, tokens: np.ndarray | Sequence[int], last_only: bool = False) -> np.ndarray:
        """Append tokens (int [T], T >= 1) to the state and return their logits, float32 [T or 1, vocabulary].

        Raises InputError on a token outside the vocabulary, an empty input, or positions the model has no row for.
        """
        ids = np.ascontiguousarray(tokens, dtype=np.int64).reshape(-1)
        if ids.size == 0:
            raise InputError("the prompt is empty: at least one token is needed")
        if int(ids.min()) < 0 or int(ids.max()) >= self._lookup_rows:
            raise InputError(f"token {int(ids.max())} lies outside the vocabulary of {self._lookup_rows}")
        total = state.length + ids.size
        if self._position_rows is not None and total > self._position_rows:
            raise InputError(f"{total} tokens exceed the model's {self._position_rows} positions")
        logits = np.empty((1 if last_only else ids.size, self.vocab_size), np.float32)
        with self._lock:
            self._grow(state, total)
            start = 0
            while start < ids.size:
                part = ids[start : start + chunk_size(ids.size - start)]
                out = logits if last_only else logits[start : start + part.size]
                self._run(state, part, out, last_only)
                start += part.size
        return logits

    def _run(self, state: EngineState, ids: np.ndarray, logits: np.ndarray, last_only: bool) -> None:
        tokens, past = ids.size, state.length
        self._ids[:tokens] = ids
        self._positions[:tokens] = np.arange(past, past + tokens)
        self._plan.set("logits", logits.ctypes.data)
        if self._bound != state.stamp:
            self._bind(state)
        if past + tokens > self._rotated:
            self._extend_rotations(past + tokens)
        self._counters[:] = 0
        counters, meeting, scratch = self._addresses

        def work(thread: int, threads: int) -> None:
            run_steps(
                *self._machine, tokens, past, last_only, counters, meeting, thread, threads,
                scratch + thread * self._scratch_stride,
            )  # fmt: skip

        alone = self.bytes_per_token * min(tokens, 16) < self.alone_below
        self._team.run(work, 1 if alone else self._threads)
        state.length += tokens

    def _bind(self, state: EngineState) -> None:
        """Put the addresses of this state's cache into the step table."""
        self._plan.set("capacity", state.capacity)
        for i, (keys, values) in enumerate(zip(state.keys, state.values)):
            self._plan.set(f"keys.{i}", keys.ctypes.data)
            self._plan.set(f"values.{i}", values.ctypes.data)
        self._bound = state.stamp

    def _grow(self, state: EngineState, total: int) -> None:
        if total <= state.capacity:
            return
        # The first growth doubles, later ones add a fixed part; layer by layer, so that never two whole caches exist.
        wanted = max(total, min(2 * state.capacity, state.capacity + _CACHE_STEP))
        capacity = -(-wanted // _CACHE_CHUNK) * _CACHE_CHUNK
        for i, shape in enumerate(self._attention):
            width = attention.value_width(shape.head_dim)
            k = aligned_bytes(2 * shape.kv_heads * shape.head_dim * capacity).view(np.float16)
            v = aligned_bytes(2 * shape.kv_heads * width * capacity).view(np.float16)
            k, v = k.reshape(shape.kv_heads, capacity // 16, -1), v.reshape(shape.kv_heads, capacity, width)
            if state.capacity:
                k[:, : state.capacity // 16] = state.keys[i]
                v[:, : state.capacity] = state.values[i]
                state.keys[i], state.values[i] = k, v
            else:
                state.keys.append(k)
                state.values.append(v)
        state.capacity, state.stamp = capacity, next(_STAMPS)

    def _extend_rotations(self, total: int) -> None:
        """Make the table of cos and sin reach `total` positions at least: float32 [positions, half] each."""
        self._rotated = max(-(-total // _ROTATION_CHUNK) * _ROTATION_CHUNK, 2 * self._rotated)
        inputs = {"position_ids": np.arange(self._rotated, dtype=np.int64)[None]}
        smallest = min((shape.head_dim for shape in self._attention), default=0)
        tables = []
        for number, names in enumerate(self._rotation_names):
            cos, sin = (settled(a[0]) for a in self._folder.given(names, inputs))
            if cos.shape != sin.shape or cos.ndim != 2 or len(cos) < total or 2 * cos.shape[1] > smallest:
                raise InputError(f"model.onnx: rotations of shape {list(cos.shape)} do not fit heads of {smallest}")
            for name, value in (("cos", cos.ctypes.data), ("sin", sin.ctypes.data), ("half", cos.shape[1])):
                self._plan.set(f"{name}.{number}", value)
            tables += [cos, sin]
        self._rotations = tables


def chunk_size(left: int) -> int:
    """Tokens to compute together when `left` are waiting.

    A prompt never ends in a chunk of one: a single token is summed in another order, and so the cache of a prompt
    would depend on where its chunks end, that is, on how much of it was found in an earlier request's cache.
    """
    return min(left, _CHUNK) if left != _CHUNK + 1 else _CHUNK - 1


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
