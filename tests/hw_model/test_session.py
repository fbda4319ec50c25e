"""The architect's session of docs/cost.md: every line runs, and its answers are what the model says."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.toolchain.cli.test_cli import athena
from tests.toolchain.test_docs import ROOT, commands

TITLE = "## An architect's session"


def session() -> list[str]:
    text = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    block = text[text.index(TITLE) :]
    return commands(block[: block.find("\n## ", 5) if "\n## " in block[5:] else None])


def test_every_line_of_the_session_runs(tmp_path):
    """On one block of each model: the commands are the page's own."""
    lines = [line for line in session() if not line.startswith("eval")]
    assert len(lines) >= 7 and {line.split()[0] for line in lines} >= {"export", "cost", "sweep"}
    for line in lines:
        name, *arguments = shlex.split(line)
        arguments = [re.sub(r"^(bert-base|llama-2-7b)$", r"\1:1", argument) for argument in arguments]
        places = [tmp_path / a if a in ("BERT", "LLAMA-2-7B") else a for a in arguments]
        more = ["--force"] if name == "export" else []
        found = athena(name, *places, *more).stdout
        assert found
        if "--size" in line:  # of one block that fits; tests/hw_model/sizing/ has all 32
            assert int(re.search(r"rap \(arrays=(\d+)\)", found)[1]) >= 1


@pytest.mark.parametrize("line", session())
def test_the_session_is_short_enough_to_type(line):
    assert len(line) < 200
