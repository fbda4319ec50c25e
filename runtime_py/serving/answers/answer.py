"""The OpenAI API's answers: objects of a whole answer and of a stream's chunks. Functions of what was generated."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from runtime_py.text.generation import Piece
from runtime_py.text.token_bytes import TokenBytes
from runtime_py.tool_calls.answer import AnswerReader, Part


@dataclass
class Answer:
    """One choice of an answer as it grows: its identity and what usage counts and log probabilities need."""

    model: str
    chat: bool
    prompt_tokens: int
    tokenizer: Tokenizer
    with_logprobs: bool
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: int = 0
    reused: int = 0
    index: int = 0  # of the choice
    reader: AnswerReader | None = None  # of a chat's answer that may have calls or reasoning

    def __post_init__(self) -> None:
        self.id = self.id or f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"

    def choice(self, pieces: Sequence[Piece], text: str, reason: str) -> dict[str, Any]:
        """The choice's object in an answer that is not streamed."""
        parts = [Part(content=text)] if self.reader is None else self.reader.end(text)
        reason = self._reason(reason)
        choice: dict[str, Any] = {"index": self.index, "logprobs": self._logprobs(pieces), "finish_reason": reason}
        if self.chat:
            choice["message"] = _message(parts)
        else:
            choice["text"] = text
        return choice

    def opening(self) -> bytes:
        """The first event of a chat stream, which names the role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return event(
            {
                **self.frame(".chunk"),
                "choices": [{"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}],
            }
        )

    def chunk(self, pieces: Sequence[Piece], text: str, reason: str | None) -> bytes:
        """An event with new text; with a reader there may be several, or none."""
        if self.reader is not None:
            return self._read_chunks(self.reader, pieces, text, reason)
        choice: dict[str, Any] = {"index": self.index, "logprobs": self._logprobs(pieces), "finish_reason": reason}
        if self.chat:
            choice["delta"] = {"content": text} if text else {}
        else:
            choice["text"] = text
        return event({**self.frame(".chunk"), "choices": [choice]})

    def _read_chunks(self, reader: AnswerReader, pieces: Sequence[Piece], text: str, reason: str | None) -> bytes:
        deltas = [_delta(part) for part in (reader.push(text) if reason is None else reader.end(text))]
        logprobs, events = self._logprobs(pieces), []
        if not deltas and pieces and self.with_logprobs:
            deltas = [{}]
        for delta in deltas:
            choice = {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
            events.append(event({**self.frame(".chunk"), "choices": [choice]}))
            logprobs = None
        if reason is not None:
            choice = {"index": self.index, "delta": {}, "logprobs": None, "finish_reason": self._reason(reason)}
            events.append(event({**self.frame(".chunk"), "choices": [choice]}))
        return b"".join(events)

    def whole(self, answers: Sequence[Answer], choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The body of an answer that is not streamed, from all its choices."""
        return {**self.frame(""), "choices": list(choices), "usage": usage(answers)}

    def closing(self, answers: Sequence[Answer], include_usage: bool) -> bytes:
        """The last events of a stream: the counts, when they were asked for, and the end."""
        frame = {**self.frame(".chunk"), "choices": [], "usage": usage(answers)}
        return (event(frame) if include_usage else b"") + DONE

    def failed(self, error: dict[str, Any]) -> bytes:
        """The last event of a stream that broke off. error: as in a body."""
        return event(error)

    def _reason(self, reason: str) -> str:
        """Why the answer ended, once its reader has read it."""
        return "tool_calls" if reason == "stop" and self.reader is not None and self.reader.calls else reason

    def frame(self, suffix: str) -> dict[str, Any]:
        """What every object and chunk of an answer says of it. suffix: of the object's type in a chat."""
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        if self.chat:
            return {"content": [self._chat_logprob(piece) for piece in pieces], "refusal": None}
        return {
            "tokens": [self._show(piece.token) for piece in pieces],
            "token_logprobs": [piece.logprob for piece in pieces],
            "top_logprobs": [self._named_alternatives(piece) for piece in pieces],
            "text_offset": [piece.offset for piece in pieces],
        }

    def _chat_logprob(self, piece: Piece) -> dict[str, Any]:
        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            data = self._bytes.of(token)
            return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

        return {
            **entry(piece.token, piece.logprob),
            "top_logprobs": [entry(t, p) for t, p in piece.alternatives],
        }

    def _named_alternatives(self, piece: Piece) -> dict[str, float]:
        """By their text. Of several with the same text the generated one has it, else the likeliest; others are named
        by their id, as vLLM does."""
        found: dict[str, float] = {}
        for token, logprob in piece.alternatives:
            name = self._show(token)
            if name in found or (token != piece.token and name == self._show(piece.token)):
                name = f"token_id:{token}"
            while name in found:  # a token may be spelled like that
                name += "'"
            found[name] = logprob
        return found

    def _show(self, token: int) -> str:
        """The token's text; one that is not UTF-8 as the OpenAI API writes it, `bytes:\\xf0\\x9f`."""
        data = self._bytes.of(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + data.decode(errors="backslashreplace")

    @cached_property
    def _bytes(self) -> TokenBytes:
        return TokenBytes(self.tokenizer)


def _delta(part: Part) -> dict[str, Any]:
    """More of an answer in a stream."""
    if part.content:
        return {"content": part.content}
    if part.reasoning:
        return {"reasoning_content": part.reasoning}
    if part.name:
        function = {"name": part.name, "arguments": ""}
        return {"tool_calls": [{"index": part.call, "id": part.id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": part.call, "function": {"arguments": part.arguments}}]}


def _message(parts: Sequence[Part]) -> dict[str, Any]:
    """A whole answer."""
    text, thought = "".join(part.content for part in parts), "".join(part.reasoning for part in parts)
    calls: list[dict[str, Any]] = []
    for part in parts:
        if part.name:
            calls.append({"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}})
        elif part.arguments:
            calls[part.call]["function"]["arguments"] += part.arguments
    found: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if thought:
        found["reasoning_content"] = thought
    if calls:
        found["tool_calls"] = calls
    return found


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Token counts of the choices of one answer; their prompt is counted once."""
    first, made = answers[0], sum(answer.tokens for answer in answers)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": made,
        "total_tokens": first.prompt_tokens + made,
        "prompt_tokens_details": {"cached_tokens": first.reused},
    }


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
