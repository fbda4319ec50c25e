"""Multiple-choice accuracy: which of several continuations of a prompt a model finds most likely.

A task file has one JSON object a line: {"prompt": text, "choices": [text, ...], "answer": index}. Two figures, as
lm-evaluation-harness defines them: `accuracy` compares the summed log probabilities, `accuracy_normalized` divides each
by the continuation's length in bytes, so that long answers are not at a disadvantage.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from export.contract.errors import InputError
from export.files.access import read_text
from runtime_py.system.finite import checked_logits
from runtime_py.text.tokenizing import encode
from toolchain.evaluate.perplexity import Scorer
from toolchain.system.progress import Reporter


@dataclass(frozen=True)
class Question:
    """A prompt, its continuations, and which of them is right."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceResult:
    """Shares of questions answered rightly, with binomial standard errors."""

    questions: int
    accuracy: float
    accuracy_stderr: float
    accuracy_normalized: float
    accuracy_normalized_stderr: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSONL file. Raises InputError naming the line that is wrong."""
    lines = read_text(path).split("\n")
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            question = Question(data["prompt"], tuple(data["choices"]), data["answer"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: needs prompt, choices and answer ({type(error).__name__}: {error})"
            ) from None
        texts = (question.prompt, *question.choices)
        if not all(isinstance(text, str) and text for text in texts) or len(question.choices) < 2:
            raise InputError(f"{path}, line {number}: prompt and at least two choices must be texts that are not empty")
        if type(question.answer) is not int or not 0 <= question.answer < len(question.choices):
            raise InputError(f"{path}, line {number}: answer must be the index of one of the choices")
        questions.append(question)
    if not questions:
        raise InputError(f"{path}: holds no questions")
    return questions


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of context and continuation, split as the whole text is tokenized.

    Spaces at the end of the context move to the continuation, where tokenizers keep them (lm-evaluation-harness).
    """
    kept = context.rstrip()
    whole = encode(tokenizer, context + continuation).ids
    start = min(len(encode(tokenizer, kept).ids), len(whole) - 1) if kept else 0
    return whole[:start], whole[start:]


def continuation_log_probability(
    scorer: Scorer, context: Sequence[int], continuation: Sequence[int]
) -> tuple[float, bool]:
    """(sum of log probabilities of the continuation's tokens in nats, whether greedy decoding would produce them).

    The context needs at least one token. Raises NotFiniteError on logits that are no numbers.
    """
    tokens = np.asarray([*context, *continuation][:-1], np.int64)
    logits = checked_logits(scorer.logits(tokens)[len(context) - 1 :]).astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    normalizer = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    wanted = np.asarray(continuation, np.int64)
    chosen = logits[np.arange(wanted.size), wanted]
    return float((chosen - normalizer).sum()), bool((logits.argmax(axis=1) == wanted).all())


def evaluate_choices(
    scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question], first_token: int, context: int,
    quiet: bool = False,
) -> ChoiceResult:  # fmt: skip
    """Answer every question. first_token: put before a prompt that gives no token of its own.

    Raises InputError when a question is longer than the context.
    """
    plain, normalized = [], []
    with Reporter("Answering", len(questions), quiet) as report:
        for number, question in enumerate(questions, start=1):
            scores, lengths = [], []
            for choice in question.choices:
                head, tail = encode_pair(tokenizer, question.prompt, choice)
                head = head or [first_token]
                if len(head) + len(tail) > context:
                    raise InputError(
                        f"question {number} has {len(head) + len(tail)} tokens, the model's context is {context}"
                    )
                scores.append(continuation_log_probability(scorer, head, tail)[0])
                lengths.append(len(choice.encode()))
            plain.append(int(np.argmax(scores)) == question.answer)
            normalized.append(int(np.argmax(np.divide(scores, lengths))) == question.answer)
            report.step("question")
    (a, a_error), (n, n_error) = (_share(plain), _share(normalized))
    return ChoiceResult(len(questions), a, a_error, n, n_error)


def _share(right: Sequence[bool]) -> tuple[float, float]:
    share = float(np.mean(right))
    return share, math.sqrt(share * (1 - share) / max(len(right) - 1, 1))
