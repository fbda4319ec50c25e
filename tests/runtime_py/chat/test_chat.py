"""The terminal session: commands, Ctrl-C, context overflow, and its state between turns."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from export.contract.errors import InputError
from runtime_py.chat.template import ChatTemplate, PlainTemplate
from runtime_py.chat.terminal import Chat, ChatSettings
from runtime_py.text.generator import TextGenerator, default_sampling
from runtime_py.text.sampling import SamplingSettings

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot: {% endif %}"
)


@pytest.fixture(scope="module")
def generator(demo_folder):
    return TextGenerator(demo_folder)


def chat(generator, template=None, **settings):
    return Chat(generator, template or PlainTemplate(), ChatSettings(SamplingSettings(0.8, seed=3), **settings))


def test_answers_are_kept_and_reproducible(generator):
    texts = []
    for _ in range(2):
        talk, pieces = chat(generator, ChatTemplate(TEMPLATE, {}, "t"), max_tokens=20), []
        for question in ("Once upon a time", "And then?"):
            talk.answer(question, pieces.append)
        texts.append("".join(pieces))
        assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2
        assert talk.messages[1]["content"] in "".join(pieces)
    assert texts[0] == texts[1]


def test_the_second_turn_reads_only_what_is_new(generator):
    # greedy: sampled tokens can be others than those that the same text is cut into, and are then read again
    talk = Chat(generator, PlainTemplate(), ChatSettings(SamplingSettings(0.0), max_tokens=30))
    talk.answer("Once upon a time there was a little girl who had a ball", lambda text: None)
    seen = []
    forward = generator.session.forward

    def counted(state, tokens, last_only=False):
        seen.append(len(tokens))
        return forward(state, tokens, last_only)

    generator.session.forward = counted
    try:
        talk.answer("She", lambda text: None)
    finally:
        del generator.session.forward
    assert seen[0] < 12  # not the whole conversation again


def test_ctrl_c_stops_the_answer_and_keeps_what_came(generator):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's child ignores it
    talk, pieces = chat(generator, max_tokens=400), []

    def show(text):
        pieces.append(text)
        if len(pieces) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    note = talk.answer("Once upon a time", show)
    assert "stopped" in note and len(pieces) < 10
    assert talk.messages[-1]["content"] == "".join(pieces).strip()
    assert "stopped" not in talk.answer("The dog", lambda text: None)  # the next answer is whole
    with pytest.raises(KeyboardInterrupt):  # and Ctrl-C means what it meant before
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_a_full_context_drops_the_oldest_questions(generator):
    talk = chat(generator, max_tokens=100, system="Be kind.")
    notes = [talk.answer("Tell me a story about a dog and a cat", lambda text: None) for _ in range(8)]
    assert any("old messages dropped" in note for note in notes)
    assert talk.messages[0] == {"role": "system", "content": "Be kind."}
    assert talk.messages[1]["role"] == "user"
    before = list(talk.messages)
    with pytest.raises(InputError, match="the message has"):
        talk.answer("word " * 600, lambda text: None)
    assert talk.messages == before


def test_stop_strings_save_and_load(generator, tmp_path):
    talk = chat(generator, max_tokens=60, stop=(".",))
    talk.answer("Once upon a time", lambda text: None)
    assert "." not in talk.messages[-1]["content"]
    talk.save(tmp_path / "talk.json")
    other = chat(generator)
    other.load(tmp_path / "talk.json")
    assert other.messages == talk.messages == json.loads((tmp_path / "talk.json").read_text())["messages"]
    other.reset()
    assert other.messages == []
    for broken in ("{", "[]", '{"messages": [1]}', '{"messages": [{"role": "user"}]}'):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(InputError, match="not a saved conversation|not valid JSON"):
            other.load(tmp_path / "broken.json")


def test_sampling_follows_the_models_own_recommendation(tmp_path):
    assert default_sampling(tmp_path, None, None, None, 0) == SamplingSettings(0.7, 0, 0.95, 0)
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9}'
    )
    assert default_sampling(tmp_path, None, None, None, 1) == SamplingSettings(0.6, 20, 0.9, 1)
    assert default_sampling(tmp_path, 0.0, None, 1.0, 1) == SamplingSettings(0.0, 20, 1.0, 1)
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": "hot"}')
    with pytest.raises(InputError, match="temperature must be a finite number, not 'hot'"):
        default_sampling(tmp_path, None, None, None, 0)


def test_a_scripted_session(demo_folder, tmp_path):
    lines = f"Once upon a time\n/nonsense\n/save {tmp_path / 'talk.json'}\n/reset\n/save\n/help\n/exit\nnever read\n"
    done = subprocess.run(
        [sys.executable, "-m", "toolchain", "chat", str(demo_folder), "--max-tokens", "10"],
        input=lines, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and len(done.stdout.strip()) > 5
    told = ["no chat template", "/nonsense is no command", "[2 messages in", "starts anew", "needs a file name"]
    for expected in [*told, "Ctrl-C stops"]:
        assert expected in done.stderr, expected
    assert len(json.loads((tmp_path / "talk.json").read_text())["messages"]) == 2


def test_a_session_on_a_terminal(demo_folder):
    """A real terminal: prompt, Ctrl-C at the prompt does not leave, Ctrl-D does."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "toolchain", "chat", str(demo_folder), "--max-tokens", "5"],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell's children ignore it
    )  # fmt: skip
    os.close(slave)
    shown = b""

    def until(text: bytes, again=lambda: None) -> None:
        """Read up to and including ``text``; what came after it stays for the next call."""
        nonlocal shown
        deadline = time.monotonic() + 120
        while text not in shown:
            ready, _, _ = select.select([master], [], [], 2)
            assert ready or time.monotonic() < deadline, shown
            if ready:
                shown += os.read(master, 4096)
            else:
                again()
        shown = shown.split(text, 1)[1]

    # Each key is pressed once the prompt is there: the line editor's switch of the terminal's mode turns an earlier
    # Ctrl-D into a character.
    # Python's line editor misses a Ctrl-C between showing its prompt and waiting for keys: pressed again, as one would.
    until(b"> ")
    process.send_signal(signal.SIGINT)
    until(b"/exit leaves", again=lambda: process.send_signal(signal.SIGINT))
    until(b"> ")
    os.write(master, b"Once\n")
    until(b"tokens")
    until(b"> ")
    os.write(master, b"\x04")
    assert process.wait(120) == 0
    os.close(master)
