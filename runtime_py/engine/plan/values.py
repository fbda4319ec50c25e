"""What the planner knows of values: tokens in a buffer, as integers, activations not computed yet, masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.artefacts.graph import Graph, Node
from export.contract.errors import InputError
from export.contract.sdr import SdrFormat
from runtime_py.engine.layout.products import HIGH_GROUP, MOST_TOKENS, padded
from runtime_py.engine.layout.razor import form_number
from runtime_py.engine.plan.placement import Argument, Buffer, Place
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.experts import Route
from runtime_py.reference.constants import ConstantFolder

_LONGEST_TRIED = 1 << 17  # positions over which a window is tried
_WIDEST_ENCODER = 1 << 12  # an encoder's mask is tried with all pairs of as many tokens
_MASK_OPERATORS = frozenset(
    {"And", "Cast", "Concat", "Expand", "Less", "LessOrEqual", "Range", "Shape", "Squeeze", "Sub", "Unsqueeze"}
)


@dataclass(frozen=True, eq=False)
class Tokens:
    """A float32 value [tokens, width] in a buffer, rows `stride` floats apart, starting `column` floats in."""

    buffer: Buffer
    width: int
    stride: int
    column: int = 0
    rotation: tuple[str, str] | None = None  # names of cos and sin that are still to be applied
    heads: int = 1  # parts of the width that a norm treats one by one

    turned_heads: int = 0  # into how many parts that rotation divides the width

    @property
    def whole(self) -> bool:
        """Whether it is all of its buffer's rows."""
        return self.column == 0 and self.stride == self.width

    @property
    def place(self) -> Place:
        return Place(self.buffer, 4 * self.column)


@dataclass(frozen=True)
class Pending:
    """An activation not computed yet: it is fused with the gate that follows."""

    kind: int
    source: Tokens


@dataclass(frozen=True)
class Gate:
    """A value on the way to a clamped gate (handlers/gates.py)."""

    kind: int
    source: Tokens  # the gate, or what it is to be multiplied with
    limit: float
    alpha: float = 0.0


@dataclass(frozen=True)
class Routed:
    """A value on the way from a router's scores to the sum of what its experts give (handlers/experts.py)."""

    kind: int
    value: Tokens  # the scores, the weights, or the one input of all experts
    step: Route[Argument] | None = None
    picked: Buffer | None = None
    parts: Tokens | None = None  # what the experts give
    biases: str = ""  # a constant of which the picked experts' rows are meant


@dataclass(frozen=True)
class Convolving:
    """A product of two values on its way through a short convolution (handlers/convolution.py)."""

    kind: int
    inner: Tokens
    values: Tokens
    state: int = -1  # number of its recurrent state
    width: int = 0
    kernel: int = 0  # addresses of float32 [width, columns] and [columns]
    bias: int = 0


@dataclass(frozen=True)
class Quantized:
    """Places of a value as int8: layouts in kernels/quantize.py."""

    buffer: Buffer
    quant: Place
    sums: Place
    scales: Place
    high: Place
    group: int  # columns of a group; 0 where nothing with group scales reads it
    starts: Place
    shares: Place

    @staticmethod
    def of(columns: int, chunk: int, group: int = 0) -> Quantized:
        tokens, blocks = -(-chunk // 32) * 32, -(-columns // 256)
        groups = -(-columns // group) if group else 0
        high = tokens // 16 * blocks * HIGH_GROUP
        starts_bytes = max(tokens * groups * 4, MOST_TOKENS * blocks * 256) if group else 0
        sizes = (tokens * padded(columns), tokens * blocks * 4, tokens * blocks * 4, high, starts_bytes)
        ends = np.cumsum(sizes).tolist()
        buffer = Buffer(ends[-1] + MOST_TOKENS * 64 * -(-groups // 16))
        quant, sums, scales, high_at, starts, shares = (Place(buffer, at) for at in (0, *ends))
        return Quantized(buffer, quant, sums, scales, high_at, group, starts, shares)


@dataclass(frozen=True)
class Razored:
    """Places of a value as razored codes: layouts in kernels/razor.py."""

    buffer: Buffer
    codes: Place
    sums: Place
    shifts: Place
    units: Place
    columns: int
    group: int
    # Where groups are not of 16-bit integers: the largest sum that 32 bits must hold, and that of a whole row, for
    # weights of magnitude 1.
    most: tuple[int, int] | None = None

    @staticmethod
    def of(columns: int, group: int, chunk: int) -> Razored:
        tokens = -(-chunk // 32) * 32
        data = tokens * padded(columns)
        lanes = max(padded(columns), tokens // 16 * -(-columns // group) * 64)
        buffer = Buffer(data + 2 * lanes + 4 * tokens)
        codes, sums, shifts, units = (Place(buffer, at) for at in (0, data, data + lanes, data + 2 * lanes))
        return Razored(buffer, codes, sums, shifts, units, columns, group)


def form_of(form: SdrFormat) -> int:
    """The number by which kernels know a format of codes (kernels/razor.py)."""
    twos, even = form.variant != SdrFormat().variant, form.ties != SdrFormat().ties
    return form_number(form.width, form.basis, int(twos), int(even))


@dataclass(frozen=True)
class AttentionShape:
    """What the key-value cache of one attention node needs."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    key_block: int  # bytes of 16 cached keys of one head: as float16, razored, or codes of so many bits
    value_block: int
    razored: bool = False
    bits: int = 16  # of a cached number; 16: float16, or float32 where that is too narrow
    paged: bool = False  # with the mean of every page beside its keys

    @property
    def coded(self) -> bool:
        """Whether it holds codes, which are never widened."""
        return self.razored or self.bits != 16


def stored_rows(folder: ConstantFolder, graph: Graph, name: str) -> np.ndarray:
    """The matrix [N, K] whose transpose is `name`, without a float32 copy where the file holds float16 rows."""
    node = folder.producer(name)
    if node is not None and node.op_type == "Transpose" and list(node.attributes["perm"]) == [1, 0]:
        inner = node.inputs[0]
        cast = folder.producer(inner)
        if cast is not None and cast.op_type == "Cast" and cast.inputs[0] in graph.weights:
            inner = cast.inputs[0]
        rows = folder.constant(inner)
        if rows.dtype in (np.float16, np.float32):
            return np.ascontiguousarray(rows)
    return np.ascontiguousarray(folder.constant(name).T, dtype=np.float32)


def window_of_mask(folder: ConstantFolder, mask: str) -> int:
    """Keys a query may see by the mask our exporter builds (export/graph/whole/decoder.py); 0 for all."""
    allowed_types = {"And", "LessOrEqual", "Less", "Sub", "Range", "Unsqueeze", "Squeeze", "Shape", "Cast"}
    limits, seen, waiting = [], set(), [mask]
    while waiting:
        node = folder.producer(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type not in allowed_types:
            raise Unplannable(f"{node.op_type} in the attention mask")
        if node.op_type == "Less":
            limits.append(int(folder.constant(node.inputs[1])))
        waiting += node.inputs
    if len(limits) > 1 or any(limit < 1 for limit in limits):
        raise Unplannable("the attention mask")
    window = limits[0] if limits else 0
    for tokens, past in ((3, 0), (2, min(window, _LONGEST_TRIED) + 1)):
        keys, queries = np.arange(past + tokens), np.arange(past, past + tokens)[:, None]
        expected = (keys <= queries) & ((queries - keys < window) if window else True)
        if not np.array_equal(_tried(folder, mask, tokens, past, (tokens, past + tokens)), expected):
            raise Unplannable("the attention mask")
    return window


def _tried(folder: ConstantFolder, name: str, tokens: int, past: int, shape: tuple[int, ...]) -> np.ndarray:
    """What a mask or positions are for `tokens` tokens behind `past` others, as this shape."""
    total = past + tokens
    inputs = {
        "input_ids": np.zeros((1, tokens), np.int64),
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(past, total, dtype=np.int64)[None],
    }
    try:
        (found,) = folder.given((name,), inputs)
        return np.broadcast_to(found.reshape(found.shape[-2:]), shape)
    except (InputError, ValueError) as error:
        raise Unplannable(f"{name}: {error}") from None


def turns_by_position(folder: ConstantFolder, pair: tuple[str, str], counted: bool) -> bool:
    """Whether cos and sin are rows of numbers that depend on the position of their row alone.

    counted: the graph counts positions itself, from 0.
    """
    try:
        if counted:
            long, short = (folder.given(pair, {"attention_mask": np.ones((1, n), np.int64)}) for n in (6, 3))
            return all(
                a.shape == (1, 6, *b.shape[2:]) and b.shape[:2] == (1, 3) and np.array_equal(a[:, :3], b)
                for a, b in zip(long, short)
            )
        several, some = (
            folder.given(pair, {"position_ids": np.asarray([positions], np.int64)})
            for positions in (range(6), (3, 5, 4))
        )
        return all(
            a.shape == (1, 6, *b.shape[2:]) and b.shape[:2] == (1, 3) and np.allclose(a[:, [3, 5, 4]], b, atol=1e-6)
            for a, b in zip(several, some)
        )
    except (InputError, IndexError, ValueError):
        return False


def _nodes_of(folder: ConstantFolder, name: str) -> list[Node]:
    """The nodes that a value is computed by, from inputs and constants."""
    waiting, found = [name], {}
    while waiting:
        node = folder.producer(waiting.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            waiting += node.inputs
    return list(found.values())


def _made_of(folder: ConstantFolder, name: str, allowed: frozenset[str]) -> bool:
    """Whether a value is computed by these operators alone."""
    nodes = _nodes_of(folder, name)
    return bool(nodes) and all(node.op_type in allowed for node in nodes)


def window_of_encoder(folder: ConstantFolder, mask: str, back_only: bool) -> int:
    """How near a key must be by an encoder's mask (export/graph/visibility.py) in a text without padding; 0: any key.

    back_only: a key behind its query is hidden besides. Raises Unplannable where the mask is another one.
    """
    nodes = _nodes_of(folder, mask)
    if not _made_of(folder, mask, _MASK_OPERATORS):
        raise Unplannable("the attention mask")
    limits = {int(folder.constant(node.inputs[1])) for node in nodes if node.op_type == "Less"}
    window = min(limits, default=0)
    if len(limits) > 1 or (limits and not 1 <= window <= _WIDEST_ENCODER):
        raise Unplannable("the attention mask")
    for tokens in (1, 3, window + 2):
        distance = np.arange(tokens)[:, None] - np.arange(tokens)
        expected = np.abs(distance) < window if window else distance < tokens
        expected = expected & (distance >= 0) if back_only else expected
        if not np.array_equal(_tried(folder, mask, tokens, 0, (tokens, tokens)), expected):
            raise Unplannable("the attention mask")
    return window


def token_mask_hides_padding_only(folder: ConstantFolder, mask: str) -> bool:
    """The mask over a call's tokens (export/graph/recurrent/convolution.py): without padding, ones."""
    made = _made_of(folder, mask, frozenset({"Slice", "Cast", "Unsqueeze", "Sub", "Shape"}))
    tried = ((1, 0), (3, 0), (1, 2), (3, 2))
    return made and all((_tried(folder, mask, n, past, (n, 1)) == 1).all() for n, past in tried)


def counts_positions(folder: ConstantFolder, ids: str) -> bool:
    """The positions of an encoder (export/graph/whole/encoder.py): 0, 1, ... for a text without padding."""
    counted = frozenset({"Max", "Sub", "CumSum"})
    ranged = frozenset({"Unsqueeze", "Range", "Squeeze", "Shape"})
    if not (_made_of(folder, ids, ranged) or _made_of(folder, ids, counted)):
        return False
    return all(np.array_equal(_tried(folder, ids, n, 0, (1, n)), np.arange(n)[None]) for n in (1, 5))
