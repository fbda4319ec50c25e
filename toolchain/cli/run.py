"""`run`: generate text from a model folder. Needs no torch."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Optional

import typer

from toolchain.cli.common import announce_compilation, guarded, print_json, whole_numbers
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
    TokenOptions,
    check_counts,
    tell_unsupported,
)


@guarded
def run(
    folder: Annotated[Path, typer.Argument(help="Model folder made by `export`.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "Once upon a time",
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the most likely tokens up to this probability.")] = 1.0,
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
    threads: Annotated[Optional[int], typer.Option(help="Threads; default: every processor.")] = None,
    activations: Annotated[str, typer.Option(help="int8, or float32 (slow, for comparison).")] = "int8",
    cpus: Annotated[str, typer.Option(help="Processors that keep one thread each, such as 0,2.")] = "",
    mmap: Annotated[
        Optional[bool], typer.Option("--mmap/--no-mmap", help="Map the weights or read them; default: what is faster.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Stream a continuation of --prompt.

    Penalties and forbidden tokens of the model's generation_config.json hold unless an option says otherwise.
    """
    from runtime_py.text.generator import TextGenerator
    from runtime_py.text.sampling import SamplingSettings
    from runtime_py.text.typed_text import typed_text

    prompt, stop = typed_text(prompt, "--prompt"), [typed_text(text, "--stop") for text in stop or ()]
    check_counts(max_tokens, min_tokens)
    settings = SamplingSettings(temperature, top_k, top_p, seed, min_p or 0.0)
    asked = TokenOptions(
        repetition_penalty, frequency_penalty, presence_penalty, logit_bias or (), min_tokens, ignore_eos,
        stop_token_ids,
    )  # fmt: skip
    announce_compilation()
    generator = TextGenerator(folder, activations, threads, mmap, whole_numbers(cpus, "--cpus"))
    if generator.interpreted and activations == "int8":
        print(f"[slow interpreter: {generator.interpreted}]", file=sys.stderr)
    tell_unsupported(generator)
    rules, stops = asked.rules(generator), asked.stops(generator)
    if not json:
        print(prompt, end="", flush=True)
    pieces: list[str] = []
    tokens: list[int] = []
    first = start = time.perf_counter()
    for token, text in generator.stream(prompt, settings, max_tokens, rules, stops, tuple(stop)):
        if not tokens:
            first = time.perf_counter()
        if token is not None:
            tokens.append(token)
        pieces.append(text)
        if not json:
            print(text, end="", flush=True)
    end = time.perf_counter()
    rate = (len(tokens) - 1) / (end - first) if len(tokens) > 1 else None
    if json:
        print_json(
            {
                "prompt": prompt,
                "text": "".join(pieces),
                "token_ids": tokens,
                "first_token_s": first - start,
                "tokens_per_s": rate,
            }
        )
        return
    print()
    speed = f", {rate:.0f} tokens/s" if rate else ""
    print(f"[{len(tokens)} tokens, first after {first - start:.2f} s{speed}]", file=sys.stderr)
