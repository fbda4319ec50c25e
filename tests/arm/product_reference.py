"""Products of integers and codes in plain numpy, every float in the kernels' order; and how their operands lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.contract.formats.halves import HALF, joined
from export.contract.packing import pack
from runtime_py.engine.layout.products import HIGH_GROUP, HIGH_TOKEN, padded, scratch_bytes
from runtime_py.engine.records.call import Call
from runtime_py.engine.records.record import Record
from runtime_py.engine.records.stored_matrix import StoredMatrix
from runtime_py.engine.steps import table
from runtime_py.engine.steps.products import MatMul
from runtime_py.machine.isa import TILE, WEIGHT_OFFSET
from runtime_py.machine.widths import HIGH_BYTES, PATHS
from tests.arm.image import Image
from tests.runtime_py.engine.activation_reference import tree

BLOCK = 256


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32, rounded once: a product of two float32 is exact in float64, and the sum nearly always."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A matrix of codes, of the kind of a width's tag, and integers: low and high digits [tokens, columns], scales."""

    kind: str
    bits: int
    rows: int
    columns: int
    tokens: int
    outliers: float = 0.003  # part of the columns that have high digits
    path_rows: int = 8  # that share a codebook, and with it a path

    @property
    def blocks(self) -> int:
        return -(-self.columns // BLOCK)

    @property
    def _book_rows(self) -> int:
        return self.path_rows if self.kind in PATHS else 1

    def made(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.bits * 1000 + self.columns + self.tokens)
        books = -(-self.rows // self._book_rows)
        entries = {"halves": 2 * HALF, "trellis": 256}.get(self.kind, 1 << self.bits)
        high = rng.integers(-127, 128, (self.tokens, self.columns))
        high *= rng.random((self.tokens, self.columns)) < self.outliers
        return {
            "codes": rng.integers(0, 1 << self.bits, (self.rows, self.columns), dtype=np.uint8),
            "book": rng.integers(-128, 128, (books, entries)).astype(np.int8),
            "factor": rng.random(self.rows).astype(np.float32),
            "low": rng.integers(-127, 128, (self.tokens, self.columns)).astype(np.int8),
            "high": high.astype(np.int8),
            "scales": rng.random((self.tokens, self.blocks)).astype(np.float32),
        }

    def weights(self, made: dict[str, np.ndarray]) -> np.ndarray:
        """int64 [rows, columns]."""
        codes = made["codes"].astype(np.int64)
        if self.kind == "bits":
            return np.take_along_axis(made["book"], codes, 1).astype(np.int64)
        levels, found = made["book"].astype(np.int64), np.zeros_like(codes)
        if self.kind == "halves":
            levels = joined(made["book"], self.bits).astype(np.int64)
        state = np.zeros(self.columns, np.int64)
        for n in range(self.rows):
            state = (0 if n % self.path_rows == 0 else state) << self.bits & 255 | codes[n]
            found[n] = levels[n // self.path_rows, state]
        return found

    def expected(self, made: dict[str, np.ndarray]) -> np.ndarray:
        """float32 [tokens, rows]."""
        x = made["low"].astype(np.int64) + 255 * made["high"].astype(np.int64)
        wide = self.blocks * BLOCK - self.columns
        products = self.weights(made)[None] * x[:, None]
        blocks = np.pad(products, ((0, 0), (0, 0), (0, wide))).reshape(self.tokens, self.rows, self.blocks, BLOCK)
        one = self.tokens == 1  # sixteen lanes, of every fourth four columns
        sums = blocks.reshape(*blocks.shape[:3], 4, 16, 4).sum((3, 5)) if one else blocks.sum(3)[..., None]
        total = np.zeros((*sums.shape[:2], sums.shape[3]), np.float32)
        for b in range(self.blocks):
            total = _fused(sums[:, :, b].astype(np.float32), made["scales"][:, b][:, None, None], total)
        return tree(total) * made["factor"] if one else total[..., 0] * made["factor"] + np.float32(0)

    def found(self, isa: str, command: list[str], folder: Path) -> np.ndarray:
        """What the driver in a program makes of it."""
        made, image = self.made(), Image()
        packed = pack(made["codes"], self.bits)
        matrix = StoredMatrix(
            codes=image.put(packed), row_bytes=packed.shape[1], book=image.put(made["book"]),
            book_bytes=made["book"].shape[1], book_rows=self._book_rows,
            scale=image.put(made["factor"]), scale_rows=1, rows=self.rows, columns=self.columns, width=0,
            blocks=self.columns // BLOCK, tail=self.columns % BLOCK, bits=self.bits,
        )  # fmt: skip
        offset = WEIGHT_OFFSET[isa]
        operands = self._token(made, offset) if self.tokens == 1 else self._groups(made, offset)
        out = image.put(np.zeros((self.tokens, self.rows), np.float32))
        step = MatMul(
            rows=self.rows, matrix=image.put(_row(matrix)), width=0, row_bytes=packed.shape[1], out=out,
            **{name: image.put(array) for name, array in operands.items()},
        )  # fmt: skip
        height, vectors = TILE[isa]
        call = image.put(_row(Call(tokens=self.tokens, rows=height, vectors=vectors)))
        row = image.put(np.concatenate([np.zeros(table.ARGUMENTS, np.int64), _row(step)]))
        counter = image.put(np.zeros(8, np.int64))
        scratch = image.put(np.zeros(scratch_bytes(self.columns), np.uint8))
        numbers = [call, row, 0, 0, self.tokens, counter, 0, 1, scratch]
        return image.run(command, folder / "image", numbers, out, (self.tokens, self.rows))

    def _starts(self, made: dict[str, np.ndarray], offset: int) -> np.ndarray:
        """What takes the offset of weights out of the sums of fours of columns: int32 [tokens, blocks, 4, 16]."""
        x = made["low"].astype(np.int32) + 255 * made["high"].astype(np.int32)
        fours = np.pad(x, ((0, 0), (0, BLOCK * self.blocks - self.columns))).reshape(self.tokens, self.blocks, 4, 16, 4)
        return -offset * fours.sum(4, dtype=np.int32)

    def _token(self, made: dict[str, np.ndarray], offset: int) -> dict[str, np.ndarray]:
        """Operands of one token, as kernels/quantize.py has them."""
        low = np.zeros(padded(self.columns) + BLOCK, np.int8)
        low[: self.columns] = made["low"][0]
        high = np.zeros((self.blocks, HIGH_TOKEN), np.int8)
        for b in range(self.blocks):
            part = made["high"][0, BLOCK * b : BLOCK * (b + 1)]
            high[b, HIGH_BYTES : HIGH_BYTES + len(part)] = part
            high[b, :8] = _places(np.pad(part, (0, BLOCK - len(part)))[None])
        sums = self._starts(made, offset)[0].sum(1, dtype=np.int32)
        return {"quant": low, "sums": sums, "scales": made["scales"][0], "high": high}

    def _groups(self, made: dict[str, np.ndarray], offset: int) -> dict[str, np.ndarray]:
        """Operands of groups of sixteen tokens."""
        groups, wide = -(-self.tokens // 16), padded(self.columns)
        grown = ((0, 16 * groups - self.tokens), (0, wide - self.columns))
        low = np.pad(made["low"], grown).reshape(groups, 16, wide // 4, 4).transpose(0, 2, 1, 3)
        scales = np.pad(made["scales"], (grown[0], (0, 0))).reshape(groups, 16, self.blocks).transpose(0, 2, 1)
        high = np.zeros((groups, self.blocks, HIGH_GROUP), np.int8)
        digits = np.pad(made["high"], (grown[0], (0, BLOCK * self.blocks - self.columns)))
        digits = digits.reshape(groups, 16, self.blocks, BLOCK)
        for g in range(groups):
            for b in range(self.blocks):
                part = digits[g, :, b]
                high[g, b, HIGH_BYTES:] = part.reshape(16, BLOCK // 4, 4).transpose(1, 0, 2).ravel()
                high[g, b, :8] = _places(part)
        starts = np.pad(self._starts(made, offset).sum((2, 3), dtype=np.int32), (grown[0], (0, 0)))
        sums = np.ascontiguousarray(starts.reshape(groups, 16, self.blocks).transpose(0, 2, 1))
        return {"quant": low, "sums": sums, "scales": np.ascontiguousarray(scales), "high": high}


def _places(digits: np.ndarray) -> np.ndarray:
    """Which fours of columns any token has high digits in, int8 [8]."""
    filled = (digits.reshape(len(digits), BLOCK // 4, 4) != 0).any((0, 2))
    return np.packbits(filled, bitorder="little").view(np.int8)


def _row(record: Record[int]) -> np.ndarray:
    row = np.zeros(len(record.names()), np.int64)
    record.write(row, lambda place, number: number)
    return row
