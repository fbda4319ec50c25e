"""Chat templates render as transformers renders them, and a hostile one ends in one line within its limits."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from export.contract.errors import InputError
from runtime_py.chat.conversation import fit
from runtime_py.chat.template import ChatTemplate, PlainTemplate, open_template
from tests.conftest import DEMO

TEMPLATES = Path(__file__).with_name("templates")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM = {"role": "system", "content": "  Be brief. "}
TALK = [
    {"role": "user", "content": "Grüße <b>&'\"  "},
    {"role": "assistant", "content": " Hello\n\nthere 世界"},
    {"role": "user", "content": "{{ 7 * 7 }} {% raw %}"},
]


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma", "mistral"])
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_equals_transformers(name, prompt):
    from transformers import PreTrainedTokenizerFast

    text = (TEMPLATES / f"{name}.jinja").read_text()
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(DEMO / "tokenizer.json"), **TOKENS)
    theirs.chat_template = text
    template = ChatTemplate(text, TOKENS, name)
    conversations = [TALK, TALK[:1]] + ([] if name == "gemma" else [[SYSTEM, *TALK]])
    for messages in conversations:
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert template.render(messages, prompt) == expected
    template.close()


def test_a_template_that_refuses_says_why():
    template = ChatTemplate((TEMPLATES / "gemma.jinja").read_text(), TOKENS, "folder/chat_template.jinja")
    with pytest.raises(InputError, match=r"chat_template.jinja: the chat template refuses.*System role not supported"):
        template.render([SYSTEM, *TALK])
    assert template.render(TALK[:1])  # and goes on working


HOSTILE = {
    "endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "memory by repetition": "{{ 'x' * 10**10 }}",
    "memory by doubling": "{% set n = namespace(a='x')%}{% for i in range(60)%}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "memory by padding": "{{ 'x'.center(10**10) }}",
    "huge number": "{{ 9**(9**9) }}",
    "long output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "file access": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "mutation": "{{ messages.append(1) }}",
    "syntax": "{% for %}",
    "unknown filter": "{{ messages | nothing }}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_ends_in_one_line(kind):
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        ChatTemplate(HOSTILE[kind], TOKENS, "chat_template.jinja", seconds=2.0).render(TALK)
    assert "\n" not in str(error.value) and str(error.value).startswith("chat_template.jinja: the chat template")
    assert time.monotonic() - start < 12  # 2 s of computing, 8 at most on the clock


def test_the_sandbox_shows_nothing_of_python():
    template = ChatTemplate("[{{ raise_exception.__globals__ }}{{ tojson }}{{ self.__class__ }}]", TOKENS, "t")
    assert template.render(TALK) == "[]"


def test_a_process_that_was_killed_is_started_again():
    template = ChatTemplate(
        "{% if messages|length > 1 %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}ok",
        TOKENS,
        "t",
        seconds=3.0,  # the start of the process counts, too
    )
    with pytest.raises(InputError, match="takes longer than 3 s"):
        template.render(TALK)
    assert template.render(TALK[:1]) == "ok"


def test_templates_are_found_in_either_file(tmp_path):
    assert isinstance(open_template(tmp_path), PlainTemplate)
    config = {"chat_template": [{"name": "default", "template": "{{ bos_token }}A"}], "bos_token": {"content": "<b>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert open_template(tmp_path).render(TALK) == "<b>A"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}B")
    assert open_template(tmp_path).render(TALK) == "<b>B"
    (tmp_path / "mine.jinja").write_text("C")
    assert open_template(tmp_path, tmp_path / "mine.jinja").render(TALK) == "C"
    (tmp_path / "tokenizer_config.json").write_text("[" * 100000)
    with pytest.raises(InputError, match=r"tokenizer_config.json: not valid JSON"):
        open_template(tmp_path)


def test_old_questions_go_with_their_answers_and_the_system_message_stays():
    tokenizer, template = Tokenizer.from_file(str(DEMO / "tokenizer.json")), PlainTemplate()
    messages = [{"role": "system", "content": "sys"}]
    for i in range(8):
        messages += [{"role": "user", "content": f"question {i} " * 10}, {"role": "assistant", "content": "yes " * 10}]
    messages.append({"role": "user", "content": "the newest"})
    kept, ids, dropped = fit(messages, template, tokenizer, 200, 50)
    assert kept[0]["role"] == "system" and kept[1]["role"] == "user" and kept[-1]["content"] == "the newest"
    assert len(ids) + 50 <= 200 and dropped % 2 == 0 and dropped == len(messages) - len(kept) > 0
    with pytest.raises(InputError, match=r"context of 20 leaves 5"):
        fit(messages, template, tokenizer, 20, 15)
