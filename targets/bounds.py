"""Within what a constant can be meant: by its unit, and by its name where that says more.

Wide enough for any machine, narrow enough that no sum overflows, no count is rounded to another one and nothing that is
divided by is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

_UNITS: Mapping[str, tuple[float, float]] = {
    "1": (0, 1e9), "bit": (0, 64), "byte": (0, 1e15), "cycle": (0, 1e9), "V": (0.1, 5), "nm": (1, 1000), "W": (0, 1e6),
    "Hz": (1, 1e13), "op/s": (1, 1e21), "op/cycle": (1, 1e12), "byte/s": (1, 1e18),
    "J/op": (0, 1e-3), "J/byte": (0, 1e-3), "W/byte": (0, 1), "W/mm2": (0, 1e3), "W/(byte/s)": (0, 1e-3),
    "um2": (0, 1e12), "um2/bit": (0, 1e9), "um2/Hz": (0, 1), "mm2": (0, 1e6), "mm2/byte": (0, 1), "mm2/bit": (0, 1e3),
    "mm2/(byte/s)": (0, 1e-3),
}  # fmt: skip
_SHARE, _LANES, _COUNT = (0.0, 1.0), (1.0, 1e9), (0.0, 1e9)
_NAMES: Mapping[str, tuple[float, float]] = {
    "ones_density": _SHARE, "input_toggles": _SHARE, "weight_ones": _SHARE, "density": (1e-6, 1.0),
    "adc_bits": (0, 24), "input_bits": (1, 64), "bits_per_cycle": (1, 16), "cache_bits": (1, 64),
    "adc_rate": (0, 1e13), "bus_width": (1, 1e6), "rows": (1, 65536), "outputs": (1, 65536), "rows_active": (0, 65536),
    "macro_rows": (1, 65536), "macro_columns": (1, 65536), "columns_per_adc": (1, 65536),
    "vector_lanes": _LANES, "softmax_lanes": _LANES, "requantize_lanes": _LANES, "tiles": (1, 1e6), "chips": (1, 1e6),
    "arrays": _COUNT, "macros": _COUNT, "activation_groups": (1, 65536),
}  # fmt: skip
_MEASURED = ("ones_density", "input_toggles", "weight_ones", "density")  # all others of unit "1" count something


def problem(kind: str, name: str, unit: str, value: float) -> str:
    """What is wrong with the value, to follow the constant's name; "" where nothing is."""
    low, high = _NAMES.get(name, _UNITS[unit])
    if name == "weight_bits" and kind != "stream":  # where 0 is what the file stores
        low = 1
    if not low <= value <= high:
        return f"must be {low:g} to {high:g}{'' if unit == '1' else ' ' + unit}, not {value:g}"
    if unit == "1" and name not in _MEASURED and value != int(value):
        return f"must be a whole number, not {value:g}"
    return ""
