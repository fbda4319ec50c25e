"""The boundary around foreign input: whatever happens within it is one printable line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from export.contract.errors import InputError, NotFiniteError, printable
from export.files.foreign import foreign
from export.files.json_shape import COUNT, FLAG, NUMBER, TEXT, Each, Maybe, check


def _panic() -> None:
    Tokenizer.from_str('{"model":{"type":"BPE","vocab":{},"merges":[]},"normalizer":'
                       '{"type":"Precompiled","precompiled_charsmap":"AAAA"}}')  # fmt: skip


def _endless() -> None:
    _endless()


def _raise(error: BaseException) -> None:
    raise error


FAILURES = {
    "panic": _panic,
    "memory": lambda: bytearray(2**62),
    "recursion": _endless,
    "overflow": lambda: float(10**400),
    "zero": lambda: 1 / 0,
    "key": lambda: {}["x"],
    "attribute": lambda: None.x,
    "assertion": lambda: _raise(AssertionError()),
    "system": lambda: Path("/nonexistent/x").read_bytes(),
    "digits": lambda: int("9" * 5000),
    "unicode": lambda: "\ud800".encode(),
    "lines": lambda: _raise(ValueError("one\ntwo\x1b[31m")),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_becomes_one_line(name, capfd):
    with pytest.raises(InputError) as caught, foreign("w.json", "is broken"):
        FAILURES[name]()
    line = str(caught.value)
    assert line.startswith("w.json: ")
    assert line == printable(line)


@pytest.mark.parametrize(
    "error",
    [InputError("x"), NotFiniteError("x"), KeyboardInterrupt(), SystemExit(3), ModuleNotFoundError("x"),
     BrokenPipeError(), OSError(errno.ENOSPC, "full")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_what_is_not_the_inputs_fault_passes(error):
    with pytest.raises(type(error)) as caught, foreign("w.json"):
        raise error
    assert caught.value is error


@given(st.text(st.characters(), max_size=200))
def test_messages_are_one_line_without_commands_for_the_terminal(text):
    shown = str(InputError(text))
    assert len(shown.splitlines()) <= 1
    shown.encode()  # no half surrogates
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["Grüße 世界 😀", "e\u0301", "שלום", "a\u200db"])
def test_other_peoples_writing_is_shown_as_it_is(text):
    assert printable(text) == text


def test_endless_names_are_cut():
    assert len(printable("x" * 10**7)) < 5000


SHAPE = {"n": NUMBER, "c": COUNT, "t": TEXT, "f?": FLAG, "m": Maybe([COUNT]), "e": Each(NUMBER), "o?": {"x": TEXT}}
GOOD = {"n": 1.5, "c": 3, "t": "x", "m": None, "e": {"a": 1}, "more": []}


@pytest.mark.parametrize("change", [{}, {"m": [1]}, {"n": -2}, {"n": float("nan")}, {"f": True}, {"o": {"x": ""}}])
def test_data_of_the_right_shape_passes(change):
    check({**GOOD, **change}, SHAPE, "a.json: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": "1"}, "a.json: n must be a number, not '1'"),
        ({"n": True}, "a.json: n must be a number, not True"),
        ({"n": 10**5000}, "a.json: n must be a number, not a whole number beyond 64 bits"),
        ({"c": -1}, "a.json: c must be a whole number, 0 or more, not -1"),
        ({"c": 1.0}, "a.json: c must be a whole number, 0 or more, not 1.0"),
        ({"c": [1]}, "a.json: c must be a whole number, 0 or more, not list"),
        ({"t": None}, "a.json: t must be a text, not None"),
        ({"f": 1}, "a.json: f must be true or false, not 1"),
        ({"m": {}}, "a.json: m must be a list, not dict"),
        ({"m": [0, "x"]}, "a.json: m[1] must be a whole number, 0 or more, not 'x'"),
        ({"e": {"\x1b": None}}, "a.json: e.\\x1b must be a number, not None"),
        ({"o": {}}, "a.json: o: x is missing"),
    ],
)
def test_data_of_another_shape_is_named(change, message):
    with pytest.raises(InputError) as caught:
        check({**GOOD, **change}, SHAPE, "a.json: ")
    assert str(caught.value) == message
