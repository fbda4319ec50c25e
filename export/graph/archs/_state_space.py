"""What all families with selective state spaces check in a config.json."""

from __future__ import annotations

from typing import Any

from export.contract.errors import InputError
from export.contract.operators.causal_convolution import LEAST_WIDTH
from export.files.special_floats import from_json
from export.graph.parts import StateSpace

_FAR = 1e30  # no step becomes that long


def limits(config: dict[str, Any]) -> dict[str, float | None]:
    """`time_step_limit`, as fields of StateSpace.

    transformers applies it in prompts, and leaves it out where it generates; here it holds for every token.
    """
    stated = config["time_step_limit"]
    limit = [_plain(number) for number in stated] if isinstance(stated, list | tuple) else []
    if len(limit) != 2 or not all(type(number) in (int, float) and number > -_FAR for number in limit):
        raise InputError(f"config.json: time_step_limit {stated!r} is not supported for {config.get('model_type')}")
    least, most = limit
    if not least <= most or least >= _FAR:
        raise InputError(f"config.json: time_step_limit {stated!r} is not supported for {config.get('model_type')}")
    return {"least_step": float(least), "most_step": None if most >= _FAR else float(most)}


def _plain(value: Any) -> Any:
    """A number in place of an object that names it."""
    named = isinstance(value, dict) and len(value) == 1 and all(isinstance(word, str) for word in value.values())
    return from_json(value) if named else value


def checked(space: StateSpace) -> StateSpace:
    """The same. Raises InputError where heads and groups do not fit, or the convolution has no state."""
    if space.heads % space.groups or space.values % space.norm_groups:
        raise InputError(f"config.json: {space.heads} heads of {space.head_dim} do not share {space.groups} groups")
    if space.width < LEAST_WIDTH:
        raise InputError("config.json: a convolution of 1 position is not supported: its state is empty")
    return space
