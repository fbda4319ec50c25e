"""What the bodies of the integer operators share: rounding to integers, and significant data razoring of groups.

The reference is export/contract/sdr.py. The attributes FORMAT are those of its SdrFormat.
"""

from __future__ import annotations

from export.contract.body import Body, Operand, Value

FORMAT = ("basis", "width", "group_size", "twos_complement", "half_even")


def basis_limit(b: Body) -> Value:
    """float32 [], the largest integer before razoring."""
    return (_top(b, "basis").astype("int64") - 1).astype("float32")


def code_top(b: Body) -> Value:
    """int64 [], 2**(width - 1): no code's magnitude is larger."""
    return _top(b, "width").astype("int64")


def own_unit(b: Body, values: Value, limit: Operand) -> Value:
    """float32 [..., 1]: what a row's values are counted in, so that the largest becomes the limit; 1 for zeros."""
    largest = b.ReduceMax(b.Abs(values), [-1], keepdims=1)
    return b.Where(b.Greater(largest, 0.0), largest / limit, 1.0)


def integers(b: Body, values: Value, unit: Value, lowest: Operand, limit: Operand) -> Value:
    """int32, values in units, rounded half to even and clipped."""
    return b.Clip(b.Round(values / unit), lowest, limit).astype("int32")


def in_groups(columns: Value, group: Value) -> tuple[Value, Value]:
    """How many groups the columns make, and how many columns the last one lacks."""
    groups = (columns + group - 1) // group
    return groups, groups * group - columns


def power_of_two(b: Body, flags: Value) -> Value:
    """int64, 2**flags."""
    return (b.constant(1, "uint64") << flags.astype("uint64")).astype("int64")


def razored(b: Body, values: Value) -> tuple[Value, Value]:
    """From int32 [..., G, g] to codes int32 of that shape and flags int32 [..., G, 1], the bits dropped."""
    magnitude = b.Abs(values)
    largest = b.ReduceMax(magnitude, [-1], keepdims=1)
    reached = b.GreaterOrEqual(largest, _thresholds(b)).astype("int32")
    flag = b.ReduceSum(reached, [-1], keepdims=1, name="flag")
    rounded = _shifted(b, magnitude, flag)
    negative = b.Less(values, b.constant(0, "int32"))
    limit = code_top(b) - 1
    lowest = (limit + b.attribute("twos_complement")).astype("int32")
    limited = b.Min(rounded, b.Where(negative, lowest, limit.astype("int32")))
    return b.Where(negative, -limited, limited, name="razored"), flag


def _shifted(b: Body, magnitude: Value, flag: Value) -> Value:
    """magnitude / 2**flag, rounded to the nearest: ties up, or to even where half_even is set."""
    one, shift = b.constant(1, "uint32"), flag.astype("uint32")
    floor = (magnitude.astype("uint32") >> shift).astype("int32")
    step = one << shift
    below, half = magnitude - floor * step.astype("int32"), (step >> one).astype("int32")
    odd = (floor & b.constant(1, "int32")).astype("bool")
    ties_up = b.Not(b.attribute("half_even").astype("bool"))
    tie = b.And(b.Equal(below, half), b.Or(odd, ties_up))
    drops = b.Greater(flag, b.constant(0, "int32"))
    return floor + b.And(b.Or(b.Greater(below, half), tie), drops).astype("int32")


def _thresholds(b: Body) -> Value:
    """int32 [basis - width + 1]: for each of them that a group's largest magnitude reaches, one bit is dropped."""
    places = b.Range(b.attribute("width") - 1, b.attribute("basis"), 1)
    return (b.constant(1, "uint32") << places.astype("uint32")).astype("int32")


def _top(b: Body, bits: str) -> Value:
    """uint32 [], the power of two that the sign takes in this number of bits."""
    return b.constant(1, "uint32") << (b.attribute(bits) - 1).astype("uint32")
