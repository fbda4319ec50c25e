"""The architect's session in docs/cost.md: every line of its table is run, and gives what the table says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tests.toolchain.cli.test_cli import athena, athena_json

DOCS = Path(__file__).resolve().parents[2] / "docs"


def lines() -> list[tuple[list[str], float]]:
    """Options and perplexities of the table "what does 3-bit ENOB cost in accuracy"."""
    text = (DOCS / "cost.md").read_text()
    part = text[text.index("### What does 3-bit ENOB cost in accuracy?") :]
    part = part[: part.index("\n\n**")]
    rows = re.findall(r"^\| `([^`]+)`[^|]*\| ([0-9,.e+]+) \|", part, re.MULTILINE)
    return [(shlex.split(options), float(value.replace(",", ""))) for options, value in rows]


def test_the_session_has_its_lines():
    found = lines()
    assert len(found) >= 6 and any("rows_active=15" in " ".join(options) for options, _ in found)


@pytest.mark.long
def test_what_three_bits_of_enob_cost(tmp_path):
    athena("export", DEMO, "-o", tmp_path / "OUT", "--preset", "fast", "--bits", 3, "--sequences", 32,
           "--sequence-length", 128)  # fmt: skip
    for options, stated in lines():
        found = athena_json("eval", tmp_path / "OUT", "--text", "held-out", "--window", 128, "--limit", 4, *options)
        lost = stated > 1000  # a model that says nothing: the figure hangs on the last bit of a sum
        assert found["perplexity"] == pytest.approx(stated, rel=0.02) or (lost and found["perplexity"] > 300), options
