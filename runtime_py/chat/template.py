"""A model's own chat template: messages to prompt text, rendered as transformers does, in a limited process."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from export.artefacts.chat_templates import DEFAULT, read_template, read_templates
from export.contract.errors import InputError
from runtime_py.chat.prefill import REASONING, cut, tagged
from runtime_py.system.line_process import LineProcess
from runtime_py.text.special_tokens import read_special_tokens

Message = Mapping[str, Any]
NONE: Mapping[str, Any] = MappingProxyType({})
_SCRIPT = Path(__file__).with_name("renderer.py")
# Names that transformers' apply_chat_template and what it calls take for themselves; no template sees them.
_RESERVED = frozenset(
    (
        "conversation", "conversations", "messages", "self", "tokenize", "sanitize_control_tokens", "padding",
        "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
    )
)  # fmt: skip
_ARGUMENTS = frozenset(["tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message"])


class ChatTemplate:
    """Renders conversations. Close it, or leave it to the end of the process."""

    def __init__(
        self, text: str | Mapping[str, str], tokens: Mapping[str, str], where: str, seconds: float = 5.0
    ) -> None:
        """text: Jinja source, or several by name; tokens: the special tokens; where: for error messages.

        seconds: limit per rendering. Raises InputError when the (default) template does not compile, or a special
        token has a name that templates use for something else.
        """
        self._texts = {DEFAULT: text} if isinstance(text, str) else dict(text)
        self._named = not isinstance(text, str)
        self._tokens, self._where, self._seconds = dict(tokens), where, seconds
        self._process: LineProcess | None = None
        self._lock = threading.Lock()
        for name in tokens:
            if name in _RESERVED | _ARGUMENTS:
                raise InputError(f"{where}: a special token cannot be called {name!r}")
        if DEFAULT in self._texts:
            with self._lock:
                self._ask(self._texts[DEFAULT], None)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, variables: Mapping[str, Any] = NONE
    ) -> str:
        """The conversation as prompt text, as transformers' apply_chat_template gives it.

        variables: what the template may read besides: tools, documents, and the template's own, such as
        enable_thinking. add_generation_prompt, continue_final_message and chat_template (the name of one of several)
        have the meaning that they have in transformers.
        Raises InputError when a variable is reserved or has the wrong type, or when the template refuses the messages,
        fails, or exceeds its limits.
        """
        arguments = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt, **variables}
        _check(arguments)
        text = self._choose(arguments.pop("chat_template", None), arguments["tools"])
        proceed = arguments.pop("continue_final_message", False)
        if proceed and arguments["add_generation_prompt"]:
            raise InputError("continue_final_message needs add_generation_prompt to be false")
        shown, end = _plain(messages), None
        if proceed:
            shown, end = tagged(shown, proceed if isinstance(proceed, str) else "content", text)
        with self._lock:
            rendered = self._ask(text, {**self._tokens, **arguments, "messages": shown})
        return rendered if end is None else cut(rendered, end)

    def source(self, variables: Mapping[str, Any] = NONE) -> str:
        """The Jinja source that render() would take. Raises InputError where there is none of that name."""
        return self._choose(variables.get("chat_template"), variables.get("tools"))

    def _choose(self, name: str | None, tools: Any) -> str:
        if name is not None:
            if not self._named or name not in self._texts:
                raise InputError(f"chat_template: {name!r} is no template of this model")
            return self._texts[name]
        chosen = "tool_use" if tools is not None and "tool_use" in self._texts else DEFAULT
        if chosen not in self._texts:
            names = ", ".join(sorted(self._texts))
            raise InputError(f"{self._where}: no chat template is the default one; chat_template can name {names}")
        return self._texts[chosen]

    def close(self) -> None:
        """End the process; a later render starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _ask(self, text: str, variables: dict[str, Any] | None) -> str:
        """The rendered text; without variables the template is only compiled."""
        try:
            request = json.dumps({"template": text, "variables": variables}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the template variables cannot be written as JSON ({error})") from None
        self._process = process = self._process or LineProcess([str(_SCRIPT)])
        try:
            process.send(request)
            answer = json.loads(process.line(self._seconds))
        except (OSError, ValueError) as error:
            self.close()
            raise InputError(f"{self._where}: the chat template failed ({error})") from None
        if "error" in answer:
            raise InputError(f"{self._where}: the chat template refuses this conversation ({answer['error']})")
        return str(answer["text"])


class PlainTemplate:
    """For models without a template: the messages' texts, one after the other on lines of their own."""

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, variables: Mapping[str, Any] = NONE
    ) -> str:
        """The texts joined by line breaks; roles are not shown, because the model never learned a notation for them.

        Raises InputError when a message has no text, and for variables: nothing would read them.
        """
        for name in variables:
            raise InputError(f"{name}: this model has no chat template that could use it")
        if not all(isinstance(message.get("content"), str) for message in messages):
            raise InputError("this model has no chat template: every message needs its content as text")
        text = "\n".join(message["content"] for message in messages)
        return text + "\n" if add_generation_prompt else text

    def source(self, variables: Mapping[str, Any] = NONE) -> str:
        """No source."""
        return ""

    def close(self) -> None:
        """Nothing to end."""


Template = ChatTemplate | PlainTemplate


def open_template(
    folder: Path, override: Path | None = None, seconds: float = 5.0, prologue: str = ""
) -> Template:  # fmt: skip
    """The folder's chat templates (export/artefacts/chat_templates.py) with its special tokens, else PlainTemplate.

    override: a template file of the user's own; prologue: Jinja source put before every template. Raises InputError
    when one is there and broken.
    """
    found, where = (read_template(override), override) if override is not None else read_templates(folder)
    tokens = read_special_tokens(folder)
    if found is None:
        return PlainTemplate()
    texts = prologue + found if isinstance(found, str) else {name: prologue + text for name, text in found.items()}
    return ChatTemplate(texts, tokens, str(where), seconds)


def _check(arguments: Mapping[str, Any]) -> None:
    """Raises InputError for what transformers refuses, or would not give to the template."""
    for name in arguments:
        if name in _RESERVED:
            raise InputError(f"{name}: this name is reserved and cannot be a variable of the chat template")
    for name in ("tools", "documents"):
        value = arguments[name]
        if value is not None and not (isinstance(value, list | tuple) and all(isinstance(v, Mapping) for v in value)):
            raise InputError(f"{name}: a list of objects was expected")
    if not isinstance(arguments.get("chat_template"), str | None):
        raise InputError("chat_template: the name of a template was expected")
    if not isinstance(arguments.get("continue_final_message", False), bool | str):
        raise InputError("continue_final_message: true, false or the name of a field was expected")


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as templates see them: without fields that are null, reasoning under each of its usual names."""
    if not messages:
        raise InputError("messages: at least one is needed")
    shown = []
    for message in messages:
        fields = {name: value for name, value in message.items() if value is not None}
        reasoning = next((fields[name] for name in REASONING if name in fields), None)
        if reasoning is not None:
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        shown.append(fields)
    return shown
