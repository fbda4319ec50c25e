"""The built-in calibration text: prose, conversations, code and fifteen languages, written for this project.

What a model is calibrated on decides what survives. Text of one kind keeps that kind: SmolLM2-135M at 3 bits,
calibrated on prose alone, ended a chat before its first word. So the built-in text is of many kinds, and conversations
go through the model's own chat template. Files in built_in/; pieces are shuffled once for all, so that every window of
some hundred tokens holds several kinds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib import resources

import numpy as np

from export.contract.errors import InputError
from runtime_py.chat.template import PlainTemplate, Template

_TEXTS = ("prose.txt", "languages.txt", "code.txt")  # pieces separated by blank lines
_CHATS = "chats.jsonl"  # one object a line: {"messages": [...]}
_MOST_SECONDS, _MOST_CHARACTERS = 60.0, 1 << 23  # for all conversations: a template came with a download
# Put before a template, so that those which write today's date give the same text tomorrow, when a run is continued.
FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
_PIECE = 900  # characters at least, so that a piece is more than a heading


def built_in_text(template: Template) -> str:
    """All pieces in a fixed order, joined by blank lines; conversations as `template` renders them.

    Raises InputError for a template that takes minutes, or makes far more text than it is given.
    """
    pieces = [piece for name in _TEXTS for piece in _pieces(_read(name))]
    begun, made = time.monotonic(), 0
    for line in _read(_CHATS).splitlines():
        pieces.append(_rendered(json.loads(line)["messages"], template))
        made += len(pieces[-1])
        if made > _MOST_CHARACTERS or time.monotonic() - begun > _MOST_SECONDS:
            raise InputError(
                "the chat template is too slow, or makes too much text, for the built-in calibration text; "
                "give another by --calibration"
            )
    order = np.random.default_rng(0).permutation(len(pieces))
    return "\n\n".join(pieces[i] for i in order)


def _read(name: str) -> str:
    return resources.files("toolchain.calibrate").joinpath("built_in", name).read_text(encoding="utf-8")


def _pieces(text: str) -> Iterator[str]:
    """Neighbouring paragraphs, together at least _PIECE characters."""
    held = ""
    for paragraph in text.split("\n\n"):
        held = f"{held}\n\n{paragraph}" if held else paragraph
        if len(held) >= _PIECE:
            yield held
            held = ""
    if held:
        yield held


def _rendered(messages: list[dict[str, str]], template: Template) -> str:
    """A conversation; as plain text where the template takes no system message, or none of this kind at all."""
    try:
        return template.render(messages, add_generation_prompt=False).strip()
    except InputError:
        return PlainTemplate().render(messages, add_generation_prompt=False)
