"""What the services of encoders and rerankers have in common: one text, or pair, after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime_py.serving.guard import App
from runtime_py.serving.models.registry import Registry
from runtime_py.serving.models.service import Handler
from runtime_py.serving.one_by_one import OneByOne
from runtime_py.serving.operating.metrics import Metrics
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.shell import Shell
from runtime_py.serving.turns import Turns
from runtime_py.text.encoder import StatesModel
from runtime_py.text.tokenizing import tokenizer_bytes


class StatesService:
    """A model of states; subclasses have its handlers."""

    def __init__(
        self, model: StatesModel, name: str, settings: ServeSettings, metrics: Metrics | None = None,
        turns: Turns | None = None,
    ) -> None:  # fmt: skip
        """metrics, turns: of the server, where it has other models beside this one."""
        self.name, self._settings, self._states_model = name, settings, model
        self._all_metrics = metrics or Metrics()
        self.metrics = self._all_metrics.of(name)
        self._queue = OneByOne(model.folder, settings, turns or Turns())

    @property
    def adapters(self) -> Sequence[str]:
        """None, unless a subclass says so."""
        return ()

    def handlers(self) -> dict[str, Handler]:
        """By path."""
        raise NotImplementedError

    def details(self) -> Mapping[str, Any]:
        """Of the list of models."""
        return {"max_model_len": self._states_model.limit}

    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        return self._queue.load()

    def guesses(self) -> tuple[int, int]:
        """None: no text is made."""
        return 0, 0

    def alive(self) -> bool:
        """Whether requests are still worked on."""
        return self._queue.alive()

    def most_bytes(self) -> int:
        """Most memory: weights, buffers for the longest text, tokenizer."""
        return self._states_model.held_bytes() + tokenizer_bytes(self._states_model.folder)

    def application(self) -> App:
        """The ASGI application of this model alone."""
        return Shell(Registry.of(self, self._all_metrics), self._settings, self._all_metrics).application()

    def close(self) -> None:
        """Stop after the current text."""
        self._queue.close()
