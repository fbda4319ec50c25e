"""Target files: all that ship are valid; every kind of mistake names the file and the line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from export.contract.errors import InputError
from hw_model.estimate import open_target
from targets import KINDS, TargetError, load_target, target_names
from targets.lowering import open_lowering
from toolchain.cli.cost import targets

GOOD = """kind = "cpu"
summary = "test"
[constants]
memory_bandwidth = { value = 1e9, unit = "byte/s", source = "x", tag = "assumed" }
compute_rate = { value = 1e9, unit = "op/s", source = "x", tag = "assumed" }
board_power = { value = 1, unit = "W", source = "x", tag = "assumed" }
"""


def test_shipped_targets_load_with_sources():
    assert {"rpi5", "attentionlego"} <= set(target_names())
    for name in target_names():
        target = load_target(name)
        assert target.summary and set(target.constants) == set(KINDS[target.kind])
        for constant in target.constants.values():
            assert constant.source
            low, high = constant.low or constant.value, constant.high or constant.value
            assert low <= constant.value <= high


def test_users_own_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_target(str(path))["board_power"] == 1


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('unit = "W"', 'unit = "kW"', r"line 6: board_power must be in W, not 'kW'"),
        ('value = 1, unit = "W", source = "x"', 'value = 1, unit = "W"', "line 6: board_power has no source"),
        ('tag = "assumed" }\ncompute', 'tag = "guess" }\ncompute', "line 4: memory_bandwidth must have a tag"),
        ("board_power", "bored_power", "board_power is missing"),
        ('kind = "cpu"', 'kind = "gpu"', "line 1: kind must be one of cpu"),
        ("summary =", "sumary =", "line 2: sumary is not a known field"),
        ("value = 1,", "value = -1,", "line 6: board_power value must be a number"),
        ("value = 1,", "valeu = 1,", "line 6: board_power has an unknown key 'valeu'"),
        ("[constants]", "[constants", "not valid TOML"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, old, new, message):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(TargetError, match=message) as error:
        load_target(str(path))
    assert str(path) in str(error.value)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(TargetError, match="choose one of a100, attentionlego, bitplane, .*, tender, or give"):
        load_target("abacus")


def listed(capsys) -> list[dict]:
    targets(json=True)
    return json.loads(capsys.readouterr().out)["targets"]


def test_the_list_holds_what_cost_and_lower_accept_and_nothing_else(capsys):
    """Every name of the list by the function that the command opens it with, and both commands' own lists of names."""
    by_use = {use: {e["name"]: e["summary"] for e in listed(capsys) if e["use"] == use} for use in ("cost", "lower")}
    assert by_use["cost"] == {name: open_target(name).summary for name in by_use["cost"]}
    assert by_use["lower"] == {name: open_lowering(name)["summary"] for name in by_use["lower"]}
    assert all(summary and "\n" not in summary for uses in by_use.values() for summary in uses.values())
    with pytest.raises(InputError, match=f"choose one of {', '.join(by_use['cost'])}, or give"):
        open_target("abacus")
    with pytest.raises(ValueError, match=f"there are {', '.join(by_use['lower'])}, or a file"):
        open_lowering("abacus")


def test_the_list_for_people(capsys):
    """One line a target in a pipe; in a terminal of 80 columns no line is wider, and no word is lost."""
    entries = listed(capsys)
    targets(json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(None, 2) for line in lines] == [[e["name"], e["use"], e["summary"]] for e in entries]
    terminal, side = pty.openpty()
    command = [sys.executable, "-c", "from toolchain.cli.cost import targets; targets(json=False)"]
    with subprocess.Popen(command, stdout=side, env={**os.environ, "COLUMNS": "80"}) as process:
        os.close(side)
        shown = b""
        while process.poll() is None or shown.count(b"\n") < len(entries):
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the other side is closed
                break
    wrapped = shown.decode().replace("\r", "").splitlines()
    assert len(wrapped) > len(entries) and max(map(len, wrapped)) <= 80
    assert " ".join(" ".join(wrapped).split()) == " ".join(" ".join(lines).split())
