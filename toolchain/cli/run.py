"""`run`: generate text from a model folder. Needs no torch."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

from toolchain.cli.common import announce_compilation, guarded, print_json
from toolchain.cli.generation.generating import guesses, tell_unsupported
from toolchain.cli.parsing.spread import Place, Single, spread
from toolchain.settings.execution import (
    AS_IT_IS,
    FLOATS,
    FULL_WIDTHS,
    GUESSING,
    INT8,
    NO_ADAPTER,
    NO_PROMPT_CACHE,
    Adapted,
    Arithmetic,
    Execution,
    Guessing,
    KeyValueCache,
    PromptCaching,
    Widths,
)
from toolchain.settings.generation import CONTINUATION, GenerationSettings


@guarded
@spread
def run(
    folder: Annotated[Path, Place("Model folder made by `export`.")],
    prompt: Annotated[str, Single("Text to continue.", "--prompt")] = "Once upon a time",
    asked: GenerationSettings = CONTINUATION,
    execution: Execution = AS_IT_IS,
    arithmetic: Arithmetic = INT8,
    cached: KeyValueCache = FLOATS,
    width: Widths = FULL_WIDTHS,
    guessing: Guessing = GUESSING,
    caching: PromptCaching = NO_PROMPT_CACHE,
    adapted: Adapted = NO_ADAPTER,
    json: Annotated[bool, Single("One JSON object on stdout.", "--json")] = False,
) -> None:
    """Stream a continuation of --prompt.

    Penalties and forbidden tokens of the model's generation_config.json hold unless an option says otherwise.
    """
    from runtime_py.text.generator import TextGenerator
    from runtime_py.text.typed_text import typed_text

    prompt, stop = typed_text(prompt, "--prompt"), asked.stop_texts()
    settings = asked.sampling()
    asked.form()  # what is wrong with it is told before the model is loaded
    speculate, bits = guesses(guessing.speculate), width.reading()
    announce_compilation()
    generator = TextGenerator(
        folder, arithmetic.activations, execution.threads, execution.mmap, execution.cpus, adapted.names(),
        speculate, cached.cache_bits, bits,
    )  # fmt: skip
    if generator.interpreted and arithmetic.activations == "int8":
        print(f"[slow interpreter: {generator.interpreted}]", file=sys.stderr)
    tell_unsupported(generator)
    generator.prompt_cache = caching.open(folder, generator.session, generator.interpreted)
    rules, stops, constraint = asked.rules(generator), asked.stops(generator), asked.constraint(generator)
    pieces: list[str] = []
    tokens: list[int] = []
    first = start = time.perf_counter()
    for token, text in generator.stream(prompt, settings, asked.max_tokens, rules, stops, stop, constraint):
        if not tokens:
            first = time.perf_counter()
        if token is not None:
            tokens.append(token)
        if not json:
            print(text if pieces else prompt + text, end="", flush=True)  # behind the line on compiling, if it comes
        pieces.append(text)
    end = time.perf_counter()
    if generator.prompt_cache:
        generator.prompt_cache.close()
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
    print("" if pieces else prompt)
    speed = f", {rate:.0f} tokens/s" if rate else ""
    print(f"[{len(tokens)} tokens, first after {first - start:.2f} s{speed}]", file=sys.stderr)
