"""`chat` and `serve`: conversations in the terminal and over HTTP. Need no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from toolchain.cli.common import announce_compilation, guarded, whole_numbers
from toolchain.cli.generating import (
    FrequencyPenalty,
    IgnoreEos,
    LogitBias,
    MinP,
    MinTokens,
    PresencePenalty,
    RepetitionPenalty,
    Stop,
    StopTokenIds,
    TemplateVariable,
    TokenOptions,
    check_counts,
    tell_unsupported,
    template_variables,
)

Folder = Annotated[Path, typer.Argument(help="Model folder made by `export`.")]
Threads = Annotated[Optional[int], typer.Option(help="Threads; default: every processor.")]
Cpus = Annotated[str, typer.Option(help="Processors that keep one thread each, such as 0,2.")]
Mmap = Annotated[
    Optional[bool], typer.Option("--mmap/--no-mmap", help="Map the weights or read them; default: what is faster.")
]
TemplateFile = Annotated[Optional[Path], typer.Option(help="Chat template (Jinja) instead of the model's own.")]


@guarded
def chat(
    folder: Folder,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    temperature: Annotated[
        Optional[float], typer.Option(help="0 is greedy; default: the model's own, else 0.7.")
    ] = None,
    top_k: Annotated[Optional[int], typer.Option(help="Keep the k most likely tokens; 0: all.")] = None,
    top_p: Annotated[Optional[float], typer.Option(help="Keep the most likely tokens up to this probability.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampler.")] = 0,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    frequency_penalty: FrequencyPenalty = 0.0,
    presence_penalty: PresencePenalty = 0.0,
    logit_bias: LogitBias = None,
    min_tokens: MinTokens = None,
    ignore_eos: IgnoreEos = False,
    stop_token_ids: StopTokenIds = "",
    stop: Stop = None,
    chat_template: TemplateFile = None,
    template_variable: TemplateVariable = None,
    threads: Threads = None,
    cpus: Cpus = "",
    mmap: Mmap = None,
) -> None:
    """Talk with a model. Ctrl-C stops an answer; /help lists commands.

    When the context is full, the oldest questions are dropped together with their answers; the system message stays.
    """
    from runtime_py.chat.template import PlainTemplate, open_template
    from runtime_py.chat.terminal import Chat, ChatSettings, converse
    from runtime_py.text.generator import TextGenerator, default_sampling
    from runtime_py.text.typed_text import typed_text

    system, stop = typed_text(system, "--system"), [typed_text(text, "--stop") for text in stop or ()]
    check_counts(max_tokens, min_tokens)
    sampling = default_sampling(folder, temperature, top_k, top_p, seed, min_p)
    asked = TokenOptions(
        repetition_penalty, frequency_penalty, presence_penalty, logit_bias or (), min_tokens, ignore_eos,
        stop_token_ids,
    )  # fmt: skip
    variables = template_variables([typed_text(text, "--template-variable") for text in template_variable or ()])
    template = open_template(folder, chat_template)
    if variables:  # a variable that cannot be one is told before the model is loaded
        template.render([{"role": "user", "content": "Hello"}], variables=variables)
    announce_compilation()
    generator = TextGenerator(folder, "int8", threads, mmap, whole_numbers(cpus, "--cpus"))
    if isinstance(template, PlainTemplate):
        print("[this model has no chat template: it continues the text of the messages]", file=sys.stderr)
    tell_unsupported(generator)
    settings = ChatSettings(
        sampling, max_tokens, tuple(stop), system, variables, asked.rules(generator), asked.stops(generator)
    )
    try:
        good = converse(Chat(generator, template, settings))
    finally:
        template.close()
    if not good:
        raise typer.Exit(1)


@guarded
def serve(
    folder: Folder,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: every one.")] = "127.0.0.1",
    api_key: Annotated[
        Optional[list[str]],
        typer.Option(
            envvar="ATHENA_API_KEY", show_envvar=True, help="Key that clients must send, one of them; may be repeated."
        ),
    ] = None,
    model_name: Annotated[Optional[str], typer.Option(help="Name in the API; default: the folder's name.")] = None,
    sessions: Annotated[int, typer.Option(help="Requests computed at the same time.")] = 4,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.")] = 64,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 4096,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.")] = 4 << 20,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take, waiting included.")] = 600.0,
    read_timeout: Annotated[
        float, typer.Option(help="Seconds a client has to send headers, and again the body.")
    ] = 15.0,
    connections: Annotated[int, typer.Option(help="Most open connections.")] = 512,
    allow_origin: Annotated[
        Optional[list[str]],
        typer.Option(help="Origin of web pages that may call the server, *: every one; may be repeated."),
    ] = None,
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Drop request fields that are not known instead of refusing them.")
    ] = False,
    share_prefixes: Annotated[
        bool, typer.Option(help="Requests with the same key use each other's caches, which cached_tokens tells.")
    ] = True,
    reuse_answers: Annotated[
        bool,
        typer.Option(
            help="Also reuse the cache of generated tokens: the next turn starts sooner, near ties may differ."
        ),
    ] = False,
    chat_template: TemplateFile = None,
    threads: Threads = None,
    cpus: Cpus = "",
    mmap: Mmap = None,
) -> None:
    """Serve a model over HTTP with the OpenAI API: completions, chat, streaming; embeddings for encoders; metrics."""
    from export.contract.errors import InputError, NotFiniteError

    try:
        from runtime_py.serving.app import Server
        from runtime_py.serving.embeddings import EmbeddingServer
        from runtime_py.serving.server import bind, is_local
        from runtime_py.serving.server import serve as listen
    except ModuleNotFoundError as error:
        raise InputError(f"this needs the package {error.name}: pip install 'athena-export[serve]'") from None
    from runtime_py.chat.template import PlainTemplate, open_template
    from runtime_py.serving.settings import ServeSettings
    from runtime_py.text.encoder import TextEncoder, is_encoder
    from runtime_py.text.generator import TextGenerator

    settings = ServeSettings(
        sessions, queue, max_tokens, max_body, timeout, read_timeout, connections,
        reuse_answers=reuse_answers, share_prefixes=share_prefixes, api_key=_keys(api_key),
        ignore_unknown=ignore_unknown,
        allow_origins=tuple(allow_origin or ()),
    )  # fmt: skip
    name = model_name or folder.resolve().name
    template = open_template(folder, chat_template)
    listening = bind(host, port)
    announce_compilation()
    server: Server | EmbeddingServer
    if is_encoder(folder):
        server = EmbeddingServer(TextEncoder(folder, "int8", threads), name, settings)
    else:
        generator = TextGenerator(folder, "int8", threads, mmap, whole_numbers(cpus, "--cpus"))
        try:  # compiles before a client waits
            generator.session.forward(generator.session.new_state(), [0], last_only=True)
        except NotFiniteError as error:
            print(f"[{error}: requests will fail]", file=sys.stderr)
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
    listen(
        server, listening, settings,
        lambda: print(f"{name} at {shown}/v1 (process {os.getpid()}); Ctrl-C stops", file=sys.stderr, flush=True),
    )  # fmt: skip


def _keys(given: Sequence[str] | None) -> tuple[str, ...]:
    """The API keys, taken out of the environment: what this process starts has no use for them."""
    if given and "ATHENA_API_KEY" not in os.environ:
        print("[--api-key can be read in the list of processes; ATHENA_API_KEY cannot]", file=sys.stderr)
    os.environ.pop("ATHENA_API_KEY", None)
    return tuple(given or ())
