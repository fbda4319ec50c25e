"""The answer of `/v1/responses`: one response object, or the events of its growing."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime_py.serving.answers.answer import Answer, event
from runtime_py.serving.answers.items import Output
from runtime_py.text.generation import Piece
from runtime_py.text.tokenizing import boundary
from runtime_py.tool_calls.answer import Part

# What a response repeats of its request, and what it says where the request did not.
_REPEATED: Mapping[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True, "temperature": 1.0,
    "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": 1.0,
    "user": None,
}  # fmt: skip
_OURS: Mapping[str, Any] = {
    "background": False, "max_tool_calls": None, "previous_response_id": None, "prompt": None,
    "reasoning": {"effort": None, "summary": None}, "service_tier": "default", "store": False, "truncation": "disabled",
}  # fmt: skip


@dataclass
class ResponseAnswer(Answer):
    """An answer in the form of the Responses API; it has one choice. asked: the request's body."""

    asked: Mapping[str, Any] = field(default_factory=dict)
    _output: Output = field(default_factory=Output, init=False)
    _numbers: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.id = self.id or f"resp_{secrets.token_hex(20)}"

    def opening(self) -> bytes:
        """The first events of a stream."""
        found = self._object("in_progress")
        return self._events([{"type": f"response.{name}", "response": found} for name in ("created", "in_progress")])

    def chunk(self, pieces: Sequence[Piece], text: str, reason: str | None) -> bytes:
        """Events of new text, and with a reason those of the end."""
        return self._events(self._grow(pieces, text, reason))

    def choice(self, pieces: Sequence[Piece], text: str, reason: str) -> dict[str, Any]:
        """The whole response."""
        return self._grow(pieces, text, reason)[-1]["response"]

    def whole(self, answers: Sequence[Answer], choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return choices[0]

    def closing(self, answers: Sequence[Answer], include_usage: bool) -> bytes:
        """Nothing: the last event of a stream has everything."""
        return b""

    def failed(self, error: dict[str, Any]) -> bytes:
        """The last event of a stream that broke off. error: as in a body."""
        found = {"code": "server_error", "message": error["error"]["message"]}
        return self._events([{"type": "response.failed", "response": {**self._object("failed"), "error": found}}])

    def _grow(self, pieces: Sequence[Piece], text: str, reason: str | None) -> list[dict[str, Any]]:
        if self.reader is None:
            parts = [Part(content=text)] if text else []
        else:
            parts = self.reader.push(text) if reason is None else self.reader.end(text)
        logprobs = [self._chat_logprob(piece) for piece in pieces] if self.with_logprobs else []
        events = []
        for part in parts:
            events += self._output.add(part, logprobs)
            logprobs = [] if part.content else logprobs
        if reason is None:
            return events
        events += self._output.finish(reason == "length")
        status = "incomplete" if reason == "length" else "completed"
        return [*events, {"type": f"response.{status}", "response": self._object(status)}]

    def _object(self, status: str) -> dict[str, Any]:
        ended = status in ("completed", "incomplete")
        asked = {name: self.asked.get(name) for name in _REPEATED}
        repeated = {name: other if asked[name] is None else asked[name] for name, other in _REPEATED.items()}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model,
            "output": list(self._output.items) if ended else [],
            **repeated,
            **_OURS,
            "usage": self._usage() if ended else None,
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.reused, "cache_write_tokens": 0},
            "output_tokens": self.tokens,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens()},
            "total_tokens": self.prompt_tokens + self.tokens,
        }

    def _reasoning_tokens(self) -> int:
        """How many of the tokens were reasoning: its text tokenized again, because no token says what it was for."""
        thought = self._output.reasoning()
        if not thought:
            return 0
        with boundary():
            return min(len(self.tokenizer.encode(thought, add_special_tokens=False).ids), self.tokens)

    def _events(self, found: Sequence[dict[str, Any]]) -> bytes:
        parts = []
        for one in found:
            parts.append(b"event: %s\n" % one["type"].encode() + event({**one, "sequence_number": self._numbers}))
            self._numbers += 1
        return b"".join(parts)
