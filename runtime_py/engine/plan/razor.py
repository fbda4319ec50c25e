"""The integer operators for the planner: razored activations, products of codes, attention over a razored cache.

Each function plans one node and raises Unplannable where there is no step for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.artefacts.reader import Node
from export.contract.errors import InputError
from export.contract.operators.attention import AttentionLayout
from export.contract.sdr import SdrFormat
from runtime_py.engine.kernels import razor_attention
from runtime_py.engine.kernels.matrix import WIDTH, padded
from runtime_py.engine.kernels.razor import form_number
from runtime_py.engine.kernels.razor_products import flag_places
from runtime_py.engine.plan.attention import turn_in_place
from runtime_py.engine.plan.plan import Argument, Buffer, External, Place
from runtime_py.engine.plan.values import AttentionShape, Tokens, Unplannable, window_of_mask
from runtime_py.engine.steps import table as op
from runtime_py.system.guard_pages import settled

if TYPE_CHECKING:
    from runtime_py.engine.plan.planner import Planner

_GROUPS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Razored:
    """Activations as codes: places in one buffer, layouts in razor.py."""

    buffer: Buffer
    sums: int
    shifts: int
    units: int
    columns: int
    group: int

    @staticmethod
    def of(columns: int, group: int, chunk: int) -> Razored:
        tokens = -(-chunk // 32) * 32
        data = tokens * padded(columns)
        lanes = max(padded(columns), tokens // 16 * -(-columns // group) * 64)
        return Razored(Buffer(data + 2 * lanes + 4 * tokens), data, data + lanes, data + 2 * lanes, columns, group)

    def arguments(self) -> dict[str, Argument]:
        parts = {"codes": 0, "sums": self.sums, "shifts": self.shifts, "units": self.units}
        return {name: Place(self.buffer, offset) for name, offset in parts.items()}


def _form(form: SdrFormat) -> int:
    twos, even = form.variant != SdrFormat().variant, form.ties != SdrFormat().ties
    return form_number(form.width, form.basis, int(twos), int(even))


def quantize(planner: Planner, node: Node) -> None:
    x, form = planner.tokens(node.inputs[0]), node.sdr_format()
    unit = np.asarray(planner.folder.constant(node.inputs[1]), np.float32)
    if unit.shape != (1,) or not (np.isfinite(unit).all() and unit[0] > 0):
        raise InputError(f"node {node.name}: its unit must be one positive number")
    if form.width > 8 or form.group_size not in _GROUPS or x.column or x.heads != 1:
        raise Unplannable(f"activations of {form.width} bits in groups of {form.group_size} ({node.name})")
    if form.lowest_code < -127:  # beyond what dot() of simd/lowering.py takes: plain AVX2 has no byte for +128
        raise Unplannable(f"{form.variant} activations of 8 bits ({node.name})")
    made = Razored.of(x.width, form.group_size, planner.chunk)
    arguments: dict[str, Argument] = {
        "source": x.place,
        "stride": x.stride,
        "columns": x.width,
        "group": form.group_size,
        "unit": 0.0 if node.attributes["per_token"] else float(unit[0]),
        "form": _form(form),
        **made.arguments(),
    }
    planner.emit(op.RAZOR, arguments, [x.buffer], [made.buffer])
    for name in node.outputs:
        planner.razored[name] = made


def product(planner: Planner, node: Node) -> None:
    x, layout = planner.razored.get(node.inputs[0]), node.integer_layout()
    same = x is not None and all(planner.razored.get(name) is x for name in node.inputs[1:3])
    if x is None or not same or x.columns != layout.K or x.group != layout.group_size:
        raise Unplannable(f"the activations of {node.name}")
    codes, book, flags = (planner.graph.weights[name] for name in node.inputs[3:6])
    address, record = planner.record(node, layout.stored(), (node.inputs[3], node.inputs[4], node.inputs[6]))
    stride = flags.shape[1] if flags.shape[0] == layout.N else 0
    if int((flags & 15).max(initial=0)) > 4 or int((flags >> 4).max(initial=0)) > 4:
        raise Unplannable(f"razored weights with flags beyond 4 ({node.name})")
    if stride and int(np.abs(book.astype(np.int64)).max()) > 8:
        raise Unplannable(f"razored weights of more than 4 bits ({node.name})")
    # Flags are read two bytes at a time: where that may go beyond the last one, a copy has room for it.
    if layout.group_size != 16 or layout.K % 64:
        wide = np.zeros(flags.size + 2, np.uint8)
        wide[: flags.size] = flags.reshape(-1)
        flags = wide
    flags = settled(flags)
    places = settled(flag_places(layout.group_size))
    planner.keep += [flags, places]
    planner.bytes_per_token += codes.nbytes + book.nbytes + flags.nbytes
    out = planner.new(layout.N)
    planner.widest = max(planner.widest, layout.K)
    arguments: dict[str, Argument] = {
        "matrix": address,
        "width": int(record[WIDTH]),
        **x.arguments(),
        "out": out.place,
        "rows": layout.N,
        "row_bytes": layout.stored().codes_shape[1],
        "flags": flags.ctypes.data,
        "flag_stride": stride,
        "group": layout.group_size,
        "places": places.ctypes.data,
    }
    planner.emit(op.RAZOR_MATMUL, arguments, [x.buffer], [out.buffer])
    planner.give(node.outputs[0], out)


def attend(planner: Planner, node: Node) -> None:
    query, key, value = (planner.values.get(name) for name in node.inputs[:3])
    if not (isinstance(query, Tokens) and isinstance(key, Tokens) and isinstance(value, Tokens)):
        raise Unplannable(f"the inputs of {node.name}")
    try:
        layout = AttentionLayout.of(node.attributes, query.width)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"node {node.name}: attributes of {node.op_type} are wrong ({error})") from None
    heads, kv_heads, head_dim, group = layout.heads, layout.kv_heads, layout.head_dim, layout.form.group_size
    same = key.width == value.width == kv_heads * head_dim and query.rotation == key.rotation
    if not same or value.rotation is not None:
        raise Unplannable(f"the attention {node.name}")
    if query.heads != 1 or key.heads != 1 or value.heads != 1:
        raise Unplannable(f"the inputs of {node.name}")
    turn_in_place(planner, node, query, key, heads, kv_heads)
    if layout.form.width != 4 or layout.form.flag_limit > 4 or (layout.groups > 1 and group % 16):
        raise Unplannable(f"a cache of {layout.form.width} bits in groups of {group} ({node.name})")
    index = len(planner.attention)
    key_block = razor_attention.key_block_bytes(head_dim, group)
    value_block = razor_attention.value_block_bytes(head_dim, group)
    shape = AttentionShape(node.name, heads, kv_heads, head_dim, key_block, value_block, razored=True)
    planner.attention.append(shape)
    shared: dict[str, Argument] = {
        "keys": External(f"keys.{index}"),
        "values": External(f"values.{index}"),
        "capacity": External("capacity"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "group": group,
    }
    for name, source in (("key_units", node.inputs[6]), ("value_units", node.inputs[7])):
        units = np.asarray(planner.folder.constant(source), np.float32)
        if units.shape not in ((1,), (kv_heads,)) or not (np.isfinite(units).all() and (units > 0).all()):
            raise InputError(f"node {node.name}: its units must be positive, one or one for each key-value head")
        units = settled(np.broadcast_to(units, kv_heads))
        planner.keep.append(units)
        shared[name] = units.ctypes.data
    rotation = {}
    if query.rotation is not None:
        number = planner.rotations.index(query.rotation)
        rotation = {name: External(f"{name}.{number}") for name in ("cos", "sin", "half")}
    arguments: dict[str, Argument] = {
        "query": query.place,
        "query_stride": query.stride,
        "key": key.place,
        "key_stride": key.stride,
        "value": value.place,
        "value_stride": value.stride,
        "form": _form(layout.form),
        **rotation,
        **shared,
    }
    stored = planner.cache_of(index)
    planner.emit(op.RAZOR_REMEMBER, arguments, [key.buffer, value.buffer], [query.buffer, key.buffer, stored])
    out = planner.new(query.width)
    arguments = {
        "query": query.place,
        "query_stride": query.stride,
        "window": window_of_mask(planner.folder, node.inputs[3]),
        "scale": layout.scale,
        "softcap": layout.softcap,
        "scores": External("scores"),
        "out": out.place,
        "out_stride": out.stride,
        **shared,
    }
    planner.emit(op.RAZOR_ATTEND, arguments, [query.buffer, stored], [out.buffer])
    planner.give(node.outputs[0], out)
