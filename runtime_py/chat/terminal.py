"""The terminal session of `athena-export chat`: lines in, streamed answers out, commands that start with a slash."""

from __future__ import annotations

import io
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from export.contract.errors import InputError, NotFiniteError
from export.files.access import expanded, read_json_value, write_json
from runtime_py.chat.conversation import fit
from runtime_py.chat.template import Message, Template
from runtime_py.text.generation import Constraint, Generation, GenerationRequest, prompted, reusable
from runtime_py.text.generator import TextGenerator
from runtime_py.text.logit_processors import LogitRules
from runtime_py.text.sampling import SamplingSettings
from runtime_py.text.typed_text import typed_text

HELP = """\
/reset        forget the conversation (the system message stays)
/save FILE    write the conversation as JSON
/load FILE    continue a saved conversation
/exit         leave (so does Ctrl-D)
Ctrl-C stops an answer, not the program."""


@dataclass(frozen=True)
class ChatSettings:
    """How answers are made."""

    sampling: SamplingSettings
    max_tokens: int = 512  # most tokens of an answer
    stop: tuple[str, ...] = ()
    system: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)  # what the template may read besides the messages
    rules: LogitRules | None = None  # on logits; None: the model's own
    stop_tokens: frozenset[int] | None = None  # None: the model's own
    constraint: Callable[[frozenset[int]], Constraint] | None = None  # what every answer is held to


class Interrupts:
    """Ctrl-C sets a flag while an answer is made: an exception there could leave the compute threads half started."""

    def __init__(self) -> None:
        self.pressed = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Within: Ctrl-C only sets `pressed`."""
        self.pressed = False

        def note(number: int, frame: Any) -> None:
            self.pressed = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class Chat:
    """One conversation with one model."""

    def __init__(self, generator: TextGenerator, template: Template, settings: ChatSettings) -> None:
        self._generator, self._template, self.settings = generator, template, settings
        self._state = generator.session.new_state()
        self._cached: list[int] = []
        self._prompted = 0  # of these, how many first ones were computed as a prompt
        self._interrupts = Interrupts()
        self._turn = 0
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Back to the system message."""
        system = self.settings.system
        self.messages = [{"role": "system", "content": system}] if system else []

    def answer(self, text: str, show: Callable[[str], None]) -> str:
        """Add the user's message, stream the answer through `show`, keep both. Returns a line about speed.

        A refused or too long message raises InputError, logits that are no numbers raise NotFiniteError: both are not
        kept. An interrupted answer is kept as it is.
        """
        generator, asked = self._generator, [*self.messages, {"role": "user", "content": text}]
        room = min(self.settings.max_tokens, max(generator.context // 4, 1))
        kept, ids, dropped = fit(
            asked,
            self._template,
            generator.tokenizer,
            generator.context,
            room,
            self.settings.variables,
            generator.most_bytes,
        )
        sampling = self.settings.sampling
        request = GenerationRequest(
            prompt=tuple(ids),
            sampling=replace(sampling, seed=sampling.seed + self._turn),
            max_tokens=min(self.settings.max_tokens, generator.context - len(ids)),
            stop_tokens=generator.stop if self.settings.stop_tokens is None else self.settings.stop_tokens,
            stop_strings=self.settings.stop,
            rules=generator.rules if self.settings.rules is None else self.settings.rules,
            constraint=self.settings.constraint,
            adapter=generator.adapter,
        )
        reused, cache = reusable(self._cached, ids), generator.prompt_cache
        found = cache.restore(self._state, ids, "", generator.adapter, reused + 1) if cache else 0
        clean = prompted(max(self._prompted, found), max(reused, found), len(ids))
        generation = Generation(
            request,
            generator.session,
            generator.tokenizer,
            self._state,
            max(reused, found),
            generator.speculation,
        )
        self._cached = []  # whatever ends the answer early leaves a cache that nobody may rely on
        pieces, start, first = [], time.perf_counter(), 0.0
        with self._interrupts.caught():
            while not generation.finish_reason and not self._interrupts.pressed:
                for piece in generation.pieces():
                    first = first or time.perf_counter()
                    pieces.append(piece.text)
                    show(piece.text)
        generation.interrupt()
        pieces.append(generation.tail)
        show(generation.tail)
        end = time.perf_counter()
        self._cached, self._prompted = generation.cached_tokens(answers=True), clean
        if cache:
            cache.keep(self._state, generation.cached_tokens(answers=False)[:clean])
        self.messages = [*kept, {"role": "assistant", "content": "".join(pieces).strip()}]
        self._turn += 1
        notes = [f"{len(generation.tokens)} tokens"]
        if len(generation.tokens) > 1 and end > first:
            notes.append(f"{(len(generation.tokens) - 1) / (end - first):.0f} tokens/s")
        notes.append(f"first after {(first or end) - start:.2f} s")
        if dropped:
            notes.append(f"{dropped} old messages dropped: the context of {generator.context} tokens was full")
        if self._interrupts.pressed:
            notes.append("stopped")
        elif generation.finish_reason == "length":
            notes.append("cut off at the token limit")
        return ", ".join(notes)

    def save(self, path: Path) -> None:
        """The conversation as JSON, in the form of the OpenAI API."""
        write_json(path, {"messages": [dict(message) for message in self.messages]})

    def load(self, path: Path) -> None:
        """Raises InputError when the file is not a conversation."""
        try:
            messages = read_json_value(path, None)["messages"]
            found: list[Message] = [{"role": m["role"], "content": m["content"]} for m in messages]
            rest = {name for message in messages for name in message if name not in ("role", "content")}
        except InputError:
            raise
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: not a saved conversation ({type(error).__name__}: {error})") from None
        if rest:
            raise InputError(f"{path}: a message has {', '.join(sorted(rest))[:100]}, which this chat cannot carry on")
        if not all(isinstance(value, str) for message in found for value in message.values()):
            raise InputError(f"{path}: not a saved conversation (a role or content is no text)")
        self.messages = found


def converse(chat: Chat) -> bool:
    """Read lines from stdin until its end. On a terminal with a prompt, else plainly, so that it can be scripted.

    Goes on after an error. False when logits that are no numbers ended an answer.
    """
    good = True
    terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a wrong byte is told with its line, and ends nothing
    if terminal:
        import readline  # noqa: F401 (its import gives input() line editing and history)

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's child would ignore it

        print("Type a message; /help lists the commands.", file=sys.stderr)
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            return good
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)", file=sys.stderr)
            continue
        if line == "/exit":
            return good
        try:
            if line.startswith("/"):
                _command(chat, line)
            elif line:
                note = chat.answer(typed_text(line, "the message"), lambda text: print(text, end="", flush=True))
                print()
                print(f"[{note}]", file=sys.stderr)
        except (InputError, NotFiniteError) as error:
            print(f"athena-export: {error}", file=sys.stderr)
            good = good and not isinstance(error, NotFiniteError)


def _command(chat: Chat, line: str) -> None:
    name, _, argument = line.partition(" ")
    if name == "/reset":
        chat.reset()
        print("[the conversation starts anew]", file=sys.stderr)
    elif name in ("/save", "/load"):
        if not argument.strip():
            raise InputError(f"{name} needs a file name")
        path = expanded(argument.strip())
        try:
            chat.save(path) if name == "/save" else chat.load(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        print(f"[{len(chat.messages)} messages {'in' if name == '/save' else 'from'} {path}]", file=sys.stderr)
    elif name == "/help":
        print(HELP, file=sys.stderr)
    else:
        raise InputError(f"{name} is no command; /help lists them")
