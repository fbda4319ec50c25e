"""Bytes that are no UTF-8, terminals that cannot show a text, and two servers on one port: one line, no crash."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from export.contract.errors import InputError
from runtime_py.serving.server import bind
from runtime_py.text.typed_text import typed_text
from tests.conftest import DEMO

ROOT = Path(__file__).resolve().parents[3]
LOCALES = {
    "utf-8": {"PYTHONUTF8": "1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin": {"PYTHONIOENCODING": "latin-1"},
}


def python(program: str, locale: str, *arguments: bytes) -> tuple[int, bytes, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("LC_ALL", "LANG", "PYTHONIOENCODING", "PYTHONUTF8")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env={**kept, "PYTHONPATH": str(ROOT), **LOCALES[locale]},
        capture_output=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


TYPED = "import sys; from runtime_py.text.typed_text import typed_text; print(ascii(typed_text(sys.argv[1], 'it')))"


@pytest.mark.parametrize("locale", ["utf-8", "C"])
def test_the_text_is_the_same_in_every_locale(locale):
    status, out, error = python(TYPED, locale, "Grüße 世界 😀".encode())
    assert (status, out.decode().strip()) == (0, ascii("Grüße 世界 😀")), error


@pytest.mark.parametrize("text", [b"\xff\xfe", b"ok \xc3", b"\xed\xa0\x80", "Grüße".encode("latin-1"), b"\xf0\x9f\x98"])
def test_other_bytes_are_refused(text):
    with pytest.raises(InputError, match="--prompt is not UTF-8 text"):
        typed_text(os.fsdecode(text), "--prompt")


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_half_pairs_are_refused(text):
    with pytest.raises(InputError):
        typed_text(text, "--prompt")


MAIN = "import sys; from toolchain import cli; from toolchain.cli import main; sys.argv = ['x', *sys.argv[1:]]; main()"


@pytest.mark.parametrize(
    "command, option, locale",
    [
        ("run", b"--prompt", "C"), ("run", b"--prompt", "utf-8"), ("run", b"--stop", "utf-8"),
        ("chat", b"--system", "utf-8"), ("embed", b"--text", "C"),
    ],
)  # fmt: skip
def test_options_that_are_no_text_end_in_one_line(command, option, locale):
    status, _, error = python(MAIN, locale, command.encode(), str(DEMO).encode(), option, b"a\xff\xfe")
    assert status == 2 and error.splitlines() == [f"athena-export: {option.decode()} is not UTF-8 text"]


@pytest.mark.parametrize("locale", LOCALES)
def test_what_a_terminal_cannot_show_is_replaced(locale):
    program = "from toolchain import cli; cli.app = lambda: print('Gr\\xfc\\xdfe \\u4e16 \\udcff'); cli.main()"
    status, out, error = python(program, locale)
    assert status == 0 and out.startswith(b"Gr") and out.strip().endswith(b"?") and error == ""


def test_lines_of_a_chat_that_are_no_text_end_nothing():
    program = """
from runtime_py.chat.terminal import converse
class Chat:
    def answer(self, text, show):
        show(text)
        return "note"
converse(Chat())
"""
    kept = {k: v for k, v in os.environ.items() if k not in ("LC_ALL", "LANG")}
    for locale in ("utf-8", "C"):
        done = subprocess.run(
            [sys.executable, "-c", program], env={**kept, "PYTHONPATH": str(ROOT), **LOCALES[locale]},
            input=b"one\n\xff\xfe\ntwo\n", capture_output=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, b"one\ntwo\n"), done.stderr
        assert b"athena-export: the message is not UTF-8 text" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
def test_a_second_server_on_a_port_is_told_at_once(host):
    try:
        first = bind(host, 0)
    except InputError:
        pytest.skip(f"no {host} here")
    with first:
        port = first.getsockname()[1]
        for other in {host, "127.0.0.1" if host != "::1" else host}:
            with pytest.raises(InputError, match=f"cannot listen on {other}:{port}"):
                bind(other, port)
    bind(host, port).close()  # free again


@pytest.mark.parametrize("host", ["ü..x", "a" * 300, "a\nb", "", "\ud800", "a\0b", "1.2.3.4.5", ":::", "[::1"])
def test_names_that_are_no_hosts_are_one_line(host):
    try:
        bind(host, 0).close()  # "" is every address
    except InputError as error:
        assert "cannot listen on" in str(error) and "\n" not in str(error)


def test_both_bound_before_either_listens():
    """What two servers that start together can come to: the second has to notice before it loads its model."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        with bind("127.0.0.1", other.getsockname()[1]), pytest.raises(OSError):
            other.listen()


OPENS = """
import os, sys
from toolchain import cli
def app():
    print("shown")
    print("told", file=sys.stderr)
    handle = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
    os.write(2, b"what a library says there")
    os.write(1, b"and there")
    os.write(handle, b"data")
cli.app = app
cli.main()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("streams", ["", "<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(streams, tmp_path):
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-c", OPENS, str(tmp_path / "kept")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, (tmp_path / "kept").read_bytes()) == (0, b"data"), done.stderr


@pytest.mark.parametrize("arguments", [["targets"], ["inspect", str(DEMO)]])
def test_a_current_folder_that_was_deleted(arguments, tmp_path):
    command = 'mkdir gone && cd gone && rmdir ../gone && exec "$PYTHON" -m toolchain "$@"'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *arguments], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
