"""A pim target's tiles and chips put together, and what they are made of.

A tile has arrays, SRAM, units and a network of its own; a chip has tiles and an interface to DRAM. All of them share
every matrix out and work at once. A product's outputs go to every tile over its network, and to every chip over its
link, so that what is computed next may lie anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hw_model.machines.array import Array
from hw_model.machines.parts import Part, dram, lanes, logic
from targets import Constant, Target

_OF_A_TILE = (
    "write_bandwidth", "vector_lanes", "softmax_lanes", "requantize_lanes", "attention_macs", "cache_capacity",
    "arrays",
)  # fmt: skip
_OF_A_CHIP = ("dram_bandwidth",)


@dataclass(frozen=True)
class Sharing:
    """How many share the work."""

    tiles: int  # on all chips
    chips: int

    @staticmethod
    def of(target: Target) -> Sharing:
        chips = max(round(target["chips"]), 1)
        return Sharing(chips * max(round(target["tiles"]), 1), chips)

    def network_bytes(self, vectors: int, rows: int, columns: int, array: Array) -> tuple[float, float]:
        """Bytes to and from the arrays of one product: on the busiest tile's network, and on all of them together."""
        stacks = -(-rows // array.outputs)
        inputs = columns * stacks
        busiest = min(inputs, -(-array.tiles(rows, columns) // self.tiles) * array.rows)
        return vectors * (busiest + rows), vectors * (inputs + rows * self.tiles)

    def link_bytes(self, vectors: int, rows: int) -> tuple[float, float]:
        """Bytes of one product's outputs that a chip gets from the others, and that all chips get."""
        others = vectors * rows * (self.chips - 1)
        return others / self.chips, others


def together(target: Target, sharing: Sharing) -> Target:
    """One machine with the resources of all tiles and chips; the network's and the link's bandwidth stay one's own."""
    if sharing.tiles == 1:
        return target
    constants = dict(target.constants)
    for names, count in ((_OF_A_TILE, sharing.tiles), (_OF_A_CHIP, sharing.chips)):
        for name in names:
            constants[name] = _times(constants[name], count)
    return replace(target, constants=constants)


def _times(constant: Constant, count: int) -> Constant:
    return replace(constant, value=constant.value * count)


def parts(target: Target, sharing: Sharing, array: Array, arrays: int) -> dict[str, Part]:
    """All that the chips are made of; target: as `together` gives it."""
    found = {name: logic(target, arrays * area) for name, area in array.areas.items() if name != "cells"}
    found["cells"] = Part(arrays * array.areas["cells"], arrays * array.bytes * target["leakage"])
    capacity = target["cache_capacity"]
    return {
        **found,
        "SRAM": Part(capacity * target["sram_area"], capacity * target["leakage"]),
        "vector unit": lanes(target, target["vector_lanes"], "vector_area"),
        "softmax": lanes(target, target["softmax_lanes"], "softmax_area"),
        "requantization": lanes(target, target["requantize_lanes"], "requantize_area"),
        "attention engine": lanes(target, target["attention_macs"], "attention_area"),
        "array writes": logic(target, target["write_bandwidth"] * target["write_area"]),
        "network": logic(target, sharing.tiles * target["network_bandwidth"] * target["network_area"]),
        "DRAM": dram(target),
        **links(target, sharing.chips),
    }


def links(target: Target, chips: int) -> dict[str, Part]:
    """The links between chips; none of a single one."""
    return {"links": logic(target, chips * target["link_bandwidth"] * target["link_area"])} if chips > 1 else {}
