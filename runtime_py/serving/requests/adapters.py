"""Which adapter a request asks for: each is a model of its own to clients, MODEL:NAME, or NAME alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.values import optional


def adapter_model(model: str, adapter: str) -> str:
    """The name in the list of models; "" is the model itself."""
    return f"{model}:{adapter}" if adapter else model


def asked_model(body: Mapping[str, Any], model: str, adapters: Sequence[str]) -> tuple[str, str]:
    """The name of the list of models, and the adapter, "" for none. Raises ApiError when another model is asked for."""
    asked = optional(body, "model", str, model)
    if asked == model:
        return model, ""
    adapter = asked.removeprefix(f"{model}:")
    if adapter in adapters:
        return adapter_model(model, adapter), adapter
    has = repr(model) + (f", alone or with an adapter: {', '.join(adapters)[:1000]}" if adapters else "")
    raise ApiError(404, f"the model {asked[:100]!r} is not here; this server has {has}", "model", "model_not_found")
