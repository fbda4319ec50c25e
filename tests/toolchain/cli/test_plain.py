"""Arguments that are understood without typer mean what typer makes of them; what is in doubt is typer's."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.cli import app
from toolchain.cli.parsing.plain import understood
from toolchain.cli.run import run

RUN = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
FLAGS = sorted({flag for one in RUN.params for flag in (*one.opts, *one.secondary_opts) if flag.startswith("--")})
VALUES = st.one_of(
    st.integers(-(10**19), 10**19).map(str),
    st.floats(width=32).map(str),
    st.sampled_from(["", "0", "-0", "+1", "007", "1_0", " 1", "1.", ".5", "1e3", "nan", "inf", "auto", "--", "-"]),
    st.sampled_from(["--json", "a=b", "0,2"]),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=6),
    st.sampled_from(["\ud800", "x\udcff"]),
)  # fmt: skip


def by_typer(arguments: list[str]) -> dict[str, object] | None:
    """What typer calls the command with; None where it refuses, or answers on its own."""
    try:
        context = RUN.make_context("run", list(arguments))
    except (SystemExit, Exception):
        return None
    found = dict(context.params)
    found.pop("help_all", None)
    return {name: value or None if isinstance(value, (list, tuple)) else value for name, value in found.items()}


def words(option: tuple[str, str, int]) -> list[str]:
    flag, value, form = option
    return [[flag, value], [f"{flag}={value}"], [flag]][form]


options = st.tuples(st.sampled_from([*FLAGS, "--unknown", "-o"]), VALUES, st.integers(0, 2)).map(words)


@settings(max_examples=300, deadline=None)
@given(before=st.lists(options, max_size=3), places=st.lists(VALUES, max_size=2), after=st.lists(options, max_size=2))
def test_what_is_understood_is_what_typer_reads(before, places, after):
    arguments = [word for option in before for word in option] + places + [word for option in after for word in option]
    found = understood(run, arguments)
    if found is not None:
        assert found == by_typer(arguments)
        assert {name: type(value) for name, value in found.items()} == {
            name: type(value) for name, value in (by_typer(arguments) or {}).items()
        }


@pytest.mark.parametrize(
    "arguments",
    [
        ["OUT"],
        ["OUT", "--max-tokens", "1"],
        ["--json", "OUT", "--prompt", "Es war einmal ein Bär", "--temperature=0.7", "--stop", "a", "--stop", "b"],
        ["OUT", "--no-mmap", "--cpus", "0,1", "--logit-bias", "13=-5", "--seed", "3"],
    ],
)
def test_usual_arguments_are_understood(arguments):
    found = understood(run, arguments)
    assert found is not None and found == by_typer(arguments) and found["folder"] == Path("OUT")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["OUT", "OTHER"],
        ["--help"],
        ["OUT", "--help-all"],
        ["OUT", "--max-tokens", "x"],
        ["OUT", "--max-tokens"],
        ["OUT", "--max-tokens", "1", "--max-tokens", "2"],
        ["OUT", "--json=1"],
        ["OUT", "--", "--json"],
        ["OUT", "--unknown"],
        ["OUT", "--prompt", ""],
    ],
)
def test_what_is_in_doubt_is_left_to_typer(arguments):
    assert understood(run, arguments) is None
