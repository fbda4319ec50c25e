"""Continue the last message instead of starting an answer: transformers' continue_final_message.

A tag is put behind the text that is to go on; the rendered prompt is cut where the tag comes out.
"""

from __future__ import annotations

from typing import Any

from export.contract.errors import InputError

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's reasoning; templates read the first
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


def tagged(messages: list[dict[str, Any]], field: str, template: str) -> tuple[list[dict[str, Any]], str]:
    """(messages whose last one carries the tag, the text that goes on).

    Raises InputError when the last message has no such text, or the template does not read the field.
    """
    last = dict(messages[-1])
    text = last.get(field)
    if text is None:
        raise InputError(f"continue_final_message: the last message has no {field!r} to continue")
    fields = [field]
    if field in REASONING:
        fields = [name for name in REASONING if last.get(name) == text]
    if not any(name in template for name in fields):
        raise InputError(f"continue_final_message: the chat template does not read {field!r}")
    if isinstance(text, list):
        parts = [dict(part) if isinstance(part, dict) else part for part in text]
        part = next((p for p in reversed(parts) if isinstance(p, dict) and isinstance(p.get("text"), str)), None)
        if part is None:
            raise InputError("continue_final_message: the last message has no text to continue")
        text, part["text"], last[field] = part["text"], part["text"] + _TAG, parts
    elif isinstance(text, str):
        last |= dict.fromkeys(fields, text + _TAG)
    else:
        raise InputError(f"continue_final_message: {field!r} of the last message is not text")
    return [*messages[:-1], last], text


def cut(rendered: str, text: str) -> str:
    """The prompt up to the end of `text`. Raises InputError when the template did not show it."""
    tag = _TAG.strip()
    if text.strip() not in rendered or tag not in rendered:
        raise InputError("continue_final_message: the chat template does not show the last message as it is")
    place = rendered.rindex(tag)
    spaced = rendered[place : place + len(_TAG)] == _TAG
    return rendered[:place] if spaced else rendered[:place].rstrip()
