"""The function body of SdrAttention: attention on integers over a razored cache.

Every sum of products is an integer matrix product over one group of codes, followed by one multiplication with a power
of two; the exponential is a polynomial on integers (export/contract/operators/attention.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import onnx

from export.contract.body import Body, Value, function_proto
from export.contract.formats.base import DOMAIN, OPSET
from export.contract.operators.attention import EXPONENT_BITS, EXPONENT_LIMIT, LOG2E_STEPS, POWER, QUERY_LIMIT
from export.contract.operators.integers import SDR_ATTENTION
from export.graph.bodies.razor import (
    FORMAT,
    basis_limit,
    code_top,
    in_groups,
    integers,
    own_unit,
    power_of_two,
    razored,
)

_HIDDEN = -3.0e38  # the score of what the mask hides


@dataclass(frozen=True)
class _Sizes:
    """Each int64 [1]."""

    batch: Value
    tokens: Value
    kv_heads: Value
    repeat: Value  # query heads for one of keys
    head_dim: Value
    group: Value
    groups: Value  # of a head
    missing: Value  # columns that the last group lacks
    total: Value  # tokens, with those in the cache

    @property
    def padded_dim(self) -> Value:
        return self.groups * self.group

    @property
    def rows(self) -> Value:
        """Query rows that meet the same keys."""
        return self.repeat * self.tokens


def _sizes(b: Body, query: Value, past: Value) -> _Sizes:
    heads, kv_heads = (b.Reshape(b.attribute(name), [1]) for name in ("q_num_heads", "kv_num_heads"))
    head_dim = b.Shape(query, start=2, end=3) // heads
    group = b.Reshape(b.Min(b.attribute("group_size"), head_dim), [1])
    groups, missing = in_groups(head_dim, group)
    tokens = b.Shape(query, start=1, end=2)
    return _Sizes(
        batch=b.Shape(query, start=0, end=1), tokens=tokens, kv_heads=kv_heads, repeat=heads // kv_heads,
        head_dim=head_dim, group=group, groups=groups, missing=missing, total=b.Shape(past, start=2, end=3) + tokens,
    )  # fmt: skip


def _shape(b: Body, *sizes: Value | list[int]) -> Value:
    return b.Concat(*sizes, axis=0)


def _whole_groups(b: Body, s: _Sizes, rows: Value) -> Value:
    """Rows [b, kv, t, D] with zeros up to whole groups."""
    return b.Pad(rows, _shape(b, [0] * 7, s.missing))


def _append(b: Body, s: _Sizes, new: Value, past: Value, unit: Value) -> Value:
    """`new` float [b, t, kv * D], razored and behind the cached rows `past`: uint8 [b, kv, total, row_bytes]."""
    heads = b.Reshape(new, _shape(b, s.batch, s.tokens, s.kv_heads, s.head_dim))
    limit = basis_limit(b)
    whole = integers(b, b.Transpose(heads, perm=[0, 2, 1, 3]), _by_head(b, unit), -limit, limit)
    outer = (s.batch, s.kv_heads, s.tokens)
    codes, flags = razored(b, b.Reshape(_whole_groups(b, s, whole), _shape(b, *outer, s.groups, s.group)))
    row = b.Concat(_code_bytes(b, s, codes), _flag_bytes(b, s, flags), axis=3)
    return b.Concat(past, row.astype("uint8"), axis=2)


def _by_head(b: Body, unit: Value) -> Value:
    return b.Reshape(unit, [1, -1, 1, 1])


def _codes_per_byte(b: Body) -> Value:
    return [8] // b.attribute("width")


def _code_shifts(b: Body) -> Value:
    """int64 [codes in a byte], the bits below each code."""
    return b.Range(0, b.Squeeze(_codes_per_byte(b), [0]), 1) * b.attribute("width")


def _code_bytes(b: Body, s: _Sizes, codes: Value) -> Value:
    """int32 [b, kv, t, bytes of a head], the codes above their lowest."""
    flat = b.Reshape(codes, _shape(b, s.batch, s.kv_heads, s.tokens, s.padded_dim))
    positive = b.Slice(flat, [0], s.head_dim, [3]) + code_top(b).astype("int32")
    per_byte = _codes_per_byte(b)
    shape = _shape(b, s.batch, s.kv_heads, s.tokens, s.head_dim // per_byte, per_byte)
    places = b.constant(1, "uint32") << _code_shifts(b).astype("uint32")
    return b.ReduceSum(b.Reshape(positive, shape) * places.astype("int32"), [-1], keepdims=0)


def _flag_bytes(b: Body, s: _Sizes, flags: Value) -> Value:
    """int32 [b, kv, t, bytes], two flags in each."""
    flat = b.Reshape(flags, _shape(b, s.batch, s.kv_heads, s.tokens, s.groups))
    size = (s.groups + 1) // [2]
    even = b.Pad(flat, _shape(b, [0] * 7, size * [2] - s.groups))
    split = b.Reshape(even, _shape(b, s.batch, s.kv_heads, s.tokens, size, [2]))
    return b.ReduceSum(split * _shape(b, [1], [16]).astype("int32"), [-1], keepdims=0)


def _cached_codes(b: Body, s: _Sizes, present: Value) -> Value:
    """int32 [b, kv, total, G, g]."""
    stored = b.Unsqueeze(b.Slice(present, [0], s.head_dim // _codes_per_byte(b), [3]), [4])
    mask = (code_top(b) * 2 - 1).astype("uint8")
    parts = stored >> _code_shifts(b).astype("uint8") & mask
    flat = b.Reshape(parts, _shape(b, s.batch, s.kv_heads, s.total, s.head_dim))
    signed = flat.astype("int32") - code_top(b).astype("int32")
    return b.Reshape(_whole_groups(b, s, signed), _shape(b, s.batch, s.kv_heads, s.total, s.groups, s.group))


def _cached_powers(b: Body, s: _Sizes, present: Value) -> Value:
    """int64 [b, kv, G, 1, total], 2**flag."""
    stored = b.Slice(present, s.head_dim // _codes_per_byte(b), [2**31 - 1], [3])
    parts = b.Unsqueeze(stored, [4]) >> _shape(b, [0], [4]).astype("uint8") & b.constant(15, "uint8")
    even = (s.groups + 1) // [2] * [2]
    flags = b.Slice(b.Reshape(parts, _shape(b, s.batch, s.kv_heads, s.total, even)), [0], s.groups, [3])
    return power_of_two(b, b.Unsqueeze(b.Transpose(flags, perm=[0, 1, 3, 2]), [3]))


def _scores(b: Body, s: _Sizes, query: Value, present: Value, key_unit: Value) -> Value:
    """float32 [b, kv, rows, total], scaled."""
    by_head = b.Reshape(query, _shape(b, s.batch, s.tokens, s.kv_heads, s.repeat, s.head_dim))
    moved = b.Transpose(by_head, perm=[0, 2, 3, 1, 4])
    rows = b.Reshape(moved, _shape(b, s.batch, s.kv_heads, s.rows, s.head_dim))
    unit = own_unit(b, rows, float(QUERY_LIMIT))
    whole = _whole_groups(b, s, integers(b, rows, unit, -float(QUERY_LIMIT), float(QUERY_LIMIT)))
    grouped = b.Reshape(whole, _shape(b, s.batch, s.kv_heads, s.rows, s.groups, s.group))
    keys = b.Transpose(_cached_codes(b, s, present), perm=[0, 1, 3, 4, 2])
    mac = b.MatMul(b.Transpose(grouped, perm=[0, 1, 3, 2, 4]), keys).astype("int64")
    score = b.ReduceSum(mac * _cached_powers(b, s, present), [2], keepdims=0, name="score")
    return score.astype("float32") * (unit * (_by_head(b, key_unit) * b.float_attribute("scale")))


def _soft_capped(b: Body, scores: Value) -> Value:
    """cap * tanh(scores / cap), or the scores where softcap is 0."""
    cap = b.float_attribute("softcap")
    capped = b.Greater(cap, 0.0)
    some_cap = b.Where(capped, cap, 1.0)
    return b.Where(capped, b.Tanh(scores / some_cap) * some_cap, scores)


def _probabilities(b: Body, scores: Value, mask: Value) -> Value:
    """int64, 2**15 * exp(score - largest), not yet divided by their sum; 0 where the mask hides."""
    seen = b.Where(mask, scores, _HIDDEN)
    distance = b.ReduceMax(seen, [-1], keepdims=1) - seen
    steps = b.Clip(b.Round(distance * float(LOG2E_STEPS)), 0.0, float(EXPONENT_LIMIT)).astype("int32")
    fraction_bits = b.constant(EXPONENT_BITS, "uint32")
    exponent = steps.astype("uint32") >> fraction_bits
    fraction = steps & b.constant((1 << EXPONENT_BITS) - 1, "int32")
    *rest, power = (b.constant(factor, "int32") for factor in POWER)
    for factor in reversed(rest):
        power = factor - ((fraction * power).astype("uint32") >> fraction_bits).astype("int32")
    one = b.constant(1, "uint32")
    half = ((one << exponent) >> one).astype("int32")
    shifted = (power + half).astype("uint32") >> exponent
    return b.Where(mask, shifted.astype("int64"), 0, name="probability")


def _mixed(b: Body, s: _Sizes, probability: Value, present: Value) -> Value:
    """float32 [b, kv, rows, D], the values' mean in their unit."""
    mixing = b.Reshape(probability, _shape(b, s.batch, s.kv_heads, [1], s.rows, s.total))
    values = b.Transpose(_cached_codes(b, s, present), perm=[0, 1, 3, 2, 4]).astype("int64")
    mixed = b.MatMul(mixing * _cached_powers(b, s, present), values)
    by_row = b.Transpose(mixed, perm=[0, 1, 3, 2, 4])
    flat = b.Reshape(by_row, _shape(b, s.batch, s.kv_heads, s.rows, s.padded_dim))
    own = b.Slice(flat, [0], s.head_dim, [3]).astype("float32")
    weights = b.Reshape(probability, _shape(b, s.batch, s.kv_heads, s.rows, s.total))
    return own / b.Max(b.ReduceSum(weights, [-1], keepdims=1).astype("float32"), 1.0)


def _attention(
    b: Body, query: Value, key: Value, value: Value, mask: Value,
    past_key: Value, past_value: Value, key_unit: Value, value_unit: Value,
) -> tuple[Value, ...]:  # fmt: skip
    s = _sizes(b, query, past_key)
    present_key = _append(b, s, key, past_key, key_unit)
    present_value = _append(b, s, value, past_value, value_unit)
    scores = _soft_capped(b, _scores(b, s, query, present_key, key_unit))
    by_token = b.Reshape(scores, _shape(b, s.batch, s.kv_heads, s.repeat, s.tokens, s.total))
    probability = _probabilities(b, by_token, b.Unsqueeze(mask, [2]))
    mean = _mixed(b, s, probability, present_value) * _by_head(b, value_unit)
    heads = b.Reshape(mean, _shape(b, s.batch, s.kv_heads, s.repeat, s.tokens, s.head_dim))
    shape = _shape(b, s.batch, s.tokens, b.Shape(query, start=2, end=3))
    return b.Reshape(b.Transpose(heads, perm=[0, 3, 1, 2, 4]), shape), present_key, present_value


@cache
def attention_function() -> onnx.FunctionProto:
    """FunctionProto of SdrAttention."""
    inputs = ("Q", "K", "V", "mask", "past_key", "past_value", "key_unit", "value_unit")
    attributes = ("q_num_heads", "kv_num_heads", "scale", "softcap", *FORMAT)
    outputs = ("Y", "present_key", "present_value")
    return function_proto(DOMAIN, OPSET, SDR_ATTENTION, inputs, attributes, _attention, outputs)
