"""`chat` and `serve`: conversations in the terminal and over HTTP. Need no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Optional

import typer

from toolchain.cli.common import announce_compilation, guarded
from toolchain.cli.generation.generating import guesses, tell_unsupported, template_variables
from toolchain.cli.signature import with_options
from toolchain.settings.execution import (
    AS_IT_IS,
    FLOATS,
    FULL_WIDTHS,
    GUESSING,
    NO_ADAPTER,
    NO_PROMPT_CACHE,
    Adapted,
    Execution,
    Guessing,
    KeyValueCache,
    PromptCaching,
    Widths,
)
from toolchain.settings.generation import CONVERSATION, GenerationSettings
from toolchain.settings.serving import LIMITS, ServeOptions

Folder = Annotated[Path, typer.Argument(help="Model folder made by `export`.")]
TemplateFile = Annotated[Optional[Path], typer.Option(help="Chat template (Jinja) instead of the model's own.")]
TemplateVariable = Annotated[
    Optional[list[str]],
    typer.Option(metavar="NAME=JSON", help="For the chat template, such as enable_thinking=false; may be repeated."),
]


@guarded
@with_options
def chat(
    folder: Folder,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    chat_template: TemplateFile = None,
    template_variable: TemplateVariable = None,
    asked: GenerationSettings = CONVERSATION,
    execution: Execution = AS_IT_IS,
    cached: KeyValueCache = FLOATS,
    width: Widths = FULL_WIDTHS,
    guessing: Guessing = GUESSING,
    caching: PromptCaching = NO_PROMPT_CACHE,
    adapted: Adapted = NO_ADAPTER,
) -> None:
    """Talk with a model. Ctrl-C stops an answer; /help lists commands.

    When the context is full, the oldest questions are dropped together with their answers; the system message stays.
    """
    from runtime_py.chat.template import PlainTemplate, open_template
    from runtime_py.chat.terminal import Chat, ChatSettings, converse
    from runtime_py.text.generator import TextGenerator
    from runtime_py.text.typed_text import typed_text

    system, stop = typed_text(system, "--system"), asked.stop_texts()
    sampling = asked.sampling_of(folder)
    asked.form()  # what is wrong with it is told before the model is loaded
    variables = template_variables([typed_text(text, "--template-variable") for text in template_variable or ()])
    template = open_template(folder, chat_template)
    if variables:  # a variable that cannot be one is told before the model is loaded
        template.render([{"role": "user", "content": "Hello"}], variables=variables)
    speculate, bits = guesses(guessing.speculate), width.reading()
    announce_compilation()
    generator = TextGenerator(
        folder, "int8", execution.threads, execution.mmap, execution.cpus, adapted.names(), speculate,
        cached.cache_bits, bits,
    )  # fmt: skip
    if isinstance(template, PlainTemplate):
        print("[this model has no chat template: it continues the text of the messages]", file=sys.stderr)
    tell_unsupported(generator)
    generator.prompt_cache = caching.open(folder, generator.session, generator.interpreted)
    settings = ChatSettings(
        sampling,
        asked.max_tokens,
        stop,
        system,
        variables,
        asked.rules(generator),
        asked.stops(generator),
        asked.constraint(generator),
    )
    try:
        good = converse(Chat(generator, template, settings))
    finally:
        template.close()
        if generator.prompt_cache:
            generator.prompt_cache.close()
    if not good:
        raise SystemExit(1)


@guarded
@with_options
def serve(
    folders: Annotated[
        list[str], typer.Argument(metavar="FOLDER...", help="Model folders made by `export`; NAME=FOLDER names one.")
    ],
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: every one.")] = "127.0.0.1",
    model_name: Annotated[
        Optional[str], typer.Option(help="Name in the API of the only model; default: the folder's name.")
    ] = None,
    chat_template: TemplateFile = None,
    limits: ServeOptions = LIMITS,
    execution: Execution = AS_IT_IS,
    cached: KeyValueCache = FLOATS,
    width: Widths = FULL_WIDTHS,
    caching: PromptCaching = NO_PROMPT_CACHE,
) -> None:
    """Serve models over HTTP with the OpenAI API: chat, completions, responses, embeddings, rerank; metrics.

    Several models share --memory: they are loaded when they are asked for, and the least recently used ones leave.
    """
    from export.contract.errors import InputError

    try:
        from runtime_py.serving.opening import Opening
        from runtime_py.serving.origins import is_local
        from runtime_py.serving.page.document import chat_page
        from runtime_py.serving.server import bind
        from runtime_py.serving.server import serve as listen
    except ModuleNotFoundError as error:
        raise InputError(f"this needs the package {error.name}: pip install 'athena-export[serve]'") from None
    from runtime_py.serving.models.registry import Registry
    from runtime_py.serving.operating.logs import Log
    from runtime_py.serving.operating.metrics import Metrics
    from runtime_py.serving.settings import ServeSettings
    from runtime_py.serving.shell import Shell
    from runtime_py.serving.turns import Turns
    from runtime_py.system.memory import free_memory
    from runtime_py.text.encoder import is_encoder
    from runtime_py.text.reranker import is_reranker

    settings = ServeSettings(**asdict(replace(limits, api_key=_keys(limits.api_key))))
    named = [_named(text) for text in folders]
    several = len(named) > 1
    if model_name is not None:
        if several:
            raise InputError("--model-name is for one model; NAME=FOLDER names each of several")
        named = [(model_name, named[0][1])]
    if several and chat_template is not None:
        raise InputError("--chat-template is for one model")
    log, metrics = Log(settings.log_format), Metrics()
    opening = Opening(
        settings, metrics, Turns(), log, chat_template, execution.threads,
        True if several and execution.mmap is None else execution.mmap, execution.cpus, caching.open,
        cache_bits=cached.cache_bits, bits=width.reading(),
    )  # fmt: skip
    models = opening.models(named)
    if all(is_reranker(place) or is_encoder(place) for _, place in named):
        for option, given in (
            ("--prompt-cache", caching.prompt_cache),
            ("--cache-bits", cached.cache_bits != 16),
            ("--bits or --schedule", width.reading()),
        ):
            if given:
                raise InputError(f"{option} is for models that generate text")
    listening = bind(host, port)
    announce_compilation()
    limit = settings.memory_bytes()
    if several and limit is None:
        limit = free_memory()
    registry = Registry(models, metrics, log, limit, settings.sessions + settings.queue)
    registry.open_all()
    if not is_local(host) and not settings.keys():
        log.say("start", f"anyone who reaches {host} can use this server: --api-key asks for a key", "warning")
    shown = f"http://{'[' + host + ']' if ':' in host else host}:{listening.getsockname()[1]}"
    page = chat_page if settings.page and registry.chats() else None
    told = f"; chat page: {shown}/" if page else ""
    names = ", ".join(registry.names())
    message = f"{names} at {shown}/v1 (process {os.getpid()}{told}); Ctrl-C stops"
    listen(
        Shell(registry, settings, metrics, log, page), registry, listening, settings,
        log, lambda: log.say("start", message, plain=True, url=f"{shown}/v1", models=registry.names()),
    )  # fmt: skip


def _named(text: str) -> tuple[str, Path]:
    """(name, folder) of FOLDER or NAME=FOLDER."""
    name, equals, folder = text.partition("=")
    if equals and name and folder and not Path(text).exists():
        return name, Path(folder)
    return Path(os.path.abspath(text)).name, Path(text)  # as it was typed: a link may lead to another version later


def _keys(given: Sequence[str]) -> tuple[str, ...]:
    """The API keys, taken out of the environment: what this process starts has no use for them."""
    if given and "ATHENA_API_KEY" not in os.environ:
        print("[--api-key can be read in the list of processes; ATHENA_API_KEY cannot]", file=sys.stderr)
    os.environ.pop("ATHENA_API_KEY", None)
    return tuple(given)
