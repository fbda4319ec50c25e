"""A model's own chat template: messages to prompt text, rendered as transformers does, in a limited process."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from export.errors import InputError

Message = Mapping[str, Any]
NONE: Mapping[str, Any] = MappingProxyType({})
_SCRIPT = Path(__file__).with_name("renderer.py")
_MAX_OUTPUT = 16 << 20  # bytes of rendered text
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """Renders conversations. Close it, or leave it to the end of the process."""

    def __init__(self, text: str, variables: Mapping[str, Any], where: str, seconds: float = 5.0) -> None:
        """text: Jinja source; variables: the special tokens; where: for error messages; seconds: limit per rendering.

        Raises InputError when the template does not compile.
        """
        self.text, self._variables, self._where, self._seconds = text, dict(variables), where, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        with self._lock:
            self._start()

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, variables: Mapping[str, Any] = NONE
    ) -> str:
        """The conversation as prompt text. variables: what the template may read besides, such as tools.

        Raises InputError when the template refuses the messages, fails, or exceeds its limits.
        """
        with self._lock:
            if self._process is None:
                self._start()
            values = {"tools": None, "documents": None, **self._variables, **variables}
            return self._ask({**values, "messages": list(messages), "add_generation_prompt": add_generation_prompt})

    def close(self) -> None:
        """End the process; a later render starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_SCRIPT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            start_new_session=True,  # a Ctrl-C in the terminal is meant for us alone
        )  # fmt: skip
        self._ask({"template": self.text})

    def _ask(self, request: dict[str, Any]) -> str:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            answer = json.loads(self._read_line(process))
        except (OSError, ValueError) as error:
            self.close()
            raise InputError(f"{self._where}: the chat template failed ({error})") from None
        if "error" in answer:
            raise InputError(f"{self._where}: the chat template refuses this conversation ({answer['error']})")
        return str(answer["text"])

    def _read_line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        deadline, line = time.monotonic() + self._seconds, bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise ValueError(f"it takes longer than {self._seconds:g} s")
                part = process.stdout.read(1 << 16)
                if not part:
                    raise ValueError("it ended its process")
                line += part
                if len(line) > _MAX_OUTPUT:
                    raise ValueError("it makes more than 16 MB of text")
        return bytes(line)


class PlainTemplate:
    """For models without a template: the messages' texts, one after the other on lines of their own."""

    text = ""

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, variables: Mapping[str, Any] = NONE
    ) -> str:
        """The texts joined by line breaks; roles are not shown, because the model never learned a notation for them."""
        text = "\n".join(message["content"] for message in messages)
        return text + "\n" if add_generation_prompt else text

    def close(self) -> None:
        """Nothing to end."""


Template = ChatTemplate | PlainTemplate


def open_template(folder: Path, override: Path | None = None, seconds: float = 5.0) -> Template:
    """The folder's chat_template.jinja, else the one in tokenizer_config.json, else PlainTemplate.

    override: a template file of the user's own. Raises InputError when one is there and broken.
    """
    path = override or folder / "chat_template.jinja"
    config = _read_config(folder / "tokenizer_config.json")
    text: Any = None
    if override is not None or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
    else:
        text, path = config.get("chat_template"), folder / "tokenizer_config.json"
        if isinstance(text, list):  # named templates: the default one
            text = next((t.get("template") for t in text if isinstance(t, dict) and t.get("name") == "default"), None)
    if not isinstance(text, str) or not text.strip():
        return PlainTemplate()
    return ChatTemplate(text, _special_tokens(config), str(path), seconds)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name; stored as text or as an object with its text under `content`."""
    found = {}
    for name in _SPECIAL:
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found
