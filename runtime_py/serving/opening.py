"""From a folder to a loaded model: what it is decides what it can do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from export.contract.errors import InputError, NotFiniteError
from runtime_py.chat.template import PlainTemplate, open_template
from runtime_py.prompt_cache.store import PromptCache
from runtime_py.serving.app import Server
from runtime_py.serving.embeddings import EmbeddingServer
from runtime_py.serving.models.registry import Model
from runtime_py.serving.models.service import Service
from runtime_py.serving.operating.logs import Log
from runtime_py.serving.operating.metrics import Metrics
from runtime_py.serving.rerank import RerankServer
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.turns import Turns
from runtime_py.speculation.speculation import OFF
from runtime_py.text.encoder import TextEncoder, is_encoder
from runtime_py.text.generator import TextGenerator
from runtime_py.text.reranker import Reranker, is_reranker
from runtime_py.widths.schedule import Schedule

_NAME = re.compile(r"[^\s/\\\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,199}")


@dataclass(frozen=True)
class Opening:
    """How all folders of a server are opened, with all adapters. mapped, threads, processors: as load.py has them."""

    settings: ServeSettings
    metrics: Metrics
    turns: Turns
    log: Log
    chat_template: Path | None = None
    threads: int | None = None
    mapped: bool | None = None
    processors: Sequence[int] = ()
    prompts: Callable[[Path, Any, str], PromptCache | None] | None = None  # opens the cache of a model's prompts
    cache_bits: int = 16  # of keys and values of models that generate text
    bits: int | Schedule | str | None = None  # at which nested codes are read
    _told: set[str] = field(default_factory=set)  # models whose notices were given

    def models(self, folders: Sequence[tuple[str, Path]]) -> list[Model]:
        """Of (name, folder) pairs, not open yet. Raises InputError where two have one name, or a name is none."""
        names = [name for name, _ in folders]
        for name in names:
            if not _NAME.fullmatch(name) or ".." in name.split("/"):
                raise InputError(f"{name[:100]!r} cannot be a model's name; NAME=FOLDER gives another one")
            if names.count(name) > 1:
                raise InputError(f"two models are called {name!r}; NAME=FOLDER gives one of them another name")
        return [Model(name, folder, partial(self.open, name, folder)) for name, folder in folders]

    def open(self, name: str, folder: Path) -> Service:
        """The loaded model. Raises InputError when the folder is incomplete, hostile or broken."""
        if is_reranker(folder):
            reranker = Reranker(folder, "int8", self.threads)
            return RerankServer(reranker, name, self.settings, self.metrics, self.turns)
        if is_encoder(folder):
            encoder = TextEncoder(folder, "int8", self.threads, None)
            return EmbeddingServer(encoder, name, self.settings, self.metrics, self.turns)
        return self._text(name, folder)

    def _text(self, name: str, folder: Path) -> Server:
        template = open_template(folder, self.chat_template)
        try:
            generator = TextGenerator(
                folder, "int8", self.threads, self.mapped, self.processors, None, cache_bits=self.cache_bits,
                bits=self.bits,
            )  # fmt: skip
            if self.settings.max_context is not None:
                generator.limit_context(self.settings.max_context)
            try:  # compiles before a client waits
                with self.turns:
                    self._warm_up(generator)
            except NotFiniteError as error:
                self.log.say("model", f"{error}: requests will fail", "warning", model=name)
            if self.prompts is not None:
                generator.prompt_cache = self.prompts(folder, generator.session, generator.interpreted)
            if name not in self._told:
                self._told.add(name)
                for notice in _notices(generator, isinstance(template, PlainTemplate)):
                    self.log.say("model", notice, model=name)
            return Server(generator, template, name, self.settings, self.metrics, self.turns)
        except BaseException:
            template.close()
            raise

    def _warm_up(self, generator: TextGenerator) -> None:
        first, second = (generator.session.new_state() for _ in range(2))
        generator.session.forward(first, [0], last_only=True)
        if (self.settings.sessions > 1 or self.settings.speculate != OFF) and not generator.interpreted:
            generator.session.step([first, second], [0, 0])


def _notices(generator: TextGenerator, plain: bool) -> Iterator[str]:
    """What the user should know of a model. plain: it has no chat template."""
    if generator.ignored:
        yield f"{generator.ignored}: the file is ignored"
    if generator.unsupported:
        names = ", ".join(generator.unsupported)
        yield f"generation_config.json asks for {names}, which this runtime does not have: ignored"
    if generator.recommended:
        names = ", ".join(f"{name} {value:g}" for name, value in sorted(generator.recommended.items()))
        yield f"the model recommends {names}: requests have to ask for it"
    if plain:
        yield "this model has no chat template: chat continues the text of the messages"
