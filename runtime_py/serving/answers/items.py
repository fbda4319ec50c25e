"""The output of a response: its items as they grow, and the events that tell of every step (Responses API)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from runtime_py.tool_calls.answer import Part

Event = dict[str, Any]


class Output:
    """Items of one response. Every method gives the events of what changed, without their numbers."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open = False  # whether the last item still grows

    def add(self, part: Part, logprobs: Sequence[dict[str, Any]] = ()) -> list[Event]:
        """More of the answer."""
        if part.reasoning:
            return self._text("reasoning", part.reasoning, ())
        if part.content:
            return self._text("message", part.content, logprobs)
        if part.name:
            events = self.close()
            item = {"type": "function_call", "id": _id("fc"), "call_id": part.id, "name": part.name, "arguments": ""}
            return [*events, *self._begin({**item, "status": "in_progress"})]
        self._last()["arguments"] += part.arguments
        return [self._event("response.function_call_arguments.delta", delta=part.arguments)]

    def finish(self, cut: bool) -> list[Event]:
        """The end of the answer; a cut one leaves its last item incomplete. An answer of nothing is an empty text."""
        events = [] if self.items else self._begin_text("message")
        return events + self.close("incomplete" if cut else "completed")

    def reasoning(self) -> str:
        """What the model thought."""
        return "".join(p["text"] for item in self.items if item["type"] == "reasoning" for p in item["content"])

    def _text(self, kind: str, more: str, logprobs: Sequence[dict[str, Any]]) -> list[Event]:
        events = []
        if not self._open or self._last()["type"] != kind:
            events = self.close() + self._begin_text(kind)
        part = self._last()["content"][0]
        part["text"] += more
        if kind == "reasoning":
            return [*events, self._event("response.reasoning_text.delta", content_index=0, delta=more)]
        part["logprobs"] += logprobs
        delta = self._event("response.output_text.delta", content_index=0, delta=more, logprobs=list(logprobs))
        return [*events, delta]

    def _begin_text(self, kind: str) -> list[Event]:
        if kind == "reasoning":
            item: dict[str, Any] = {"type": kind, "id": _id("rs"), "summary": [], "content": []}
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            item = {"type": kind, "id": _id("msg"), "role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        events = self._begin({**item, "status": "in_progress"})
        self._last()["content"] = [part]
        return [*events, self._event("response.content_part.added", content_index=0, part=_copy(part))]

    def _begin(self, item: dict[str, Any]) -> list[Event]:
        self.items.append(item)
        self._open = True
        return [{"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": _copy(item)}]

    def close(self, status: str = "completed") -> list[Event]:
        """The last item is complete, or what the status says."""
        if not self._open:
            return []
        item, self._open = self._last(), False
        item["status"] = status
        if item["type"] == "function_call":
            events = [self._event("response.function_call_arguments.done", arguments=item["arguments"])]
        else:
            part = _copy(item["content"][0])
            if item["type"] == "reasoning":
                done = self._event("response.reasoning_text.done", content_index=0, text=part["text"])
            else:
                more = {"text": part["text"], "logprobs": part["logprobs"]}
                done = self._event("response.output_text.done", content_index=0, **more)
            events = [done, self._event("response.content_part.done", content_index=0, part=part)]
        place = len(self.items) - 1
        return [*events, {"type": "response.output_item.done", "output_index": place, "item": _copy(item)}]

    def _last(self) -> dict[str, Any]:
        return self.items[-1]

    def _event(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "item_id": self._last()["id"], "output_index": len(self.items) - 1, **more}


def _copy(found: dict[str, Any]) -> dict[str, Any]:
    """As it is now; what grows later grows elsewhere."""
    copy = dict(found)
    if isinstance(copy.get("content"), list):
        copy["content"] = [_copy(part) for part in copy["content"]]
    if isinstance(copy.get("logprobs"), list):
        copy["logprobs"] = list(copy["logprobs"])
    return copy


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
