"""What guessed tokens bring: `python -m tests.benchmarks.speculation OUT`.

Answers to the prompts of speculation_prompts.jsonl, through the model's chat template: texts that are edited or
summarized, code that is given back changed, and free ones. "begin" are an answer's first words, without which a small
model does something else than it is told. One interleaved run: every prompt is answered plainly and
with guesses in turns, as many rounds as are asked for; medians. Rates are tokens a second behind the first one. "same"
says whether both answers have the same tokens, sampled ones (--temperature) included. `--draft FOLDER` also guesses
with another model, such as this one at fewer bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime_py.chat.conversation import prompt_ids
from runtime_py.chat.template import open_template
from runtime_py.load import open_model
from runtime_py.speculation.lookup import Lookup
from runtime_py.speculation.proposer import Guess, Proposer
from runtime_py.speculation.speculation import Counts, Speculation
from runtime_py.text.generation import Generation, GenerationRequest, common_prefix
from runtime_py.text.generator import TextGenerator
from runtime_py.text.sampling import SamplingSettings

PROMPTS = Path(__file__).with_name("speculation_prompts.jsonl")
_CERTAIN = 16  # what speaks for the draft's first token


class Draft:
    """A smaller model that guesses greedily. Its own time counts, because steps wait for it."""

    def __init__(self, runner: Any, most: int) -> None:
        self._runner, self._most, self._state = runner, most, runner.new_state()
        self._known: list[int] = []

    def propose(self, tokens: Sequence[int], most: int) -> Guess:
        kept = min(common_prefix(self._known, tokens), len(tokens) - 1)
        kept = self._runner.rewind(self._state, kept)
        found: list[int] = []
        new = list(tokens[kept:])
        while len(found) < min(most, self._most):
            logits = self._runner.forward(self._state, new, last_only=True)[-1]
            found.append(int(logits.argmax()))
            new = found[-1:]
        self._known = [*tokens, *found[:-1]]
        return Guess(found, _CERTAIN)


def answer(
    generator: TextGenerator, request: GenerationRequest, speculation: Speculation | None
) -> tuple[list[int], float]:
    """The tokens, and seconds from the first to the last."""
    state = generator.session.new_state()
    generation = Generation(request, generator.session, generator.tokenizer, state, speculation=speculation)
    while not generation.tokens and not generation.finish_reason:
        list(generation.pieces())
    start = time.perf_counter()
    while not generation.finish_reason:
        list(generation.pieces())
    return generation.tokens, time.perf_counter() - start


def measure(
    generator: TextGenerator, requests: Sequence[GenerationRequest], ways: dict[str, Speculation | None], rounds: int
) -> list[dict[str, tuple[list[int], float, Counts]]]:
    """For each request and way: the tokens, the median of the seconds, and what was guessed."""
    found = []
    for request in requests:
        seconds: dict[str, list[float]] = defaultdict(list)
        tokens, counts = {}, {}
        for _ in range(rounds):
            for name, way in ways.items():
                if way:
                    way.counts = Counts()
                tokens[name], taken = answer(generator, request, way)
                seconds[name].append(taken)
                counts[name] = way.counts if way else Counts()
        found.append({name: (tokens[name], statistics.median(seconds[name]), counts[name]) for name in ways})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speculate", default="auto")
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--kinds", default="edit,summary,code,free")
    parser.add_argument("--draft", type=Path, help="a folder of the same vocabulary, such as the model at 2 bits")
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--show", action="store_true", help="print the answers")
    given = parser.parse_args()
    generator, template = TextGenerator(given.folder), open_template(given.folder, None)
    if generator.session.most_together == 1:
        raise SystemExit(f"{given.folder} computes tokens one by one: nothing is guessed")
    kinds: list[str] = []
    requests: list[GenerationRequest] = []
    for line in PROMPTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] not in given.kinds.split(","):
            continue
        ids = prompt_ids([{"role": "user", "content": row["prompt"]}], template, generator.tokenizer)
        ids += generator.tokenizer.encode(row["begin"], add_special_tokens=False).ids
        sampling = SamplingSettings(given.temperature, seed=len(kinds))
        kinds.append(row["kind"])
        requests.append(GenerationRequest(tuple(ids), sampling, given.tokens, generator.stop))
    template.close()
    proposers: dict[str, Callable[[], Proposer]] = {"look-up": Lookup}
    if given.draft:
        draft, _ = open_model(given.draft)
        proposers["draft"] = lambda: Draft(draft, given.draft_tokens)
    ways: dict[str, Speculation | None] = {"plain": None}
    ways |= {name: Speculation(generator.session, given.speculate, one) for name, one in proposers.items()}
    for way in ways.values():  # compiles, and measures what steps take
        answer(generator, requests[0], way)
    found = measure(generator, requests, ways, given.rounds)
    for name in list(ways)[1:]:
        report(name, kinds, found)
    if given.show:
        for kind, row in zip(kinds, found):
            print(f"\n--- {kind}\n{generator.tokenizer.decode(row['plain'][0])}")


def report(name: str, kinds: Sequence[str], found: Sequence[dict[str, tuple[list[int], float, Counts]]]) -> None:
    """One way beside the plain one: each kind of prompt, all of its answers together."""
    print(f"{name}:\n")
    print("| prompts | tokens | plain, tokens/s | guessed, tokens/s | ratio | each | right of guessed | same |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in dict.fromkeys(kinds):
        rows = [row for other, row in zip(kinds, found) if other == kind]
        tokens = sum(len(row["plain"][0]) - 1 for row in rows)
        plain, fast = (sum(row[way][1] for row in rows) for way in ("plain", name))
        each = ", ".join(f"{row['plain'][1] / row[name][1]:.2f}" for row in rows if row[name][1])
        guessed, right = (sum(getattr(row[name][2], field) for row in rows) for field in ("guessed", "accepted"))
        same = all(row["plain"][0] == row[name][0] for row in rows)
        share = f"{right} of {guessed}"
        rates = f"{tokens / plain:.1f} | {tokens / fast:.1f} | {plain / fast:.2f}"
        print(f"| {kind} | {tokens} | {rates} | {each} | {share} | {'yes' if same else 'NO'} |")
    print()


if __name__ == "__main__":
    main()
