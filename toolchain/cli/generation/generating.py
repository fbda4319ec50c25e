"""What `run`, `chat` and `serve` say about a model, and the variables of its chat template."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from export.contract.errors import InputError

if TYPE_CHECKING:
    from runtime_py.text.generator import TextGenerator


def template_variables(given: Sequence[str]) -> dict[str, Any]:
    """NAME=JSON pairs. Raises InputError for one that is none."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            equals = ""
        if not name or not equals:
            raise InputError(
                f"--template-variable must be NAME=JSON, such as enable_thinking=false, not {text[:100]!r}"
            )
    return found


def guesses(asked: str) -> str:
    """--speculate as it is to be used: `auto` waits for kernels that `warmup` or `serve` compiled.

    Else they would be compiled in the middle of an answer, which takes a quarter of a minute. Raises InputError.
    """
    from runtime_py.engine.objects.store import has
    from runtime_py.speculation.speculation import AUTO, OFF, checked

    return OFF if checked(asked) == AUTO and not has("apart.product") else asked


def tell_unsupported(generator: TextGenerator) -> None:
    """One line for what the model's generation_config.json asks for in vain, or for why it is not used."""
    if generator.ignored:
        print(f"[{generator.ignored}: the file is ignored]", file=sys.stderr)
    if generator.unsupported:
        names = ", ".join(generator.unsupported)
        print(f"[generation_config.json asks for {names}, which this runtime does not have: ignored]", file=sys.stderr)
