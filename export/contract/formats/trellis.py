"""The format `trellis`: codes that move a state on, and the state picks the level. Numpy only.

TrellisCodebookMatMul(X, codes, codebook, scale) -> Y = X @ W^T
    X        float32 [..., K]
    codes    uint8 [N, row_bytes(K, bits)], layout in export/contract/packing.py
    codebook int8 [ceil(N / rows_per_codebook), 2**state_bits]
    scale    float16 or float32 [ceil(N / rows_per_scale), 1]
    W[n, k] = scale[n // rows_per_scale] * codebook[n // rows_per_codebook, state[n, k]]
    state[n, k] = (state[n - 1, k] << bits | code[n, k]) mod 2**state_bits, zero before the first row of a codebook

Trellis-coded quantization (Marcellin and Fischer 1990; QTIP, arXiv 2406.11235) with a sliding window: `bits` are stored
for a weight, but its level is one of 2**state_bits, picked together with the rows above it. So the codes of a column
are a path, and the best path serves many weights jointly, at the cost of a small codebook. Paths start anew with every
codebook, so that any group of rows can be read alone. Codebooks of 8 state bits may have the form of sums (halves.py;
`--levels sums`), which kernels look up without a large table. Attributes, all required:
bits (1..4), K, N, state_bits (more than bits, at most 12 and 8 * bits), rows_per_codebook, rows_per_scale.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import ClassVar

import numpy as np

from export.contract.body import Body, Value
from export.contract.body_parts import all_rows, entries, one_dimension, row_scales, unpacked
from export.contract.formats.base import FLOATS, LARGEST, Layout, Part, chunks, random_bytes
from export.contract.formats.codebook import CodebookLayout, all_levels, level_layout
from export.contract.formats.halves import joined
from export.contract.packing import row_bytes, unpack

TRELLIS_MATMUL = "TrellisCodebookMatMul"
LEVEL_LIMIT = 127
STANDARD_STATE_BITS = {1: 8, 2: 8, 3: 8, 4: 8}  # by bits
# Editions of the standard levels: any 256 numbers, and sums (halves.py).
ANY, SUMS = 1, 2
STANDARD_FILES = {ANY: "trellis_levels.json", SUMS: "trellis_halves.json"}
UNIT = 32.0  # what one standard deviation is in the standard levels
_LEVEL_DEVIATION = 74  # of evenly spread int8 levels


@cache
def standard_levels(bits: int, edition: int) -> np.ndarray:
    """int8 [2**STANDARD_STATE_BITS[bits]]: levels for normally distributed weights, stored once for a whole model.

    Made by toolchain/quantize/solvers/standard_trellis.py. Raises ValueError where there is no such edition.
    """
    if edition not in STANDARD_FILES:
        raise ValueError(f"there is no edition {edition} of the standard levels")
    file = resources.files("export.contract.formats").joinpath(STANDARD_FILES[edition])
    table = np.array(json.loads(file.read_text(encoding="utf-8"))[str(bits)], np.int8)
    levels = table if edition == ANY else joined(table, bits)
    levels.setflags(write=False)
    return levels


@dataclass(frozen=True)
class TrellisLayout(Layout):
    """The attributes of one matrix W [N, K] of trellis codes."""

    SCHEME: ClassVar[str] = "trellis"
    OPERATOR: ClassVar[str] = TRELLIS_MATMUL
    KEPT: ClassVar = ("scale",)
    LIMITS: ClassVar = {"bits": 4, "state_bits": 12}

    state_bits: int
    rows_per_codebook: int
    rows_per_scale: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bits < self.state_bits <= 8 * self.bits:
            raise ValueError(f"state_bits must be {self.bits + 1} to {8 * self.bits}, not {self.state_bits}")
        if int(np.prod(self.codebook_shape, dtype=object)) > LARGEST:  # the function body counts entries in int32
            raise ValueError("the codebooks would have too many entries")

    @property
    def codes_shape(self) -> tuple[int, int]:
        return self.N, row_bytes(self.K, self.bits)

    @property
    def codebook_shape(self) -> tuple[int, int]:
        return chunks(self.N, self.rows_per_codebook), 1 << self.state_bits

    @property
    def scale_shape(self) -> tuple[int, int]:
        return chunks(self.N, self.rows_per_scale), 1

    def parts(self) -> dict[str, Part]:
        return {
            "codes": Part(self.codes_shape, ("uint8",)),
            "codebook": Part(self.codebook_shape, ("int8",)),
            "scale": Part(self.scale_shape, FLOATS, computed=True),
        }

    def check(self, *arrays: np.ndarray) -> None:
        super().check(*arrays)
        if arrays[1].min(initial=0) < -LEVEL_LIMIT:
            raise ValueError(f"codebook holds an entry below -{LEVEL_LIMIT}")

    def states(self, codes: np.ndarray) -> np.ndarray:
        """States int64 [N, K] of packed codes (slow, obvious reference)."""
        code = unpack(codes, self.bits, self.K).astype(np.int64)
        state = np.zeros_like(code)
        for n in range(self.N):
            before = state[n - 1] if n % self.rows_per_codebook else 0
            state[n] = ((before << self.bits) | code[n]) & ((1 << self.state_bits) - 1)
        return state

    def levels(self, codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
        """Integer weights int8 [N, K]."""
        chunk = np.arange(self.N) // self.rows_per_codebook
        return codebook[chunk[:, None], self.states(codes)]

    def rows(self, rows: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        codes, codebook, scale = arrays
        levels = self.levels(codes, codebook)[rows].astype(np.float32)
        return levels * scale[rows // self.rows_per_scale].astype(np.float32)

    def codebook_layout(self) -> CodebookLayout:
        return level_layout(self.N, self.K, self.rows_per_scale)

    def codebook_part(self, part: str, *arrays: np.ndarray) -> np.ndarray:
        if part == "codebook":
            return all_levels()
        return self.levels(arrays[0], arrays[1]).view(np.uint8) ^ np.uint8(128)

    @classmethod
    def body(cls, b: Body, *parts: Value) -> Value:
        codes, codebook, scale = parts
        rows, row = b.attribute("N"), all_rows(b)
        chunk_rows = b.Min(b.attribute("rows_per_codebook"), rows)
        states = _body_states(b, unpacked(b, codes, b.attribute("K")).astype("uint32"), chunk_rows).astype("int32")
        size = entries(b, b.attribute("state_bits")).astype("int64")
        first = b.Unsqueeze(row // chunk_rows * size, [1]).astype("int32")
        level = b.Gather(b.Reshape(codebook, [-1]), first + states, name="level").astype("float32")
        return level * row_scales(b, scale, row).astype("float32")

    def with_rows(self, count: int) -> TrellisLayout:
        raise ValueError("its levels depend on the codes of several rows")

    def standard(self, part: str, edition: int) -> np.ndarray:
        """The standard levels int8 [1, states]."""
        if part != "codebook" or self.codebook_shape != (1, 1 << STANDARD_STATE_BITS[self.bits]):
            raise ValueError(f"there is no standard {part} for {self}")
        return standard_levels(self.bits, edition)[None]

    def random(self, part: str, rng: np.random.Generator, deviation: float) -> np.ndarray:
        if part == "codes":
            return random_bytes(self.codes_shape, rng)
        if part == "codebook":
            return rng.integers(-LEVEL_LIMIT, LEVEL_LIMIT + 1, self.codebook_shape).astype(np.int8)
        return np.full(self.scale_shape, deviation / _LEVEL_DEVIATION, np.float16)


def _body_states(b: Body, codes: Value, chunk_rows: Value) -> Value:
    """From codes uint32 [N, K] to states of the same shape; a path starts anew after chunk_rows rows.

    By doubling: a window of 2 codes from single ones, of 4 from 2, of 8 from 4, each time by looking up so many rows;
    masks keep the window to state_bits.
    """
    rows, columns, nothing = b.attribute("N"), b.attribute("K"), b.constant(0, "uint32")
    mask = b.named("state_mask", entries(b, b.attribute("state_bits")) - b.constant(1, "uint32"))
    missing = (rows + chunk_rows - 1) // chunk_rows * chunk_rows - rows
    whole = b.Pad(codes, b.Concat([0, 0], b.Reshape(missing, [1]), [0], axis=0), nothing)
    window = b.Reshape(whole, one_dimension(b, [-1], chunk_rows, columns))
    for count in (1, 2, 4):
        above = b.Slice(b.Pad(window, [0, count, 0, 0, 0, 0], nothing), [0], b.Reshape(chunk_rows, [1]), [1])
        moved = above << (b.attribute("bits") * count).astype("uint32")
        window = b.named(f"window_{2 * count}", (window | moved) & mask)
    by_row = b.Reshape(window, one_dimension(b, [-1], columns))
    return b.Slice(by_row, [0], b.Reshape(rows, [1]), [0], name="states")
