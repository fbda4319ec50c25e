"""Moving energy and area of logic between technology nodes (Stillmaker and Baas, Integration 2017).

Energy of a node at a voltage is a V^2 + b V + c with the paper's fitted coefficients; nodes between those of the table
are interpolated in the logarithm of the node. Not for SRAM, converters or input and output, which scale otherwise: from
45 to 7 nm logic gains 2 to 4x, a 1 MB SRAM 7x, DDR nothing (Jouppi et al., ISCA 2021).
"""

from __future__ import annotations

import math

_ENERGY = {
    130: (7.171, -6.709, 2.904),
    90: (4.762, -4.781, 2.092),
    65: (3.755, -4.398, 1.975),
    45: (1.103, -0.362, 0.2767),
    32: (0.9559, -0.7823, 0.471),
    20: (0.3730, -0.1582, 0.04104),
    16: (0.2958, -0.1241, 0.03024),
    14: (0.2363, -0.09675, 0.02239),
    10: (0.2068, -0.09311, 0.02375),
    7: (0.1776, -0.09097, 0.02447),
}
_AREA = {130: 6.4, 90: 2.8, 65: 1.5, 45: 1.0, 32: 0.46, 20: 0.21, 16: 0.19, 14: 0.17, 10: 0.10, 7: 0.059}


def energy_factor(source_nm: float, source_volts: float, target_nm: float, target_volts: float) -> float:
    """What logic energy at the source node is multiplied with at the target node."""
    return _interpolated(target_nm, lambda nm: _energy(nm, target_volts)) / _interpolated(
        source_nm, lambda nm: _energy(nm, source_volts)
    )


def area_factor(source_nm: float, target_nm: float) -> float:
    """What logic area at the source node is multiplied with at the target node."""
    return _interpolated(target_nm, _AREA.__getitem__) / _interpolated(source_nm, _AREA.__getitem__)


def _energy(nm: int, volts: float) -> float:
    a, b, c = _ENERGY[nm]
    return a * volts**2 + b * volts + c


def _interpolated(nm: float, value) -> float:  # type: ignore[no-untyped-def]
    """Geometric interpolation between the neighbouring nodes. Raises ValueError outside 7 to 130 nm."""
    nodes = sorted(_AREA)
    if not nodes[0] <= nm <= nodes[-1]:
        raise ValueError(f"{nm} nm lies outside the table of {nodes[0]} to {nodes[-1]} nm")
    high = next(node for node in nodes if node >= nm)
    if high == nm:
        return float(value(high))
    low = nodes[nodes.index(high) - 1]
    part = math.log(nm / low) / math.log(high / low)
    return float(value(low) ** (1 - part) * value(high) ** part)
