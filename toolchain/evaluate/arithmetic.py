"""The arithmetic that a target describes: how it multiplies, and what it does with activations, scores and norms.

One class for each kind of machine; what a description leaves open stays in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from export.contract.errors import InputError
from export.contract.sdr import SdrFormat, razor, restore
from hw_model.functional import arrays, attentionlego, rap, tender
from hw_model.machines.array import rows_active
from targets import Target

_SCORE_LIMIT = 4.0  # AttentionLego's scores saturate here: its softmax has a range of e**2 and no more
_WIDE = 24  # bits of a sum before it is parsed to the next product's input
_SDR_GROUP = 16


class Arithmetic:
    """Exact products of int8 activations, one power of two a token, and int8 weights; float32 for all else."""

    input_bits, weight_bits = 8, 8
    shifts_groups = False  # whether accumulators shift between channel groups (Tender)
    integer_functions = False  # whether norms and activation functions are RAP's

    def quantize(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float [..., K] as integers and a unit for each vector [..., 1]."""
        return quantize_rows(x, self.input_bits)

    def passing(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Queries and probabilities, which are used and forgotten, as quantize()."""
        return self.quantize(x)

    def weights(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        """int8 codebook entries [N, K] as what the machine holds, and what one of it is worth [N, 1]."""
        if self.weight_bits >= 8:
            return entries, 1.0
        limit = 2 ** (self.weight_bits - 1) - 1
        unit = np.maximum(np.abs(entries.astype(np.float64)).max(axis=1, keepdims=True), 1) / limit
        return np.rint(entries / unit).astype(np.int8), unit

    def product(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """float [T, K] times the integers [N, K] that the machine holds: float64 [T, N]."""
        q, unit = self.quantize(x)
        return self.multiply(q, weights) * unit

    def multiply(self, q: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Integers [T, K] times integers [N, K] transposed: [T, N]."""
        return q.astype(np.float64) @ weights.T.astype(np.float64)  # below 2**53: exact

    def softmax(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of scores float [T, keys]; those that may not be seen are minus infinity."""
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)


class Digital(Arithmetic):
    """Adder trees: nothing is lost but by the widths of inputs and weights."""

    def __init__(self, target: Target) -> None:
        self.input_bits, self.weight_bits = _width(target, "input_bits"), _width(target, "weight_bits")


class Analog(Digital):
    """All rows on the bit lines at once, a converter of few bits."""

    def __init__(self, target: Target, noise: float) -> None:
        super().__init__(target)
        self._rows, self._slice = round(target["rows"]), round(target["bits_per_cycle"])
        if self._slice not in (1, 2, 4, 8):
            raise InputError(f"{target.name}: --emulate takes 1, 2, 4 or 8 bits_per_cycle, not {self._slice}")
        _check_int8(target, self, exactly=bool(noise) or self._slice > 1)
        self._top, self._noise, self._calls = _top(target), noise, 0

    def multiply(self, q: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self._noise == 0 and self._top >= self._rows * (2**self._slice - 1):
            return super().multiply(q, weights)
        self._calls += 1
        return arrays.analog(q, weights, self._rows, self._slice, self._top, self._noise, self._calls)


class Rap(Digital):
    """Ones-splitting products, shift-parse between layers, integer softmax, SiLU and norms."""

    integer_functions = True

    def __init__(self, target: Target, noise: float) -> None:
        super().__init__(target)
        _check_int8(target, self, exactly=bool(noise))
        self._rows, self._active, self._top = round(target["rows"]), rows_active(target), _top(target)
        self._noise, self._calls, self._random = noise, 0, np.random.default_rng(0)

    def quantize(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wide, unit = quantize_rows(x, _WIDE)
        values, shift = rap.shift_parse(wide, self.input_bits)
        return values.astype(np.int8), unit * 2.0**shift

    def multiply(self, q: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self._top < self._active:
            self._calls += 1
            return arrays.ones_splitting(q, weights, self._rows, self._active, self._top, self._noise, self._calls)
        exact = super().multiply(q, weights)
        if self._noise == 0:
            return exact
        variance = np.zeros((len(q), 1))
        for first in range(0, q.shape[1], self._rows):  # each array on its own
            variance += rap.noise_variance(q[:, first : first + self._rows], self._active, self._noise)
        return exact + np.rint(np.sqrt(variance) * self._random.standard_normal(exact.shape))

    def softmax(self, scores: np.ndarray) -> np.ndarray:
        bits = 6
        fixed = np.rint(np.where(np.isfinite(scores), scores, -(2.0**14)) * 2**bits).astype(np.int64)
        return np.where(np.isfinite(scores), rap.softmax(fixed, bits) / 2**15, 0.0)


class Razored(Arithmetic):
    """QRazor: 16-bit activations and 8-bit weights as 4-bit codes with a flag for every 16, in rows as they lie.

    Queries and probabilities stay 16 bits wide, as in the public scripts.
    """

    def __init__(self, target: Target) -> None:
        codes = [int(target[name]) for name in ("input_bits", "weight_bits")]  # beside them, a share of a flag
        if not all(2 <= width <= 8 for width in codes):
            raise InputError(f"{target.name}: --emulate takes SDR codes of 2 to 8 bits")
        self._inputs, self._weights = SdrFormat(16, codes[0], _SDR_GROUP), SdrFormat(8, codes[1], _SDR_GROUP)

    def quantize(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q, unit = self.passing(x)
        return _razored(q, self._inputs), unit

    def passing(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return quantize_rows(x, 16)

    def weights(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        limited = np.clip(entries.astype(np.int64), -127, 127)
        return _razored(limited, self._weights), 1.0


class Lego(Arithmetic):
    """AttentionLego: products through 6-bit converters of 16 inputs each; the table softmax."""

    def multiply(self, q: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return attentionlego.product(q, weights)

    def softmax(self, scores: np.ndarray) -> np.ndarray:
        """Rows hold as many scores as are visible: the unit sees no others."""
        out = np.zeros(scores.shape)
        for row, values in zip(out, scores):
            seen = np.isfinite(values)
            row[seen] = attentionlego.softmax(attentionlego.encode_scores(values[seen], _SCORE_LIMIT)) / 256
        return out


class Stream(Arithmetic):
    """A MAC array: integers of few bits, activations in groups a power of two apart (Tender) or in one."""

    def __init__(self, target: Target) -> None:
        if target["density"] < 1:
            raise InputError(f"{target.name}: assumes pruned weights, which --emulate does not make of others")
        self.input_bits, self._groups = _width(target, "activation_bits"), round(target["activation_groups"])
        self.weight_bits = _width(target, "weight_bits") if target["weight_bits"] else 8
        if not 1 <= self._groups <= 24:
            raise InputError(f"{target.name}: --emulate takes 1 to 24 activation_groups, not {self._groups}")
        self.shifts_groups = self._groups > 1

    def product(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self._groups == 1:
            return super().product(x, weights)
        return tender.product(x, weights, self._groups, self.input_bits)


def arithmetic_of(target: Target, noise: float) -> Arithmetic:
    """What a target computes. Raises InputError for one without arithmetic of its own, and where noise has no place."""
    if not 0 <= noise <= 10:
        raise InputError(f"--noise must be 0 to 10, not {noise}")
    kinds: dict[str, Callable[[], Arithmetic]] = {
        "digital": lambda: Digital(target),
        "analog": lambda: Analog(target, noise),
        "ones-splitting": lambda: Rap(target, noise),
        "sdr": lambda: Razored(target),
        "attentionlego": Lego,
        "stream": lambda: Stream(target),
    }
    kind = target.choices.get("array", target.kind)
    if kind not in kinds:
        raise InputError(f"--emulate {target.name}: a processor computes what `eval` without --emulate does")
    if noise and kind not in ("analog", "ones-splitting"):
        raise InputError(f"--noise is of analog sums; {target.name} has none")
    return kinds[kind]()


def quantize_rows(x: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """float [..., K] to `bits`-bit integers with one power of two per vector: (int8 or int64, unit [..., 1])."""
    top = np.abs(x).max(axis=-1, keepdims=True).astype(np.float64)
    limit = 2.0 ** (bits - 1) - 1
    unit = np.where(top > 0, 2.0 ** np.ceil(np.log2(np.where(top > 0, top, 1.0) / limit)), 1.0)
    return np.rint(x / unit).astype(np.int8 if bits <= 8 else np.int64), unit


def _razored(values: np.ndarray, form: SdrFormat) -> np.ndarray:
    return restore(*razor(values, form), form.group_size)


def _width(target: Target, name: str) -> int:
    if not 2 <= (width := round(target[name])) <= 16:
        raise InputError(f"{target.name}: --emulate takes {name} of 2 to 16, not {target[name]:g}")
    return width


def _check_int8(target: Target, made: Arithmetic, exactly: bool) -> None:
    """Shorter numbers are sent with their sign repeated, which changes no sum, but draws noise of its own."""
    if max(made.input_bits, made.weight_bits) > 8 or (exactly and min(made.input_bits, made.weight_bits) < 8):
        raise InputError(
            f"{target.name}: --emulate has bit lines for inputs and weights of {'' if exactly else 'at most '}8 bits"
        )
    if not 1 <= target["rows"] <= 2**16:
        raise InputError(f"{target.name}: --emulate takes rows of 1 to 65536, not {target['rows']:g}")


def _top(target: Target) -> int:
    """Largest code of the converter."""
    if not 1 <= target["adc_bits"] <= 16:
        raise InputError(f"{target.name}: --emulate takes adc_bits of 1 to 16, not {target['adc_bits']:g}")
    return max(round(2 ** target["adc_bits"]) - 1, 1)
