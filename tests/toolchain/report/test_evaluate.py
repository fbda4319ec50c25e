"""Perplexity with and without stride, multiple choice, and the harness's own answer for the same questions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from typer.testing import CliRunner

from export.contract.errors import InputError, NotFiniteError
from tests.conftest import DEMO
from tests.runtime_py.tiny import write_tiny
from toolchain.cli import app
from toolchain.evaluate.multiple_choice import (
    Question,
    continuation_log_probability,
    encode_pair,
    evaluate_choices,
    read_questions,
)
from toolchain.evaluate.perplexity import evaluate, evaluate_spans, open_scorer, perplexity_of, windows_of
from toolchain.report import model_report as reports
from toolchain.report.compare import Line, compare
from toolchain.report.page import render
from toolchain.system.units import engineering, figure, size_text

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


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 70), st.floats(0, 30), st.floats(-200, 200),
    st.sampled_from([0, 1e-4, 1, 9]),
)  # fmt: skip
@example(0, 3, 1e4, 0.0, 1)
def test_figures_are_those_of_float64(seed, count, spread, shift, noise):
    """Losses, KL and agreement of logits of any scale, some of them ruled out, against the textbook in float64."""
    rng = np.random.default_rng(seed)
    wanted = (rng.standard_normal((count + 1, 300)) * spread + shift).astype(np.float32)
    given_ = (wanted + rng.standard_normal(wanted.shape) * noise - shift / 3).astype(np.float32)
    targets = rng.integers(0, 299, count + 1)
    for logits in (wanted, given_):
        logits[:, 299] = -np.inf
    wanted[:, 7] = np.where(targets == 7, wanted[:, 7], -np.inf)

    def log_softmax(logits):
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    class Fixed:
        vocab_size = 300

        def __init__(self, logits):
            self.logits = lambda tokens: logits

    found = evaluate_spans(Fixed(given_), [(targets, 0)], Fixed(wanted), quiet=True)
    true, predicted, rows = log_softmax(wanted[:-1]), log_softmax(given_[:-1]), np.arange(count)
    possible = np.exp(true) > 0
    terms = np.exp(true[possible]) * (true[possible] - predicted[possible])
    assert found.kl == pytest.approx(terms.sum() / count, rel=1e-9, abs=1e-10)
    assert found.nats_per_token == pytest.approx(-predicted[rows, targets[1:]].mean(), rel=1e-9, abs=1e-10)
    theirs = perplexity_of(float(-true[rows, targets[1:]].mean()))
    assert found.reference_perplexity == pytest.approx(theirs, rel=1e-8)
    assert found.top1_agreement == (wanted[:-1].argmax(axis=1) == given_[:-1].argmax(axis=1)).mean()
    assert evaluate_spans(Fixed(given_), [(targets, 0)], quiet=True).nats_per_token == found.nats_per_token


@pytest.mark.parametrize("first", [0, 5, 30, 62])
def test_only_positions_from_the_first_on_count(first):
    tokens = np.random.default_rng(first).integers(0, 64, 64)
    whole = reference_loss(tokens)
    result = evaluate_spans(TableScorer(), [(tokens, first), (tokens[:40], 0)], TableScorer(), quiet=True)
    counted = whole[first:] + whole[:39]
    assert result.tokens == len(counted) and result.windows == 2 and result.window == 64 and result.kl == 0
    assert result.nats_per_token == pytest.approx(np.mean(counted), abs=1e-6)


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
    theirs = _run_tasks(demo_folder, ["next_sentence"], tmp_path, None, "int8", 16, None)["next_sentence"]
    ours = _answer_questions(str(demo_folder), data, None, "int8", True, "", 16, None)
    assert ours.accuracy > 0.4  # chance is 0.25: the model knows what goes on in a story
    assert theirs["acc,none"] == pytest.approx(ours.accuracy, abs=1e-9)
    assert theirs["acc_norm,none"] == pytest.approx(ours.accuracy_normalized, abs=1e-9)


@pytest.mark.long
def test_generation_and_rolling_of_the_harness(demo_folder):
    pytest.importorskip("lm_eval")
    from types import SimpleNamespace

    from runtime_py.text.generator import TextGenerator
    from runtime_py.text.sampling import SamplingSettings
    from toolchain.evaluate.harness import AthenaModel

    model = AthenaModel(demo_folder)
    options = {"until": ["."], "max_gen_toks": 40}
    text = model.generate_until([SimpleNamespace(args=("Once upon a time", options))], disable_tqdm=True)[0]
    pairs = TextGenerator(demo_folder).stream("Once upon a time", SamplingSettings(), 40)
    assert text == "".join(piece for _, piece in pairs).split(".")[0]
    long = "Once upon a time there was a cat. " * 80
    assert -1e5 < model.loglikelihood_rolling([SimpleNamespace(args=(long,))], disable_tqdm=True)[0] < 0


class LossScorer:
    """A mock model whose loss is known: every token but 0 is `losses` nats less likely than 0, window by window."""

    vocab_size = 1536

    def __init__(self, losses):
        self._losses = iter(losses)

    def logits(self, tokens):
        logits = np.zeros((len(tokens), self.vocab_size), np.float32)
        loss = next(self._losses)
        logits[:, 0 if loss < np.inf else slice(1, None)] = loss if loss < np.inf else -np.inf
        return logits


LOSS = st.one_of(st.floats(0, 1e5), st.floats(700, 720), st.just(math.inf))


def strict(text: str):
    """JSON as everyone else reads it."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A model folder with a report but without pictures."""
    folder = write_tiny(tmp_path_factory.mktemp("reported") / "model", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolchain.report.page._pictures", lambda report: dict.fromkeys(PICTURES))
        reports.save_report(folder, reports.new_report(folder))
        yield folder


PICTURES = ("layers", "heat", "kinds", "energy", "roofline")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(LOSS, LOSS), min_size=1, max_size=4), st.booleans())
@example([(710.0, 710.0)], True)
@example([(math.inf, 3.0), (2.0, math.inf)], True)
@example([(1e5, 0.0), (math.inf, math.inf)], False)
def test_every_loss_has_a_figure(reported, losses, compared):
    """Means from 0 to beyond what a float's exponential holds: numbers, files, pages, tables and JSON."""
    ours, theirs = zip(*losses)
    windows = np.ones((len(losses), 8), np.int64)
    result = evaluate(LossScorer(ours), windows, LossScorer(theirs) if compared else None, quiet=True)
    expected = float(np.mean([np.logaddexp(loss, math.log(1535)) if loss < math.inf else loss for loss in ours]))
    assert result.nats_per_token == pytest.approx(expected, rel=1e-6)
    assert result.perplexity == perplexity_of(result.nats_per_token)
    assert math.isinf(result.perplexity) == (result.nats_per_token > 709.782712893384)
    assert not any(isinstance(v, float) and math.isnan(v) for v in result.to_json().values())
    reports.add_quality(reported, {**result.to_json(), "text": "text", "command": "eval"})
    strict((reported / "report.json").read_text())
    read = reports.read_report(reported)["quality"]
    assert {name: read[name] for name in result.to_json()} == result.to_json()
    assert f"<b>{figure(result.perplexity, 3)}</b>" in render(reports.read_report(reported))
    perplexity = next(line for line in compare([reported, reported]) if line.name == "perplexity")
    assert perplexity.texts == (figure(result.perplexity, 3),) * 2 and perplexity.best is None


@pytest.mark.parametrize("json_wanted", [True, False])
@pytest.mark.parametrize("losses", [(2.0, 3.0), (710.0, 5.0), (900.0, 900.0), (1e5, math.inf), (0.0, math.inf)])
def test_eval_says_what_is_infinite(losses, json_wanted, reported, monkeypatch, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    ours, theirs = losses
    scorers = iter([LossScorer([ours] * 3), LossScorer([theirs] * 3)])
    monkeypatch.setattr("toolchain.evaluate.perplexity.open_scorer", lambda *_: next(scorers))
    options = ["--text", str(tmp_path / "text.txt"), "--window", "32", "--limit", "3", "--reference", "mock"]
    done = CliRunner().invoke(app, ["eval", str(reported), *options, *(["--json"] if json_wanted else [])])
    assert done.exit_code == 0, done.output
    if json_wanted:
        found = strict(done.stdout)
        assert (found["perplexity"] is None) == (ours > 709) and found["nats_per_token"] == pytest.approx(
            np.logaddexp(ours, math.log(1535))
        )
    else:
        assert ("perplexity inf" in done.stdout) == (ours > 709)
        assert ("nats per token\n" in done.stdout.split("KL")[0]) == (ours > 709)


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_have_no_perplexity(who, bad):
    class Broken(LossScorer):
        def logits(self, tokens):
            logits = super().logits(tokens)
            logits[3, 7] = bad
            return logits

    scorers = [LossScorer([1.0, 1.0]), LossScorer([1.0, 1.0])]
    scorers[who] = Broken([1.0, 1.0])
    with pytest.raises(NotFiniteError, match=("the model gives", "the reference gives")[who]):
        evaluate(scorers[0], np.ones((2, 8), np.int64), scorers[1], quiet=True)
    with pytest.raises(NotFiniteError):
        continuation_log_probability(Broken([1.0]), [1, 2], [3, 4, 5])


@pytest.mark.parametrize("text", ["", " ", "a", "The quick"])
@pytest.mark.parametrize("window", [2, 64, 10**9])
def test_short_texts_are_refused_or_scored(text, window):
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    count = len(tokenizer.encode(text, add_special_tokens=False).ids)
    if count < window:
        with pytest.raises(InputError, match=f"text: has {count} tokens, one window needs {window}"):
            windows_of(text, tokenizer, window, None, "text")
    else:
        result = evaluate(TableScorer(), windows_of(text, tokenizer, window, None, "text"), quiet=True)
        assert result.tokens == count // window and math.isfinite(result.perplexity)


@given(st.one_of(st.none(), st.floats()), st.integers(0, 6))
def test_every_number_can_be_shown(value, places):
    assert len(figure(value, places)) < 20
    assert engineering(value, "J")
    assert value is None or size_text(value)


@given(st.lists(st.one_of(st.none(), st.floats()), min_size=2, max_size=5), st.sampled_from([True, False, None]))
def test_the_best_is_a_number_and_stands_out(values, lower):
    best = Line("x", tuple(values), ("",) * len(values), lower).best
    if best is not None:
        numbers = [v for v in values if v is not None and not math.isnan(v)]
        assert values[best] == (min(numbers) if lower else max(numbers)) and len(set(numbers)) > 1


def test_windows_longer_than_the_context_are_said(tmp_path, capsys):
    """The bundled model has 512 positions."""
    from toolchain.cli.evaluate import evaluate_folder

    (tmp_path / "text.txt").write_text("Once upon a time there was a little girl. " * 200)
    for window, said in ((512, ""), (600, "warning: windows of 600 tokens, but the model's context has 512")):
        evaluate_folder(DEMO, tmp_path / "text.txt", None, None, window, 1, False, True)
        assert said in (told := capsys.readouterr().err) and bool(said) == ("context" in told)
