"""Every command in README and docs parses; those of the README's list of uses run, on the bundled model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from export.graph.archs import supported_model_types
from tests.conftest import DEMO
from tests.toolchain.cli.test_cli import athena
from toolchain.cli import app

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("export", "hw_model", "runtime_py", "targets", "tests", "toolchain")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text: str) -> list[str]:
    """Arguments of every athena-export call that stands in an indented line or in backticks and names a command."""
    lines = re.findall(
        r"^    (?:\$ |\.venv/bin/|pip install .*&& )?athena-export (.+?)(?:   +#.*)?$", text, re.MULTILINE
    )
    spans = re.findall(r"`athena-export ([a-z][^`]*)`", text.replace("\n", " "))
    found = [line.split(" #")[0].rstrip(" &") for line in [*lines, *spans]]
    return [command for command in found if "..." not in command and "|" not in command.split(" > ")[0]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page):
    group = typer.main.get_command(app)
    for line in commands(page.read_text()):
        name, *arguments = shlex.split(line)
        command = group.commands[name]
        if not arguments:  # a command's name in a sentence
            continue
        command.make_context(name, arguments)  # fails on an unknown option or a value of the wrong type


def headings(page: Path) -> set[str]:
    """What a link behind # names, as GitHub makes it of a heading."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in found}


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link, part in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            to = page.parent / link if link else page
            assert to.exists(), f"{page.name}: {link}"
            assert not part or part in headings(to), f"{page.name}: {link}#{part}"


def test_every_source_that_a_page_names_is_there():
    """A page may leave out the folders that it talks about; capitals stand for any name, models/ is transformers'."""
    sources = ["/" + path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*.py")]
    for page in PAGES:
        for name in re.findall(r"`(?!models/)([a-z0-9_/]+\.py)`", page.read_text(encoding="utf-8")):
            assert any(path.endswith("/" + name) for path in sources), f"{page.name}: {name}"


def test_every_test_that_a_page_names_is_there():
    sources = [(path.name, path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py")]
    files = {name for name, _ in sources}
    functions = {name for _, text in sources for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}
    for page in (*PAGES, ROOT / "SECURITY.md"):
        named = set(re.findall(r"\btest_\w+(?:\.py)?", page.read_text(encoding="utf-8")))
        assert named <= functions | files, f"{page.name}: {sorted(named - functions - files)}"


def test_every_feature_beside_others_names_a_test_or_says_that_there_is_none():
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    part = text[text.index("## Beside other servers") :].split("\n## ")[0]
    rows = [row.strip("|").split("|") for row in re.findall(r"^\|.*\|$", part, re.MULTILINE)[2:]]
    assert len(rows) > 20 and all(len(row) == 5 and all(cell.strip() for cell in row) for row in rows)
    for _, ours, *_ in rows:
        said = ours.strip()
        assert re.fullmatch(r"yes\b.*: `test_\w+`", said) or re.match(r"no, `none`", said), said


def test_every_row_of_the_attacks_names_a_test_but_those_that_say_so():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\|$", text[text.index("## Attacks by kind") :], re.MULTILINE)[2:]
    assert [row for row in rows if "`test_" not in row and "none yet" not in row] == []
    found = set(re.findall(r"\bF\d+\b", " ".join(rows)))
    gone = {"F11", "F14", "F22", "F36", "F45", "F46"}  # numbers that were never given
    assert found == {f"F{number}" for number in range(1, 50)} - gone


@pytest.mark.long
def test_the_readmes_uses_run(tmp_path):
    text = (ROOT / "README.md").read_text()
    block = text[text.index("## Use") :]
    wanted = commands(block[: block.index("`--budget 3.25`")])
    assert len(wanted) >= 10
    (tmp_path / "FILE").write_text((ROOT / "README.md").read_text())
    athena("export", DEMO, "-o", tmp_path / "OUT2", "--method", "rtn", "--sequences", 4)
    for line in wanted:
        name, *arguments = shlex.split(line)
        if name in ("serve", "chat", "embed"):  # tests of their own
            continue
        folders = ("OUT", "OUT2", "OUT3", "OUT4", "SMALLER", "LONG")
        places = {"MODEL": DEMO, "FILE": tmp_path / "FILE"} | {n: tmp_path / n for n in folders}
        places["20ms"] = "80us"  # the bundled model keeps within the time that README's line has
        places["1024"] = "256"  # and it has 512 positions
        more = ["--preset", "fast", "--sequences", "8"] if name == "export" else []
        more += (
            ["--rounds", "1", "--tokens", "2", "--prompt-lengths", "16", "--depths", "16"] if name == "bench" else []
        )
        if name == "shrink":
            more = ["--population", "2", "--generations", "1", "--children", "1", "--sequences", "4"]
        assert athena(name, *(places.get(a, a) for a in arguments), *more).stdout


def test_the_table_of_families_names_them_all():
    """Its cells come from `make test-conformity`; here only that none is missing or failed."""
    for page in (ROOT / "README.md", ROOT / "docs" / "families.md"):
        rows = re.findall(r"^\| ([\w-]+) \| ((?:yes|partly \(1\)|-) \|.*)$", page.read_text(), re.MULTILINE)
        assert {family for family, _ in rows} >= set(supported_model_types())
        known = {"yes", "partly(1)", "yes(2)", "no(3)", "-"}  # the page says what the numbers stand for
        assert all(set(cells.replace(" ", "").strip("|").split("|")) <= known for _, cells in rows)
