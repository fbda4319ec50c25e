"""Significant data razoring (SDR) to the bit: integers of 8 or 16 bits as short codes with one shift a group.

QRazor (arXiv 2501.13331). Of a group of integers, everything above the leading one of their magnitudes is zero and is
dropped; of what remains the sign and the highest `width - 1` bits are kept, rounded. The bits dropped below are the
same for the whole group: its flag. An integer is code << flag, so products of codes add up without any expansion:

    sum_i w_i a_i = (sum_i cw_i ca_i) << (fw + fa)    over a group of both

Slow and obvious, numpy only; the operators are in export/contract/operators/integers.py, the kernels in
runtime_py/engine/kernels/razor.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from export.contract.packing import pack

SIGN_MAGNITUDE, TWOS_COMPLEMENT = "sign-magnitude", "twos-complement"
HALF_UP, HALF_EVEN = "half-up", "half-even"


@dataclass(frozen=True)
class SdrFormat:
    """How integers are razored.

    variant: what becomes of a code that rounding would push out of its field. "sign-magnitude" (A) floors it to the
    largest magnitude; "twos-complement" (B) also keeps the one negative code that has no positive partner. ties:
    "half-up" as an adder behind the shifter rounds (magnitudes), "half-even" as the public code does.
    """

    basis: int = 8  # bits of the integers, sign included
    width: int = 4  # bits of a code, sign included; equal to basis: nothing is dropped
    group_size: int = 16  # neighbours that share a flag
    variant: str = SIGN_MAGNITUDE
    ties: str = HALF_UP

    def __post_init__(self) -> None:
        if not 2 <= self.width <= self.basis <= 16:
            raise ValueError(f"SDR needs 2 <= width <= basis <= 16, not width {self.width} and basis {self.basis}")
        if not 1 <= self.group_size <= 2**24:
            raise ValueError(f"SDR groups must be 1 to {2**24} long, not {self.group_size}")
        if self.variant not in (SIGN_MAGNITUDE, TWOS_COMPLEMENT):
            raise ValueError(f"SDR variant {self.variant!r} is neither {SIGN_MAGNITUDE} nor {TWOS_COMPLEMENT}")
        if self.ties not in (HALF_UP, HALF_EVEN):
            raise ValueError(f"SDR tie rule {self.ties!r} is neither {HALF_UP} nor {HALF_EVEN}")

    @property
    def limit(self) -> int:
        """Largest magnitude of an integer before razoring."""
        return (1 << (self.basis - 1)) - 1

    @property
    def code_limit(self) -> int:
        """Largest positive code."""
        return (1 << (self.width - 1)) - 1

    @property
    def lowest_code(self) -> int:
        return -self.code_limit - (self.variant == TWOS_COMPLEMENT)

    @property
    def flag_limit(self) -> int:
        return self.basis - self.width

    @property
    def effective_bits(self) -> float:
        """Bits an element takes: its code and its share of a flag of 4 bits (none where nothing is ever dropped)."""
        return self.width + (4 / self.group_size if self.flag_limit else 0.0)

    def groups(self, columns: int) -> int:
        return -(-columns // self.group_size)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def razor(values: np.ndarray, form: SdrFormat) -> tuple[np.ndarray, np.ndarray]:
    """Integers [..., K] -> codes int16 [..., K] and flags uint8 [..., ceil(K / group_size)], groups along K.

    A last group that is shorter stands alone. Raises ValueError on a value outside the basis.
    """
    values = np.asarray(values, np.int64)
    if values.size and int(np.abs(values).max()) > form.limit:
        raise ValueError(f"a value lies outside the {form.basis}-bit basis")
    columns, groups = values.shape[-1], form.groups(values.shape[-1])
    padded = np.zeros((*values.shape[:-1], groups * form.group_size), np.int64)
    padded[..., :columns] = values
    grouped = padded.reshape(*values.shape[:-1], groups, form.group_size)
    magnitude = np.abs(grouped)
    ored = np.bitwise_or.reduce(magnitude, axis=-1, keepdims=True)
    leading = np.frexp(ored.astype(np.float64))[1]  # the leading one's place, counted from 1; 0 for zero
    flag = np.maximum(leading - (form.width - 1), 0)
    code = magnitude >> flag
    below, half = magnitude - (code << flag), (1 << flag) >> 1
    tie_up = (code & 1) == 1 if form.ties == HALF_EVEN else np.ones_like(code, bool)
    code = code + ((flag > 0) & ((below > half) | ((below == half) & tie_up)))
    code = np.where(grouped < 0, np.maximum(-code, form.lowest_code), np.minimum(code, form.code_limit))
    return code.reshape(*values.shape[:-1], -1)[..., :columns].astype(np.int16), flag[..., 0].astype(np.uint8)


def restore(codes: np.ndarray, flags: np.ndarray, group_size: int) -> np.ndarray:
    """The integers that codes [..., K] and flags [..., G] stand for: int64 [..., K]."""
    shift = np.repeat(flags.astype(np.int64), group_size, axis=-1)[..., : codes.shape[-1]]
    return codes.astype(np.int64) << shift


def to_integers(values: np.ndarray, unit: np.ndarray | float, form: SdrFormat) -> np.ndarray:
    """float32 values to integers of the basis: divided by the unit, rounded half to even, clipped. int64."""
    scaled = np.asarray(values, np.float32) / np.asarray(unit, np.float32)
    return np.clip(np.rint(scaled), -form.limit, form.limit).astype(np.int64)


def code_table(form: SdrFormat) -> np.ndarray:
    """int8 [2**width], the code each stored bit pattern stands for: sign and magnitude, or two's complement."""
    if form.width > 8:
        raise ValueError(f"codes of {form.width} bits have no table; at most 8 are stored so")
    pattern = np.arange(1 << form.width)
    top = 1 << (form.width - 1)
    if form.variant == TWOS_COMPLEMENT:
        return np.where(pattern >= top, pattern - 2 * top, pattern).astype(np.int8)
    return np.where(pattern >= top, -(pattern - top), pattern).astype(np.int8)


def code_patterns(codes: np.ndarray, form: SdrFormat) -> np.ndarray:
    """The bit pattern of each code, uint8: the inverse of code_table."""
    top = 1 << (form.width - 1)
    if form.variant == TWOS_COMPLEMENT:
        return (codes.astype(np.int64) & (2 * top - 1)).astype(np.uint8)
    return np.where(codes < 0, top - codes.astype(np.int64), codes).astype(np.uint8)


def pack_codes(codes: np.ndarray, form: SdrFormat) -> np.ndarray:
    """Codes [N, K] as rows of bytes in the layout of export/contract/packing.py."""
    return pack(code_patterns(codes, form), form.width)


def pack_flags(flags: np.ndarray) -> np.ndarray:
    """Flags [..., G] below 16, two a byte, the earlier group in the low half: uint8 [..., ceil(G / 2)]."""
    flags = np.asarray(flags, np.uint8)
    if flags.size and int(flags.max()) > 15:
        raise ValueError("a flag does not fit in 4 bits")
    padded = np.zeros((*flags.shape[:-1], -(-flags.shape[-1] // 2) * 2), np.uint8)
    padded[..., : flags.shape[-1]] = flags
    return padded[..., 0::2] | (padded[..., 1::2] << 4)


def unpack_flags(packed: np.ndarray, groups: int) -> np.ndarray:
    """Inverse of pack_flags: uint8 [..., groups]."""
    both = np.stack([packed & 15, packed >> 4], axis=-1)
    return both.reshape(*packed.shape[:-1], -1)[..., :groups]
