"""What all families with selective state spaces check in a config.json."""

from __future__ import annotations

import math
from typing import Any

from export.contract.errors import InputError
from export.contract.operators.causal_convolution import LEAST_WIDTH
from export.files.special_floats import from_json
from export.graph.spec import StateSpace


def limits(config: dict[str, Any]) -> dict[str, float | None]:
    """`time_step_limit`, as fields of StateSpace.

    transformers applies it in prompts, and leaves it out where it generates; here it holds for every token.
    """
    limit = from_json(config["time_step_limit"])
    numbers = isinstance(limit, list | tuple) and all(type(number) in (int, float) for number in limit)
    if not numbers or len(limit) != 2 or not limit[0] <= limit[1] or math.isinf(limit[0]) or limit[1] == -math.inf:
        raise InputError(f"config.json: time_step_limit {limit!r} is not supported for {config.get('model_type')}")
    return {"least_step": float(limit[0]), "most_step": None if limit[1] == math.inf else float(limit[1])}


def checked(space: StateSpace) -> StateSpace:
    """The same. Raises InputError where heads and groups do not fit, or the convolution has no state."""
    if space.heads % space.groups or space.values % space.norm_groups:
        raise InputError(f"config.json: {space.heads} heads of {space.head_dim} do not share {space.groups} groups")
    if space.width < LEAST_WIDTH:
        raise InputError("config.json: a convolution of 1 position is not supported: its state is empty")
    return space
