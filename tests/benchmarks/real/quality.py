"""Scores of one folder: a text that nobody was calibrated on, the model's own chat answers, questions, ten answers.

The reference is the source model in float32. What it costs to ask it is paid once: its logits are kept in the
benchmark's folder (about 10 GB for a vocabulary of 49,152), its answers beside the rows, so that every row is compared
with the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.quality import SHARED
from toolchain.calibrate.text import load_tokenizer
from toolchain.evaluate.multiple_choice import Question, evaluate_choices
from toolchain.evaluate.perplexity import Scorer, evaluate, evaluate_spans, open_scorer, windows_of

HERE = Path(__file__).resolve().parent
TEXT, TEXT_BYTES, WINDOW, WINDOWS = SHARED / "text" / "wikitext2_test.raw.txt", 300_000, 512, 40
ANSWER_TOKENS, ANSWER_BATCH = 96, 20
CATEGORIES = ("arithmetic", "facts", "grammar", "commonsense")
TEN_TOKENS = 24  # tokens of each of the ten answers
CONTEXT = 2048


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


@dataclass(frozen=True)
class Yard:
    """The source model, the folder where models and logits are made, and the one that keeps what was measured."""

    folder: Path
    source: Path
    measured: Path = HERE / "measured"  # a part of the repository: machines come and go, rows stay

    @cached_property
    def reference(self) -> Scorer:
        return KeptLogits(self.source, self.folder / "reference")

    @cached_property
    def windows(self) -> np.ndarray:
        """int64 [WINDOWS, WINDOW] of WikiText-2's test text."""
        text = TEXT.read_bytes()[:TEXT_BYTES].decode("utf-8", errors="ignore")
        return windows_of(text, load_tokenizer(self.source), WINDOW, WINDOWS, str(TEXT))

    @cached_property
    def answers(self) -> list[tuple[np.ndarray, int]]:
        """The source model's own answers, as evaluate_spans() takes them: only the positions of the answer count."""
        path = self.measured / "answers.jsonl"
        if not path.exists():
            prompts = [line["prompt"] for line in lines_of(HERE / "prompts.jsonl")]
            made = own_answers(self.source, prompts)
            path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made), encoding="utf-8")
        return [answer_span(one["tokens"], one["start"]) for one in lines_of(path)]


def answer_span(tokens: Sequence[int], start: int) -> tuple[np.ndarray, int]:
    """A conversation whose answer begins at token `start`: that token is predicted at the position before it."""
    if not 0 < start < len(tokens):
        raise ValueError(f"an answer must begin after token 0 and before token {len(tokens)}, not at {start}")
    return np.asarray(tokens, np.int64), start - 1


class KeptLogits:
    """A model's logits, float32 as files: computed when they are first asked for."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._scorer: Scorer | None = None
        self.vocab_size = json.loads((source / "config.json").read_text())["vocab_size"]

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [T] -> float32 [T, vocabulary]."""
        path = self._folder / f"{hashlib.sha256(np.asarray(tokens, np.int64).tobytes()).hexdigest()[:24]}.npy"
        if not path.exists():
            self._scorer = self._scorer or open_scorer(str(self._source))
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part.npy")
            np.save(unfinished, self._scorer.logits(tokens))
            unfinished.replace(path)
        return np.load(path)


def own_answers(source: Path, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """What the source model answers, in its chat template, sampled at temperature 1: {prompt, answer, tokens, start}.

    Samples, because their mean KL is an estimate without bias of the KL between the two models' whole answers.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    stop = tokenizer.eos_token_id
    made: list[dict[str, Any]] = []
    for at in range(0, len(prompts), ANSWER_BATCH):
        asked = [chat_tokens(tokenizer, prompt) for prompt in prompts[at : at + ANSWER_BATCH]]
        length = max(map(len, asked))
        ids = torch.tensor([[stop] * (length - len(tokens)) + tokens for tokens in asked])
        mask = torch.tensor([[0] * (length - len(tokens)) + [1] * len(tokens) for tokens in asked])
        torch.manual_seed(at)
        written = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=ANSWER_TOKENS, do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, repetition_penalty=1.0, pad_token_id=stop, eos_token_id=stop,
        )[:, length:]  # fmt: skip
        for prompt, tokens, answer in zip(prompts[at:], asked, written.tolist()):
            answer = answer[: answer.index(stop) + 1] if stop in answer else answer
            text = tokenizer.decode(answer, skip_special_tokens=True)
            made.append({"prompt": prompt, "answer": text, "start": len(tokens), "tokens": tokens + answer})
        print(f"answers: {len(made)} of {len(prompts)}", flush=True)
    return made


def chat_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """A user's prompt in the chat template, up to where the answer begins."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def greedy(scorer: Scorer, tokens: Sequence[int], stop: int, most: int) -> list[int]:
    """The most likely continuation of token ids, without the stop token; at most `most` tokens."""
    found: list[int] = []
    while len(found) < most:
        best = int(scorer.logits(np.asarray([*tokens, *found], np.int64))[-1].argmax())
        if best == stop:
            break
        found.append(best)
    return found


def is_right(answer: str, right: Sequence[str]) -> bool:
    """Whether an answer holds one of the right words, in whatever case, as a whole word."""
    words = "".join(c if c.isalnum() else " " for c in answer.lower()).split()
    return any(one.lower() in words for one in right)


def ten_answers(scorer: Scorer, source: Path) -> list[dict[str, Any]]:
    """Ten simple questions as a person would ask them: {prompt, answer, right}."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    found = []
    for one in lines_of(HERE / "ten.jsonl"):
        tokens = chat_tokens(tokenizer, one["prompt"])
        answer = tokenizer.decode(greedy(scorer, tokens, tokenizer.eos_token_id, TEN_TOKENS)).strip()
        found.append({"prompt": one["prompt"], "answer": answer, "right": is_right(answer, one["right"])})
    return found


def choices(scorer: Scorer, source: Path) -> dict[str, float]:
    """Share of questions answered rightly, by category and in all."""
    tokenizer, lines, found = load_tokenizer(source), lines_of(HERE / "questions.jsonl"), {}
    for category in CATEGORIES:
        asked = [question(one) for one in lines if one["category"] == category]
        found[category] = evaluate_choices(scorer, tokenizer, asked, 0, CONTEXT, quiet=True).accuracy
    return {**found, "all": float(np.mean([found[category] for category in CATEGORIES]))}  # as many of each


def question(line: dict[str, Any]) -> Question:
    return Question(line["prompt"], tuple(line["choices"]), line["answer"])


def scores(yard: Yard, folder: Path) -> dict[str, Any]:
    """All figures of a model folder, run with its own integer activations, or of a Hugging Face folder in float32.

    Of a model folder the text is scored a second time in float32 arithmetic: what the integer path costs.
    """
    ours = (folder / "model.onnx").exists()
    scorer = open_scorer(str(folder))
    found = {
        "wikitext": evaluate(scorer, yard.windows, yard.reference, quiet=True).to_json(),
        "chat": evaluate_spans(scorer, yard.answers, yard.reference, quiet=True).to_json(),
        "choices": choices(scorer, yard.source),
        "ten": ten_answers(scorer, yard.source),
    }
    if ours:
        exact = open_scorer(str(folder), "float32")
        found["wikitext_float32"] = evaluate(exact, yard.windows, yard.reference, quiet=True).to_json()
    return found
