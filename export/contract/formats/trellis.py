"""The ai.athena operator of trellis codes: names, attributes, shapes and a numpy reference. Numpy only.

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
codebook, so that any group of rows can be read alone. Attributes, all required: bits (1..4), K, N, state_bits (more
than bits, at most 12 and 8 * bits), rows_per_codebook, rows_per_scale.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources

import numpy as np

from export.contract.formats.codebook import CodebookLayout, check_parts
from export.contract.packing import row_bytes, unpack

TRELLIS_MATMUL = "TrellisCodebookMatMul"
LEVEL_LIMIT = 127
STANDARD_STATE_BITS = {1: 8, 2: 8, 3: 8, 4: 8}  # by bits
STANDARD_FILE = "trellis_levels.json"
UNIT = 32.0  # what one standard deviation is in the standard levels


@cache
def standard_levels(bits: int) -> np.ndarray:
    """int8 [2**STANDARD_STATE_BITS[bits]]: levels for normally distributed weights, stored once for a whole model.

    Made by toolchain/quantize/solvers/standard_trellis.py.
    """
    table = json.loads(resources.files("export.contract.formats").joinpath(STANDARD_FILE).read_text(encoding="utf-8"))
    levels = np.array(table[str(bits)], np.int8)
    levels.setflags(write=False)
    return levels


@dataclass(frozen=True)
class TrellisLayout:
    """The attributes of one matrix W [N, K] of trellis codes."""

    bits: int
    K: int
    N: int
    state_bits: int
    rows_per_codebook: int
    rows_per_scale: int = 1

    def __post_init__(self) -> None:
        limits = {"bits": 4, "state_bits": 12}
        for name in self.__dataclass_fields__:
            high = limits.get(name, 2**31 - 1)
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be 1 to {high}, not {getattr(self, name)}")
        if not self.bits < self.state_bits <= 8 * self.bits:
            raise ValueError(f"state_bits must be {self.bits + 1} to {8 * self.bits}, not {self.state_bits}")
        if int(np.prod(self.codebook_shape, dtype=object)) >= 2**31:  # the function body counts entries in int32
            raise ValueError("the codebooks would have too many entries")

    @property
    def codes_shape(self) -> tuple[int, int]:
        return self.N, row_bytes(self.K, self.bits)

    @property
    def codebook_shape(self) -> tuple[int, int]:
        return -(-self.N // self.rows_per_codebook), 1 << self.state_bits

    @property
    def scale_shape(self) -> tuple[int, int]:
        return -(-self.N // self.rows_per_scale), 1

    def attributes(self) -> dict[str, int]:
        """ONNX node attributes, by name."""
        return asdict(self)

    def check(self, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray) -> None:
        """Raise ValueError when an array does not have the dtype, shape or range that the contract asks for."""
        check_parts(self, codes, codebook, scale)
        if codebook.min(initial=0) < -LEVEL_LIMIT:
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

    def dequantized(self, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The float32 [N, K] matrix that packed codes, int8 codebook and scale stand for."""
        self.check(codes, codebook, scale)
        rows = np.arange(self.N) // self.rows_per_scale
        return self.levels(codes, codebook).astype(np.float32) * scale[rows].astype(np.float32)

    def widened(self) -> CodebookLayout:
        """The layout of the same matrix as 8-bit codes of one codebook, -128..127 in order."""
        return CodebookLayout(8, self.K, self.N, 0, self.N, self.rows_per_scale)

    def expanded(self, codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
        """The codes uint8 [N, K] of the same matrix in the form of widened(), exactly."""
        return self.levels(codes, codebook).view(np.uint8) ^ np.uint8(128)
