"""What holding an answer to a form costs.

python -m tests.benchmarks.structured OUT [--rounds 4] [--tokens 40] [--threads 1]

Of each schema, in interleaved rounds: answers under it, and free answers of as many tokens on the same prompt. Printed
are processor milliseconds a token of both, medians over the rounds, and their ratio; compiling is timed apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from runtime_py.structured import forms
from runtime_py.structured.compiler import Compiler
from runtime_py.text.generation import GenerationRequest
from runtime_py.text.generator import TextGenerator
from runtime_py.text.sampling import SamplingSettings

TEXTS = {"type": "array", "items": {"type": "string", "minLength": 40}, "minItems": 50}
RECORDS = {
    "type": "array", "minItems": 50,
    "items": {
        "type": "object", "additionalProperties": False, "required": ["name", "age", "tags", "kind"],
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0},
                       "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
                       "kind": {"enum": ["first", "second", "third"]}},
    },
}  # fmt: skip
PROMPT = "The answer as JSON:\n"


def milliseconds(generator: TextGenerator, tokens: int, constraint: object) -> float:
    """Of processor time for each token behind the first, whose prompt counts for itself."""
    request = GenerationRequest(
        tuple(generator.encode(PROMPT)), SamplingSettings(temperature=0.8, seed=1), tokens, constraint=constraint
    )
    begin, count = 0.0, 0
    for token, _ in generator.answer(request):
        if token is not None:
            begin, count = (time.process_time(), 0) if not begin else (begin, count + 1)
            end = time.process_time()
    return 1000 * (end - begin) / max(count, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    generator = TextGenerator(options.folder, threads=options.threads)
    compiler = Compiler(generator.tokenizer, generator.session.vocab_size)
    try:
        milliseconds(generator, 4, None)
        for name, schema in (("texts", TEXTS), ("records", RECORDS)):
            start = time.perf_counter()
            compiled = compiler.compile(forms.schema(schema, name))
            seconds = time.perf_counter() - start
            held, free = [], []
            for _ in range(options.rounds):
                held.append(milliseconds(generator, options.tokens, compiled.constraint))
                free.append(milliseconds(generator, options.tokens, None))
            a, b = statistics.median(held), statistics.median(free)
            print(f"{name}: compiled in {seconds:.2f} s; {a:.3f} ms a token, free {b:.3f}: {a / b:.3f}", flush=True)
    finally:
        compiler.close()


if __name__ == "__main__":
    main()
