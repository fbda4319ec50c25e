"""Perplexity with and without stride, multiple choice, and the harness's own answer for the same questions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tokenizers import Tokenizer

from export.errors import InputError
from tests.conftest import DEMO
from toolchain.choices import (
    Question,
    continuation_log_probability,
    encode_pair,
    evaluate_choices,
    read_questions,
)
from toolchain.evaluate import evaluate, open_scorer, windows_of

TEXT = "The quick brown fox jumps over the lazy dog and the old man sat down by the river to think. " * 12


class TableScorer:
    """Log probabilities that depend only on the position's own token: a mock model."""

    vocab_size = 1536

    def logits(self, tokens):
        return (np.asarray(tokens)[:, None] * np.arange(self.vocab_size) % 17).astype(np.float32) / 5


def reference_loss(tokens) -> list[float]:
    """Loss of each position 1.., the slow and obvious way."""
    rows = TableScorer().logits(tokens).astype(np.float64)
    return [math.log(np.exp(row).sum()) - row[token] for row, token in zip(rows[:-1], tokens[1:])]


@pytest.mark.parametrize("stride", [None, 1, 7, 31])
def test_every_position_is_scored_once(stride):
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    windows = windows_of(TEXT, tokenizer, 32, None, "text", stride)
    result = evaluate(TableScorer(), windows, TableScorer(), quiet=True, stride=stride)
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    if stride is None:
        losses = [loss for start in range(0, len(ids) - 31, 32) for loss in reference_loss(ids[start : start + 32])]
    else:  # the mock looks at one token only, so overlapping windows see the same as one long window
        losses = reference_loss(ids[: (len(windows) - 1) * stride + 32])
    assert result.tokens == len(losses)
    assert result.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-9)
    assert result.kl == 0 and result.top1_agreement == 1
    assert result.reference_perplexity == pytest.approx(result.perplexity)


def test_a_stride_needs_a_longer_window():
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    with pytest.raises(InputError, match="--stride must be 1 to 31"):
        windows_of(TEXT, tokenizer, 32, None, "text", 32)


def test_more_context_lowers_the_perplexity_of_a_real_model(demo_folder, demo_text):
    from toolchain.cli.evaluate import evaluate_folder

    plain = evaluate_folder(demo_folder, demo_text, "0.5:0.53", None, 128, None, False, True)
    strided = evaluate_folder(demo_folder, demo_text, "0.5:0.53", None, 128, None, False, True, stride=32)
    assert strided.perplexity < plain.perplexity
    assert strided.stride == 32 and plain.stride is None


def test_pairs_split_where_the_whole_text_is_tokenized():
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    head, tail = encode_pair(tokenizer, "Once upon a ", "time")
    assert head + tail == tokenizer.encode("Once upon a time").ids
    assert tokenizer.decode(head) == "Once upon a"
    assert encode_pair(tokenizer, " ", "time")[0] == []


def test_the_log_probability_of_a_continuation(demo_folder):
    scorer = open_scorer(str(demo_folder))
    total, greedy = continuation_log_probability(scorer, [1, 5, 9], [7, 11])
    logits = scorer.logits(np.array([1, 5, 9, 7])).astype(np.float64)
    expected = sum(logits[i][t] - np.log(np.exp(logits[i]).sum()) for i, t in ((2, 7), (3, 11)))
    assert total == pytest.approx(expected, rel=1e-6) and greedy in (True, False)


def test_right_answers_are_counted():
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))

    class Knows:
        vocab_size = 1536

        def logits(self, tokens):  # likes the token that equals the position's own token
            return 9 * np.eye(self.vocab_size, dtype=np.float32)[tokens]

    same, other = " the the", " of a"
    questions = [
        Question("the the", (same, other), 0),
        Question("the the", (other, same), 1),
        Question("the", (same, other), 1),
    ]
    result = evaluate_choices(Knows(), tokenizer, questions, 0, 100, quiet=True)
    assert result.accuracy == result.accuracy_normalized == pytest.approx(2 / 3)
    assert result.accuracy_stderr == pytest.approx(math.sqrt(2 / 9 / 2))
    with pytest.raises(InputError, match="question 1 has"):
        evaluate_choices(Knows(), tokenizer, questions, 0, 2, quiet=True)


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"prompt": "x"}', '{"prompt": "x", "choices": ["a"], "answer": 0}',
             '{"prompt": "x", "choices": ["a", "b"], "answer": 2}', '{"prompt": "x", "choices": ["a", 5], "answer": 0}',
             '{"prompt": "x", "choices": ["a", "b"], "answer": true}', "[" * 100000])  # fmt: skip
def test_broken_questions_name_their_line(line, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "x", "choices": ["a", "b"], "answer": 0}\n\n' + line + "\n")
    with pytest.raises(InputError, match=r"q.jsonl, line 3: "):
        read_questions(path)


def story_questions(text: str, count: int) -> list[dict]:
    """The true next sentence of a story against sentences of other stories."""
    sentences = [s.strip() for s in text.replace("\n", " ").split(". ") if 20 < len(s) < 120]
    rng = np.random.default_rng(3)
    questions = []
    for i in range(0, 4 * count, 4):
        wrong = [sentences[j] for j in rng.integers(400, len(sentences), 3)]
        choices = [" " + s + "." for s in (sentences[i + 1], *wrong)]
        order = rng.permutation(4)
        questions.append(
            {"prompt": sentences[i] + ".", "choices": [choices[k] for k in order], "answer": int(np.argmin(order))}
        )
    return questions


@pytest.mark.long
def test_a_task_of_the_harness_runs_offline_and_agrees(demo_folder, demo_text, tmp_path):
    pytest.importorskip("lm_eval")
    from toolchain.cli.evaluate import _answer_questions, _run_tasks

    questions = story_questions(demo_text.read_text(), 60)
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(q) + "\n" for q in questions))
    (tmp_path / "questions.yaml").write_text(
        f"task: next_sentence\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{prompt}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: answer\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    theirs = _run_tasks(demo_folder, ["next_sentence"], tmp_path, None, "int8")["next_sentence"]
    ours = _answer_questions(str(demo_folder), data, None, "int8", quiet=True)
    assert ours.accuracy > 0.4  # chance is 0.25: the model knows what goes on in a story
    assert theirs["acc,none"] == pytest.approx(ours.accuracy, abs=1e-9)
    assert theirs["acc_norm,none"] == pytest.approx(ours.accuracy_normalized, abs=1e-9)


@pytest.mark.long
def test_generation_and_rolling_of_the_harness(demo_folder):
    pytest.importorskip("lm_eval")
    from types import SimpleNamespace

    from runtime_py.generate import TextGenerator
    from runtime_py.sampling import SamplingSettings
    from toolchain.lm_eval_adapter import AthenaModel

    model = AthenaModel(demo_folder)
    options = {"until": ["."], "max_gen_toks": 40}
    text = model.generate_until([SimpleNamespace(args=("Once upon a time", options))], disable_tqdm=True)[0]
    pairs = TextGenerator(demo_folder).stream("Once upon a time", SamplingSettings(), 40)
    assert text == "".join(piece for _, piece in pairs).split(".")[0]
    long = "Once upon a time there was a cat. " * 80
    assert -1e5 < model.loglikelihood_rolling([SimpleNamespace(args=(long,))], disable_tqdm=True)[0] < 0
