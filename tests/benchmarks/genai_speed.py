"""Measures one onnxruntime-genai folder, in whatever environment has that package; called by speed.py.

python genai_speed.py MODEL PROMPT_LENGTHS DEPTHS DECODED_TOKENS
"""

from __future__ import annotations

import json
import sys
import time

import onnxruntime_genai as og


def measure(model: og.Model, prompt: int, decoded: int) -> tuple[float, float]:
    """Tokens per second of a prefill of `prompt` tokens and of the decode that follows."""
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=prompt + decoded + 1, min_length=prompt + decoded + 1)
    generator = og.Generator(model, params)
    start = time.perf_counter()
    generator.append_tokens([5] * prompt)
    middle = time.perf_counter()
    for _ in range(decoded):
        generator.generate_next_token()
    return prompt / (middle - start), decoded / (time.perf_counter() - middle)


def main() -> None:
    model = og.Model(sys.argv[1])
    prompts, depths = ([int(n) for n in text.split(",")] for text in sys.argv[2:4])
    measure(model, 8, 2)
    row = {f"prefill {n}": measure(model, n, 1)[0] for n in prompts}
    row |= {f"decode at {n}": measure(model, n, int(sys.argv[4]))[1] for n in depths}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
