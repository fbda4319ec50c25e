"""A mixture of experts: softmax, picks and weights of the router become one step, products with the picked ones others.

What stands between is kept apart from plain values (values.py, Routed), so that no other operator can take it for one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.artefacts.graph import Node
from export.contract.errors import InputError
from export.contract.formats import CodebookLayout
from export.contract.formats.base import DOMAIN
from export.contract.formats.trellis import TrellisLayout
from export.contract.operators.experts import EXPERT_PRODUCTS, ExpertLayout
from runtime_py.engine.layout.functions import SIGMOID
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.placement import Argument, Buffer, Place
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.plan.values import Pending, Routed, Tokens
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.stored_matrix import matrix_record, matrix_width, takes
from runtime_py.engine.steps.experts import (
    Combine,
    ExpertDense,
    ExpertFloats,
    ExpertGrouped,
    ExpertMatMul,
    Route,
    expert_bytes,
    expert_float_bytes,
    route_bytes,
)

# What a value of a router is. SCORES are those of the picked experts, BIASES their rows of a constant, RANKS what
# experts are picked by where that is not what weighs them
SHARES, WEIGHTS, PICKED, TOTAL, COLUMN, ONE_INPUT, WEIGHTED, SCORES, BIASES, RANKS = range(10)


@handles("", "Softmax")
def softmax(context: Context, node: Node) -> None:
    if node.attributes.get("axis", -1) not in (-1, 2):
        raise Unplannable(f"the axis of {node.name}")
    scores = context.routed.get(node.inputs[0])
    if scores is not None:  # shares of all that are divided by their sum are shares of the picked alone
        if scores.kind != SCORES or scores.step is None or context.uses(node.inputs[0]) != 1:
            raise Unplannable(f"the softmax {node.name}")
        scores.step.normalised = 1
        context.route(node.outputs[0], replace(scores, kind=WEIGHTS))
        return
    context.route(node.outputs[0], Routed(SHARES, context.tokens(node.inputs[0])))


@handles("", "TopK")
def top_k(context: Context, node: Node) -> None:
    shares, count = context.routed.get(node.inputs[0]), context.folder.constant(node.inputs[1]).reshape(-1).tolist()
    plain = node.attributes.get("largest", 1) and node.attributes.get("sorted", 1)
    sigmoid = _sigmoid_of(context, node.inputs[0])
    if sigmoid is None and shares is not None:
        x, biases = _routed(context, node, 0, SHARES, RANKS).value, shares.biases
    else:
        x, biases = sigmoid or context.tokens(node.inputs[0]), ""
    fits = len(count) == 1 and 1 <= count[0] <= x.width
    if not plain or not fits or node.attributes.get("axis", -1) not in (-1, 2) or len(node.outputs) != 2:
        raise Unplannable(f"the picks of {node.name}")
    weights, picked = context.new(count[0]), Buffer(8 * count[0] * context.chunk)
    step = Route[Argument](
        source=x.place, stride=x.stride, experts=x.width, count=count[0], weights=weights.place, picked=Place(picked),
        scale=1.0, sigmoid=int(sigmoid is not None or bool(biases)),
        biases=context.vector(biases, x.width) if biases else 0,
    )  # fmt: skip
    context.gathering = max(context.gathering, route_bytes(x.width))
    context.emit(step, [x.buffer], [weights.buffer, picked])
    context.route(node.outputs[1], Routed(PICKED, weights, step, picked))
    if not biases:  # else nothing reads those weights: gather_elements()
        kind = SCORES if shares is None and sigmoid is None else WEIGHTS
        context.route(node.outputs[0], Routed(kind, weights, step, picked))


def _sigmoid_of(context: Context, name: str) -> Tokens | None:
    """The value that a bare sigmoid is of; None where the name stands for anything else."""
    value = context.values.get(name)
    return value.source if isinstance(value, Pending) and value.kind == SIGMOID else None


@handles("", "GatherElements")
def gather_elements(context: Context, node: Node) -> None:
    """The sigmoids of picked experts: the weights that the step writes which picks them."""
    scores, picked = _sigmoid_of(context, node.inputs[0]), _routed(context, node, 1, PICKED)
    step = picked.step
    if scores is None or step is None or node.attributes.get("axis", 0) not in (-1, 2) or not step.sigmoid:
        raise Unplannable(f"the lookup {node.name}")
    if (scores.place, scores.stride, scores.width) != (step.source, step.stride, step.experts):
        raise Unplannable(f"the scores of {node.name}")
    if any(value.step is step and value.kind != PICKED for value in context.routed.values()):
        raise Unplannable(f"weights that {node.name} does not read alone")
    context.route(node.outputs[0], replace(picked, kind=WEIGHTS))


def biased_ranks(context: Context, node: Node) -> bool:
    """Plan the sum of sigmoids and a constant; False where the node is none."""
    scores = _sigmoid_of(context, node.inputs[0])
    if scores is None or not context.folder.is_constant(node.inputs[1]):
        return False
    if context.folder.constant(node.inputs[1]).shape != (scores.width,):
        raise Unplannable(f"the constant added by {node.name}")
    context.route(node.outputs[0], Routed(RANKS, scores, biases=node.inputs[1]))
    return True


def with_floor(context: Context, node: Node) -> bool:
    """Have a number added to the sum that weights are divided by; False where the node adds none."""
    total = context.routed.get(node.inputs[0])
    if total is None or total.kind != TOTAL or total.step is None:
        return False
    if context.uses(node.inputs[0]) != 1 or total.step.floor or total.step.normalised:
        raise Unplannable(f"the sum {node.name}")
    total.step.floor = _number(context, node)
    context.route(node.outputs[0], total)
    return True


def scaled(context: Context, node: Node) -> bool:
    """Have weights multiplied by a number, or one of each expert, in the step that makes them; False for no weights."""
    weights = context.routed.get(node.inputs[0])
    if weights is None or weights.kind != WEIGHTS or weights.step is None:
        return False
    own, step = context.routed.get(node.inputs[1]), weights.step
    if context.uses(node.inputs[0]) != 1 or step.own_scales or (own is None and step.scale != 1):
        raise Unplannable(f"the product {node.name}")
    if own is not None:
        same = own.kind == BIASES and own.picked is not None and step.picked == Place(own.picked)
        if not same or context.folder.constant(own.biases).shape != (step.experts,):
            raise Unplannable(f"the product {node.name}")
        step.own_scales = context.vector(own.biases, _count(step))
        context.route(node.outputs[0], weights)
        return True
    weights.step.scale = _number(context, node)
    context.route(node.outputs[0], weights)
    return True


def _count(step: Route[Argument]) -> int:
    assert isinstance(step.experts, int)
    return step.experts


def _number(context: Context, node: Node) -> float:
    """The constant of one number that is the second input."""
    name = node.inputs[1]
    if not context.folder.is_constant(name) or context.folder.constant(name).size != 1:
        raise Unplannable(f"the inputs of {node.name}")
    found = float(context.folder.constant(name).reshape(-1)[0])
    if not np.isfinite(found):
        raise Unplannable(f"the constant of {node.name}")
    return found


@handles("", "Div")
def divide(context: Context, node: Node) -> None:
    """Weights by their sum: the step that makes them does it, where nobody wants them as they were."""
    weights, total = _routed(context, node, 0, WEIGHTS), _routed(context, node, 1, TOTAL)
    if weights.step is None or weights.step is not total.step or weights.step.normalised or weights.step.scale != 1:
        raise Unplannable(f"the quotient {node.name}")
    if context.uses(node.inputs[0]) != 2 or context.uses(node.inputs[1]) != 1:
        raise Unplannable(f"weights that {node.name} does not read alone")
    weights.step.normalised = 1
    context.route(node.outputs[0], weights)


@handles("", "ReduceSum")
def reduce_sum(context: Context, node: Node) -> None:
    found = _routed(context, node, 0, WEIGHTS, WEIGHTED)
    axes, keeps = np.asarray(context.folder.constant(node.inputs[1])).reshape(-1).tolist(), node.attributes["keepdims"]
    if found.kind == WEIGHTS and axes in ([-1], [2]) and keeps:
        context.route(node.outputs[0], replace(found, kind=TOTAL))
        return
    if found.kind != WEIGHTED or found.parts is None or axes != [2] or keeps:
        raise Unplannable(f"the sum {node.name}")
    x, weights = found.parts, found.value
    out = context.new(x.width // x.heads)
    step = Combine[Argument](
        source=x.place, stride=x.stride, weights=weights.place, count=x.heads, columns=out.width, out=out.place
    )  # fmt: skip
    context.emit(step, [x.buffer, weights.buffer], [out.buffer])
    context.give(node.outputs[0], out)


@handles("", "Unsqueeze")
def unsqueeze(context: Context, node: Node) -> None:
    axes, routed = context.folder.constant(node.inputs[1]).reshape(-1).tolist(), context.routed.get(node.inputs[0])
    if routed is not None and routed.kind == WEIGHTS and axes in ([-1], [3]):
        context.route(node.outputs[0], replace(routed, kind=COLUMN))
    elif routed is None and axes == [2]:
        context.route(node.outputs[0], Routed(ONE_INPUT, context.tokens(node.inputs[0])))
    else:
        raise Unplannable(f"the dimension added by {node.name}")


def weighted(context: Context, node: Node) -> bool:
    """Plan the product of what experts give and their weights; False where the node is none."""
    columns = [context.routed.get(name) for name in node.inputs]
    for column, name in zip(columns, node.inputs[::-1]):
        if column is not None:
            parts = context.tokens(name, in_heads=True)
            if column.kind != COLUMN or parts.heads != column.value.width:
                raise Unplannable(f"the product {node.name}")
            context.route(node.outputs[0], replace(column, kind=WEIGHTED, parts=parts))
            return True
    return False


def biases_of_picked(context: Context, node: Node) -> bool:
    """Plan a lookup of a constant's rows by picked experts; False where the node is none."""
    picked = context.routed.get(node.inputs[1])
    if picked is None:
        return False
    if picked.kind != PICKED or node.attributes.get("axis", 0) != 0 or not context.folder.is_constant(node.inputs[0]):
        raise Unplannable(f"the lookup {node.name}")
    context.route(node.outputs[0], replace(picked, kind=BIASES, biases=node.inputs[0]))
    return True


def with_biases(context: Context, node: Node) -> bool:
    """Have biases added by the product that the sum follows; False where the node adds none of experts."""
    biases = context.routed.get(node.inputs[1])
    if biases is None:
        return False
    x, last = context.tokens(node.inputs[0], in_heads=True), context.steps[-1]
    step, vectors = last.step, context.folder.constant(biases.biases) if biases.kind == BIASES else None
    if vectors is None or not isinstance(step, ExpertMatMul | ExpertFloats) or last.writes != [x.buffer] or step.bias:
        raise Unplannable(f"the sum {node.name}")
    same = step.picked == Place(biases.picked) if biases.picked is not None else False
    if not same or vectors.shape != (step.experts, step.rows) or context.needed(x.buffer) or not x.whole:
        raise Unplannable(f"the biases of {node.name}")
    step.bias = context.vector(biases.biases, vectors.size)
    context.give(node.outputs[0], x)
    return True


@handles(DOMAIN, *EXPERT_PRODUCTS)
def expert_matmul(context: Context, node: Node) -> None:
    layout, picked = node.expert_layout(), _routed(context, node, 1, PICKED)
    assert picked.step is not None and picked.picked is not None
    count, one = picked.value.width, context.routed.get(node.inputs[0])
    x = _routed(context, node, 0, ONE_INPUT).value if one else context.tokens(node.inputs[0], in_heads=True)
    columns = x.width if one else x.width // x.heads
    if picked.step.experts != layout.experts or columns != layout.K or (not one and x.heads != count):
        raise Unplannable(f"the inputs of {node.name}")
    out = context.new(count * layout.rows)
    context.widest = max(context.widest, layout.K)
    context.gathering = max(context.gathering, expert_bytes(layout.K), expert_float_bytes(layout.K))
    common: dict[str, Argument] = {
        "rows": layout.rows, "experts": layout.experts, "source": x.place, "stride": x.stride, "columns": layout.K,
        "apart": 0 if one else layout.K, "picked": Place(picked.picked), "count": count, "out": out.place,
    }  # fmt: skip
    context.emit(_product(context, node, layout, count, common), [x.buffer, picked.picked], [out.buffer])
    context.give(node.outputs[0], replace(out, heads=count))


def _product(
    context: Context, node: Node, layout: ExpertLayout, picks: int, common: dict[str, Argument]
) -> ExpertMatMul[Argument] | ExpertFloats[Argument]:
    """The step for the form that the experts are stored in. picks: of a token; common: the fields of all kinds."""
    stored, parts = layout.stored, [context.folder.constant(name) for name in node.inputs[2:]]
    if stored is None:
        weights = np.ascontiguousarray(parts[0])
        common["page"] = context.page_of(weights)
        context.bytes_per_token += weights.nbytes * picks // layout.experts
        return ExpertDense[Argument](**common, weights=context.stored(weights), item_bytes=weights.itemsize)
    if not isinstance(stored, CodebookLayout) and not (isinstance(stored, TrellisLayout) and takes(stored, parts[1])):
        stored, parts = stored.as_codebook(*parts)
    assert isinstance(stored, CodebookLayout | TrellisLayout)
    codes, book, scale = (np.ascontiguousarray(part) for part in parts)
    scale = scale.astype(np.float32)
    if not np.isfinite(scale).all():
        raise InputError(f"node {node.name}: its scales hold numbers that are not finite")
    record, alive = matrix_record(stored, codes, book, scale)
    common["page"] = context.page_of(codes)
    context.keep += [record, *alive]
    context.bytes_per_token += (codes.nbytes + book.nbytes + scale.nbytes) * picks // layout.experts
    address = record.ctypes.data
    if isinstance(stored, CodebookLayout) and stored.groups > 1:
        size = stored.columns_per_group
        return ExpertGrouped[Argument](**common, matrix=address, groups=stored.groups, group_size=size)
    width, row_bytes = matrix_width(record), stored.codes_shape[1]
    return ExpertMatMul[Argument](**common, matrix=address, width=width, row_bytes=row_bytes)


def _routed(context: Context, node: Node, place: int, *kinds: int) -> Routed:
    found = context.routed.get(node.inputs[place])
    if found is None or found.kind not in kinds:
        raise Unplannable(f"{node.op_type} {node.name}")
    return found
