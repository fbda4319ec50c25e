"""Forms to matchers: tried in a process of its own first, compiled once, copied for every answer."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.contract.errors import InputError, printable
from runtime_py.structured.constraint import FormConstraint
from runtime_py.structured.forms import Form
from runtime_py.structured.vocabulary import library, limits, of_tokenizer, special_tokens
from runtime_py.system.line_process import LineProcess

_SECONDS = 5.0  # for one grammar; those of usual schemas take a hundredth
_START_SECONDS = 60.0  # for the process to begin
_ROOT = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path.insert(0, sys.argv[1]); from runtime_py.structured.trial import main; main()"
_QUOTED = re.compile(r"\s*(\d+ \||\^)")
_KEPT = 64  # compiled grammars: an agent sends its tools with every request


class Compiled:
    """A form that is ready: constraint() makes the state of one answer."""

    def __init__(self, matcher: Any, size: int, where: str) -> None:
        self._matcher, self._size, self._where = matcher, size, where

    def constraint(self, stops: frozenset[int]) -> FormConstraint:
        """For one answer that these tokens end."""
        return FormConstraint(self._matcher.deep_copy(), self._size, stops, self._where)


class Compiler:
    """For the grammars of one model. Threads may share it; one works at a time."""

    def __init__(self, tokenizer: Tokenizer, size: int, seconds: float = _SECONDS) -> None:
        """size: the model's logits; seconds: how long a grammar may take."""
        self._tokenizer, self._size, self._seconds = tokenizer, size, seconds
        self._library_tokenizer: Any = None
        self._trial: LineProcess | None = None
        self._kept: OrderedDict[tuple[str, bool, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, form: Form) -> Compiled:
        """Raises InputError that begins with the form's field when it is no grammar, or one that costs too much."""
        key = (form.grammar, form.gbnf, form.around)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._matcher(form)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return Compiled(self._kept[key], self._size, form.where)

    def close(self) -> None:
        """End the process; a later grammar starts another."""
        trial, self._trial = self._trial, None
        if trial is not None:
            trial.close()

    def _matcher(self, form: Form) -> Any:
        package = library()
        grammar = self._tried(form)
        if self._library_tokenizer is None:
            self._library_tokenizer = package.LLTokenizer(of_tokenizer(self._tokenizer, self._size))
        matcher = package.LLMatcher(self._library_tokenizer, grammar, log_level=0, limits=limits())
        if matcher.is_error():
            raise refusal(form.where, matcher.get_error())
        return matcher

    def _tried(self, form: Form) -> str:
        """The grammar for llguidance, after another process has compiled it. Raises InputError."""
        try:
            if self._trial is None:
                self._trial = LineProcess(["-c", _START, str(_ROOT)])
                self._ask({"size": self._size, "special": special_tokens(self._tokenizer, self._size)}, _START_SECONDS)
            answer = self._ask({"grammar": form.grammar, "gbnf": form.gbnf, "around": form.around}, self._seconds)
        except (OSError, ValueError) as error:
            self.close()
            raise InputError(f"{form.where}: this grammar cannot be used ({error})") from None
        if "error" in answer:
            raise refusal(form.where, answer["error"])
        return str(answer["grammar"])

    def _ask(self, data: Any, seconds: float) -> dict[str, Any]:
        assert self._trial is not None
        self._trial.send(json.dumps(data).encode())
        found: dict[str, Any] = json.loads(self._trial.line(seconds))
        return found


def refusal(where: str, message: str) -> InputError:
    """One line for what llguidance says in several, without the grammar that it quotes."""
    if message.startswith("NoExtensionBias"):
        message = "no text meets it: a rule that only leads to itself, or excludes everything"
    lines = [line.strip() for line in message.split("\n") if not _QUOTED.match(line)]
    return InputError(f"{where}: {printable(' '.join(filter(None, lines)))[:400]}")
