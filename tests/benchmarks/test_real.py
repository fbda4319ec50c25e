"""The pure parts of the real model's benchmark: its data, its rows, its mask and its page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.benchmarks.gguf_files import gguf_name, read_gguf, write_gguf
from tests.benchmarks.real import page, peers, quality, rows
from tests.benchmarks.real_model import NoRealModel, source_folder
from tests.conftest import DEMO
from toolchain.evaluate.multiple_choice import read_questions
from toolchain.evaluate.perplexity import evaluate_spans, open_scorer

QUESTIONS = quality.HERE / "questions.jsonl"
ALL_ROWS = [rows.source_row(), *rows.own_rows(), *peers.peer_rows(Path("t"), Path("h"), Path("a"))]


def test_prompts_are_two_hundred_different_texts():
    prompts = [line["prompt"] for line in quality.lines_of(quality.HERE / "prompts.jsonl")]
    assert len(prompts) == len(set(prompts)) == 200
    assert all(prompt == prompt.strip() and prompt for prompt in prompts)


@pytest.mark.parametrize("category", quality.CATEGORIES)
def test_questions_are_balanced_and_have_one_answer_each(category):
    lines = [line for line in quality.lines_of(QUESTIONS) if line["category"] == category]
    assert len(lines) == 50 and len({line["prompt"] for line in lines}) >= 48  # "How" and "She is" open two each
    assert all(len({choice.strip().lower() for choice in line["choices"]}) == 4 for line in lines)
    assert all(choice.startswith(" ") and choice[1:] == choice[1:].strip() for q in lines for choice in q["choices"])
    assert all(line["prompt"] == line["prompt"].strip() for line in lines)
    assert max(Counter(line["answer"] for line in lines).values()) <= 13
    for line in lines:  # else the right one would win by being a part of another
        right = line["choices"][line["answer"]]
        assert not any(choice != right and choice.startswith(right) for choice in line["choices"]), line


def test_eval_reads_the_questions():
    assert len(read_questions(QUESTIONS)) == 200


SUMS = [line for line in quality.lines_of(QUESTIONS) if line["prompt"].endswith("=")]


@pytest.mark.parametrize("line", SUMS, ids=lambda line: line["prompt"].splitlines()[-1])
def test_sums_are_right(line):
    left = line["prompt"].splitlines()[-1].removesuffix("=").replace("x", "*")
    values = [eval(left) == int(choice) for choice in line["choices"]]
    assert values.index(True) == line["answer"] and sum(values) == 1


def test_ten_questions_name_words_that_count():
    lines = quality.lines_of(quality.HERE / "ten.jsonl")
    assert len(lines) == 10
    assert all(quality.is_right(f"It is {word}.", line["right"]) for line in lines for word in line["right"])
    assert not any(quality.is_right("", line["right"]) for line in lines)


@pytest.mark.parametrize(
    ("answer", "right", "found"),
    [("The capital is Paris.", "Paris", True), ("paris", "Paris", True), ("Parisian", "Paris", False),
     ("It is 14.", "4", False), ("2+2=4", "4", True), ("H2O", "H2O", True), ("", "4", False)],
)  # fmt: skip
def test_whole_words_are_right(answer, right, found):
    assert quality.is_right(answer, [right]) == found


@given(st.lists(st.integers(0, 1535), min_size=2, max_size=40), st.data())
def test_only_positions_of_the_answer_count(tokens, data):
    start = data.draw(st.integers(1, len(tokens) - 1))
    found, first = quality.answer_span(tokens, start)
    assert found.dtype == np.int64 and list(found[first + 1 :]) == tokens[start:]


@pytest.mark.parametrize("start", [-1, 0, 3, 4])
def test_an_answer_must_lie_inside(start):
    with pytest.raises(ValueError, match="an answer must begin"):
        quality.answer_span([1, 2, 3], start)


def test_kept_logits_are_computed_once(tmp_path, monkeypatch):
    tokens = np.arange(5, 25)
    first = quality.KeptLogits(DEMO, tmp_path / "kept").logits(tokens)
    assert np.array_equal(first, open_scorer(str(DEMO)).logits(tokens))
    monkeypatch.setattr(quality, "open_scorer", lambda name: pytest.fail("asked again"))
    again = quality.KeptLogits(DEMO, tmp_path / "kept")
    assert np.array_equal(again.logits(tokens), first) and again.vocab_size == first.shape[1]
    result = evaluate_spans(again, [quality.answer_span(tokens, 12)], again, quiet=True)
    assert result.kl == 0 and result.tokens == 8 and result.top1_agreement == 1


def test_greedy_ends_at_the_stop_token():
    class Counting:
        vocab_size = 9

        def logits(self, tokens):
            return np.eye(9, dtype=np.float32)[(np.asarray(tokens) + 1) % 9]

    assert quality.greedy(Counting(), [1, 2], 6, 24) == [3, 4, 5]
    assert quality.greedy(Counting(), [1, 2], 0, 3) == [3, 4, 5]
    assert quality.greedy(Counting(), [5], 6, 3) == []


def test_every_row_has_a_key_and_a_folder_of_its_own():
    assert (
        len({rows.file_name(row.name) for row in ALL_ROWS}) == len({row.command for row in ALL_ROWS}) == len(ALL_ROWS)
    )
    assert not any(row.name.split()[-1] == peers.SAME_GRID for row in ALL_ROWS)
    outputs = [row.command.split("-o ")[-1].split()[0] for row in rows.own_rows()]
    assert len(set(outputs)) == len(outputs)


def test_paths_stand_in_the_words_of_a_command(tmp_path):
    yard = quality.Yard(tmp_path, Path("/models/x"))
    words = rows.words_of("tool SOURCE -o FOLDER/a/b --calibration TEXT --bits 3", yard)
    assert words == [
        "tool",
        "/models/x",
        "-o",
        f"{tmp_path}/a/b",
        "--calibration",
        str(rows.CALIBRATION),
        "--bits",
        "3",
    ]


def test_a_row_is_made_and_scored_once(tmp_path):
    yard, calls = quality.Yard(tmp_path, DEMO, tmp_path / "measured"), []
    made = rows.Made("out", 3.0, 10, 1.0, 2.0, 3)

    def make(yard):
        calls.append("make")
        (yard.folder / "out").mkdir()
        return made

    def score(yard, folder):
        calls.append(folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"fine": True}

    row = rows.Row("a", "b", "tool a", make)
    with pytest.raises(KeyboardInterrupt):
        rows.run(row, yard, "c1", score)
    for _ in range(2):
        held = rows.run(row, yard, "c2", score)
    assert calls == ["make", tmp_path / "out", tmp_path / "out"]  # made once, scored again after the stop
    assert held["made"] == asdict(made) and held["commit"] == "c1" and held["scores"] == {"fine": True}
    assert rows.kept(yard) == [held]


@pytest.mark.parametrize(("folder", "left"), [("peers/x", False), ("ours", True)])
def test_dequantized_weights_go_once_they_are_scored(folder, left, tmp_path):
    path = tmp_path / folder / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    made = rows.Made(folder, 3.0, 10, 1.0, 2.0, 3)
    row = rows.Row("a", "b", "tool", lambda yard: made)
    yard = quality.Yard(tmp_path, DEMO, tmp_path / "measured")
    rows.run(row, yard, "c", lambda yard, scored: {"seen": (scored / "model.safetensors").exists()})
    assert path.exists() == left and rows.kept(yard)[0]["scores"] == {"seen": True}


def test_a_row_is_made_again_where_its_command_or_its_unscored_folder_is_another(tmp_path):
    yard, calls = quality.Yard(tmp_path, DEMO, tmp_path / "measured"), []

    def row(command):
        def make(yard):
            calls.append(command)
            return rows.Made("gone", 3.0, 10, 1.0, 2.0, 3)

        return rows.Row("a", "b", command, make)

    def stopped(yard, folder):
        raise KeyboardInterrupt

    for command, score in [("x", stopped), ("x", stopped), ("x", lambda *_: {}), ("x", stopped), ("y", lambda *_: {})]:
        with suppress(KeyboardInterrupt):
            rows.run(row(command), yard, "c", score)
    assert calls == ["x", "x", "x", "y"] and [held["command"] for held in rows.kept(yard)] == ["y"]


def test_kept_rows_are_those_of_the_table():
    known = {row.name: row.command for row in ALL_ROWS}
    held = rows.kept(quality.Yard(Path("none"), DEMO))
    assert held and all(known[row["name"]] == row["command"] for row in held if row["kind"] != "source")


def test_rows_are_chosen_by_their_name_or_a_part_of_it():
    def names(*only):
        return [row.name for row in rows.chosen(ALL_ROWS, only)]

    assert names("athena --bits 3") == ["athena --bits 3"] and names() == [row.name for row in ALL_ROWS]
    assert "athena --bits 3, peers' text" in names("athena --bits") and names("float32") == ["float32 (source)"]


def test_a_row_that_cannot_be_made_says_why(tmp_path):
    def make(yard):
        raise rows.CannotStore("rows of 576")

    held = rows.run(
        rows.Row("a", "b", "tool b", make),
        quality.Yard(tmp_path, DEMO, tmp_path / "measured"),
        "c",
        lambda *_: pytest.fail(),
    )
    assert held["error"] == "rows of 576" and "scores" not in held
    assert "- a: rows of 576" in page.page([held, made_row("float32", "source", 16.0, 0.0)], {}, "x", [])


def made_row(name: str, kind: str, bits: float, kl: float) -> dict:
    text = {"perplexity": 30.0, "reference_perplexity": 20.0, "kl": kl, "top1_agreement": 0.75}
    shares = dict.fromkeys((*quality.CATEGORIES, "all"), 0.5)
    ten = [{"prompt": "A | B?", "answer": " C\n\nD ", "right": True}, {"prompt": "E?", "answer": "", "right": False}]
    made = rows.Made("f" * (kind != "source"), bits, 10**8, 60.0 * (kind != "source"), 90.0, 10**9, "")
    scores = {"wikitext": text, "chat": {**text, "kl": 2 * kl}, "choices": shares, "ten": ten}
    return {"name": name, "kind": kind, "command": f"make {name}", "made": asdict(made), "commit": "abc",
            "scores": scores}  # fmt: skip


def test_the_page_and_its_plot(tmp_path):
    held = [
        made_row("three", rows.DEFAULTS, 3.06, 0.25), made_row("float32", "source", 16.0, 0.0),
        made_row("peer", "llama.cpp", 4.5, 0.179), {**made_row("unscored", "x", 2.0, 1.0), "scores": None},
    ]  # fmt: skip
    del held[-1]["scores"]  # made, not scored yet
    text = page.page(held, {"three": {"decode": 50.0, "prefill": 200.0}, "peer": {"decode": 100.0, "prefill": 100.0}},
                     "peer", ["tool: no wheel"])  # fmt: skip
    assert "| three | 3.06 | 100.0 | 1.500 | 0.2500 | - | 75.0 % | 0.5000 | 75.0 % |" in text
    assert "| three | 50.0 % | 50.0 % | 50.0 % | 50.0 % | 50.0 % | 1 of 2 |" in text
    assert "| three | 60 | 90 | 1000 | 50.0 (0.50x) | 200.0 (2.00x) |" in text
    assert "| float32 | - | - | - | - | - |" in text
    assert "| A \\| B? | C D | C D |" in text and "| E? | (nothing) | (nothing) |" in text
    assert (
        "- tool: no wheel" in text and "unscored" not in text and "4-bit grid" in text and "perplexity of 20.00" in text
    )
    assert text.index("| float32 | 16") < text.index("| peer | 4.50") < text.index("| three | 3.06")
    for line in text.splitlines():  # every table is as wide as its head
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in {9 + 1, 7 + 1, 6 + 1, 3 + 1}
    page.picture(held, tmp_path / "plot.svg")
    assert ET.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")


def test_readme_gets_its_part_between_the_marks():
    held = [made_row("float32", "source", 16.0, 0.0), made_row("three", rows.DEFAULTS, 3.1, 0.3)]
    marked = (
        "before\n" + "\nbetween\n".join("\nold\n".join(page.marks(part)) for part in page.README_PARTS) + "\nafter\n"
    )
    found = page.readme(marked, held)
    assert found.startswith("before\n") and found.endswith("\nafter\n") and "between" in found and "old" not in found
    assert "| three | 3.10 |" in found and found == page.readme(found, held)
    with pytest.raises(ValueError, match="begin"):
        page.readme("nothing", held)


def test_the_page_of_no_rows_at_all():
    assert "| row |" in page.page([], {}, "x", [])


def test_float32_gguf_and_back(tmp_path):
    pytest.importorskip("gguf")
    write_gguf(DEMO, tmp_path / "model.gguf")
    tensors, bits = read_gguf(tmp_path / "model.gguf", DEMO)
    from safetensors.numpy import load_file

    for name, value in load_file(DEMO / "model.safetensors").items():
        assert np.array_equal(tensors[name], value.astype(np.float32)), name
    assert bits == 32 and len({gguf_name(name) for name in tensors}) == len(tensors)
    assert peers.stored_as(tmp_path / "model.gguf", "F32") == ""
    assert peers.stored_as(tmp_path / "model.gguf", "Q4_0") == "28 matrices F32"


@pytest.mark.long
def test_the_real_model_is_made_alike_twice(tmp_path):
    try:
        folders = [source_folder(tmp_path / name) for name in "ab"]
    except NoRealModel as error:
        pytest.skip(str(error))
    names = {path.name for path in folders[0].iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)
    told = json.loads((folders[0] / "config.json").read_text())
    assert (told["hidden_size"], told["num_hidden_layers"], told["dtype"]) == (576, 30, "float16")
    assert "quantization_config" not in told
    assert len(Tokenizer.from_file(str(folders[0] / "tokenizer.json")).get_vocab()) == told["vocab_size"]
