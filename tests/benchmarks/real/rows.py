"""Rows of the table: the command that makes each, what it made, and the file that keeps it.

A row is made, then scored; each of the two is kept as soon as it is done, in tests/benchmarks/real/measured under the
row's name, with the command that made it: another command makes it again. Commands say SOURCE, FOLDER and TEXT for
paths, so that a row is found again wherever these lie.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.quality import SHARED
from tests.benchmarks.real.quality import Yard
from tests.benchmarks.running import ProgramFailed, finished

DEFAULTS = "athena, defaults"
SPEEDS_FILE = "speed.json"
CALIBRATION = SHARED / "text" / "wikitext2_valid.tokens.txt"


class CannotStore(Exception):
    """A tool does not take this model; says why in one line."""


@dataclass(frozen=True)
class Made:
    """What a command made: figures of what is stored, and of the work."""

    folder: str  # to be scored, a name in the benchmark's folder
    effective_bits: float  # everything stored for the linear layers, over their weights
    file_bytes: int  # of all that has to be shipped, tokenizer included
    seconds: float
    processor_seconds: float
    peak_bytes: int
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    kind: str  # rows of one kind are one line of the plot
    command: str
    make: Callable[[Yard], Made]


def file_name(name: str) -> str:
    """The name of the file that keeps a row: its own, in letters, digits, points and dashes."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower())) + ".json"


def words_of(command: str, yard: Yard) -> list[str]:
    """A command's words with the paths in them."""
    paths = {"SOURCE": str(yard.source), "TEXT": str(CALIBRATION)}
    return [
        paths.get(word, str(yard.folder / word[7:]) if word.startswith("FOLDER/") else word) for word in command.split()
    ]


def kept(yard: Yard) -> list[dict[str, Any]]:
    """Every row that has been measured."""
    paths = sorted(path for path in yard.measured.glob("*.json") if path.name != SPEEDS_FILE)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def run(row: Row, yard: Yard, commit: str, score: Callable[[Yard, Path], dict[str, Any]]) -> dict[str, Any]:
    """Make and score a row, as far as no earlier run has; what is now kept of it.

    A row that its tool cannot make holds `error` and no figures.
    """
    path = yard.measured / file_name(row.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    made = held.get("made", {})
    if held.get("command") != row.command or (
        "scores" not in held and not (yard.folder / made.get("folder", "")).exists()
    ):
        held = {}  # another command's, or made on a machine that is gone
    held |= {"name": row.name, "kind": row.kind, "command": row.command}

    def keep(**found: Any) -> None:
        held.update(found)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(held, ensure_ascii=False, indent=1), encoding="utf-8")
        unfinished.replace(path)

    if "made" not in held and "error" not in held:
        try:
            keep(made=asdict(row.make(yard)), commit=commit)
        except CannotStore as error:
            keep(error=str(error), commit=commit)
    if "made" in held and "scores" not in held:
        folder = held["made"]["folder"]
        keep(scores=score(yard, yard.folder / folder if folder else yard.source))
        if folder.startswith("peers/"):  # dequantized, so as large as the source in float32
            (yard.folder / folder / "model.safetensors").unlink(missing_ok=True)
    return held


def bytes_of(folder: Path) -> int:
    """All files of a model folder but reports and what this benchmark leaves there."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.name.startswith("report."))


def ours(name: str, kind: str, folder: str, options: str) -> Row:
    """A row of `athena-export export`."""
    command = f"athena-export export SOURCE -o FOLDER/{folder} {options}"

    def make(yard: Yard) -> Made:
        words = [sys.executable, "-m", "toolchain", *words_of(command, yard)[1:], "--force", "--json"]
        continued = (yard.folder / f"{folder}.partial").exists()  # a part of its time was spent before
        try:
            done = finished(words)
        except ProgramFailed as error:
            raise SystemExit(f"{command}: {error}") from None
        size = json.loads(done.printed)["size"]
        return Made(
            folder, size["effective_bits"], bytes_of(yard.folder / folder), 0.0 if continued else done.seconds,
            done.processor_seconds, done.peak_bytes,
        )  # fmt: skip

    return Row(name, kind, command, make)


def source_row() -> Row:
    """The source model itself, as float16 folder."""

    def make(yard: Yard) -> Made:
        return Made("", 16.0, bytes_of(yard.source), 0.0, 0.0, 0)

    return Row("float32 (source)", "source", "python -m tests.benchmarks.real_model SOURCE", make)


def own_rows() -> list[Row]:
    """Our rows: what a person types first, the best there is, the peers' calibration text, AQLM's form, rounding."""
    default = [ours(f"athena --bits {b}", DEFAULTS, f"default-{b}", f"--bits {b}") for b in (4, 3, 2)]
    best = [
        ours(f"athena best --budget {b}", "athena best", f"best-{b}", f"--budget {b} --preset best")
        for b in (4.1, 3.1, 2.1)
    ]
    same = [
        ours(f"athena --bits {b}, peers' text", "athena, peers' text", f"text-{b}", f"--bits {b} --calibration TEXT")
        for b in (4, 3)
    ]
    aqlm = ours("aqlm --bits 2", "aqlm", "aqlm-2", "--method aqlm --bits 2")
    rounded = ours("rtn --bits 4", "rtn", "rtn-4", "--method rtn --bits 4 --sequences 4")
    return [*default, *best, *same, aqlm, rounded]


def chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """The rows whose name is one of the texts, or holds one that is no row's name; all without any."""
    names = {row.name for row in rows}
    return [
        row
        for row in rows
        if not only or any(text == row.name or (text not in names and text in row.name) for text in only)
    ]
