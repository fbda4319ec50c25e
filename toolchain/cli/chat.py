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
from toolchain.cli.generating import tell_unsupported, template_variables
from toolchain.cli.signature import with_options
from toolchain.settings.execution import AS_IT_IS, GUESSING, NO_PROMPT_CACHE, Execution, Guessing, PromptCaching
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
    guessing: Guessing = GUESSING,
    caching: PromptCaching = NO_PROMPT_CACHE,
) -> None:
    """Talk with a model. Ctrl-C stops an answer; /help lists commands.

    When the context is full, the oldest questions are dropped together with their answers; the system message stays.
    """
    from runtime_py.chat.template import PlainTemplate, open_template
    from runtime_py.chat.terminal import Chat, ChatSettings, converse
    from runtime_py.speculation.speculation import checked
    from runtime_py.text.generator import TextGenerator
    from runtime_py.text.typed_text import typed_text

    system, stop = typed_text(system, "--system"), asked.stop_texts()
    sampling = asked.sampling_of(folder)
    asked.form()  # what is wrong with it is told before the model is loaded
    variables = template_variables([typed_text(text, "--template-variable") for text in template_variable or ()])
    template = open_template(folder, chat_template)
    if variables:  # a variable that cannot be one is told before the model is loaded
        template.render([{"role": "user", "content": "Hello"}], variables=variables)
    checked(guessing.speculate)
    cold = announce_compilation()
    generator = TextGenerator(folder, "int8", execution.threads, execution.mmap, execution.cpus, guessing.speculate)
    if cold:
        generator.speculation.compile()
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
        raise typer.Exit(1)


@guarded
@with_options
def serve(
    folder: Folder,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: every one.")] = "127.0.0.1",
    model_name: Annotated[Optional[str], typer.Option(help="Name in the API; default: the folder's name.")] = None,
    chat_template: TemplateFile = None,
    limits: ServeOptions = LIMITS,
    execution: Execution = AS_IT_IS,
    caching: PromptCaching = NO_PROMPT_CACHE,
) -> None:
    """Serve a model over HTTP with the OpenAI API: completions, chat, streaming; embeddings, rerank; metrics."""
    from export.contract.errors import InputError, NotFiniteError

    try:
        from runtime_py.serving.app import Server
        from runtime_py.serving.embeddings import EmbeddingServer
        from runtime_py.serving.rerank import RerankServer
        from runtime_py.serving.server import bind, is_local
        from runtime_py.serving.server import serve as listen
    except ModuleNotFoundError as error:
        raise InputError(f"this needs the package {error.name}: pip install 'athena-export[serve]'") from None
    from runtime_py.chat.template import PlainTemplate, open_template
    from runtime_py.serving.settings import ServeSettings
    from runtime_py.text.encoder import TextEncoder, is_encoder
    from runtime_py.text.generator import TextGenerator
    from runtime_py.text.reranker import Reranker, is_reranker

    settings = ServeSettings(**asdict(replace(limits, api_key=_keys(limits.api_key))))
    name = model_name or folder.resolve().name
    template = open_template(folder, chat_template)
    listening = bind(host, port)
    announce_compilation()
    server: Server | EmbeddingServer | RerankServer
    if caching.prompt_cache and (is_reranker(folder) or is_encoder(folder)):
        raise InputError("--prompt-cache is for models that generate text")
    if is_reranker(folder):
        server = RerankServer(Reranker(folder, "int8", execution.threads), name, settings)
    elif is_encoder(folder):
        server = EmbeddingServer(TextEncoder(folder, "int8", execution.threads), name, settings)
    else:
        generator = TextGenerator(folder, "int8", execution.threads, execution.mmap, execution.cpus)
        try:  # compiles before a client waits
            first, second = (generator.session.new_state() for _ in range(2))
            generator.session.forward(first, [0], last_only=True)
            if (limits.sessions > 1 or limits.speculate != "off") and not generator.interpreted:
                generator.session.step([first, second], [0, 0])
        except NotFiniteError as error:
            print(f"[{error}: requests will fail]", file=sys.stderr)
        generator.prompt_cache = caching.open(folder, generator.session, generator.interpreted)
        server = Server(generator, template, name, settings)
        tell_unsupported(generator)
        if generator.recommended:
            names = ", ".join(f"{name} {value:g}" for name, value in sorted(generator.recommended.items()))
            print(f"[the model recommends {names}: requests have to ask for it]", file=sys.stderr)
        if isinstance(template, PlainTemplate):
            print("[this model has no chat template: chat continues the text of the messages]", file=sys.stderr)
    if not is_local(host) and not settings.keys():
        print(f"[anyone who reaches {host} can use this server: --api-key asks for a key]", file=sys.stderr)
    shown = f"http://{'[' + host + ']' if ':' in host else host}:{listening.getsockname()[1]}"
    page = f"; chat page: {shown}/" if settings.page and isinstance(server, Server) else ""
    listen(
        server, listening, settings,
        lambda: print(
            f"{name} at {shown}/v1 (process {os.getpid()}{page}); Ctrl-C stops", file=sys.stderr, flush=True
        ),
    )  # fmt: skip


def _keys(given: Sequence[str]) -> tuple[str, ...]:
    """The API keys, taken out of the environment: what this process starts has no use for them."""
    if given and "ATHENA_API_KEY" not in os.environ:
        print("[--api-key can be read in the list of processes; ATHENA_API_KEY cannot]", file=sys.stderr)
    os.environ.pop("ATHENA_API_KEY", None)
    return tuple(given)
