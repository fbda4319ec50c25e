"""The built-in calibration text: of many kinds, the same everywhere, conversations in the model's own notation."""

import json
import re
from importlib import resources

import numpy as np
import pytest

from export.contract.errors import InputError
from runtime_py.chat.template import ChatTemplate, PlainTemplate, open_template
from toolchain.calibrate import built_in_text as module
from toolchain.calibrate.built_in_text import FIXED_DATE, built_in_text

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE


def conversations():
    lines = resources.files("toolchain.calibrate").joinpath("built_in", "chats.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def test_conversations_are_well_formed():
    for messages in conversations():
        roles = [m["role"] for m in messages if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(m["content"].strip() for m in messages)


def test_it_is_the_same_every_time():
    assert built_in_text(PlainTemplate()) == built_in_text(PlainTemplate())


@pytest.mark.parametrize("template", [TEMPLATE, NO_SYSTEM])
def test_conversations_go_through_the_template(template):
    text = built_in_text(ChatTemplate(template, {}, "here"))
    turns = sum(
        m["role"] == "assistant" for c in conversations() for m in c if template == TEMPLATE or c[0]["role"] != "system"
    )
    assert text.count("<|assistant|>") == turns > 100


def test_a_template_that_always_fails_leaves_plain_text():
    template = ChatTemplate("{{ raise_exception('never') }}", {}, "here")
    with pytest.raises(InputError):
        template.render([{"role": "user", "content": "x"}])
    assert built_in_text(template) == built_in_text(PlainTemplate())


@pytest.mark.parametrize(
    "kind",
    [
        "def ", "SELECT ", "#include", "fn ", " der ", " les ", " della ", " los ", " não ", " een ", "ł", "[а-я]{4}",
        "ğ", " och ", "[\u0620-\u064a]{3}", "[\u0904-\u0939]{2}", "[\u4e00-\u9fff]{4}", "[\u3041-\u3096]{2}",
        "[\uac00-\ud7a3]{3}",
    ],
)  # fmt: skip
def test_it_has_text_of_every_kind(kind):
    assert re.search(kind, built_in_text(PlainTemplate()))


def test_windows_differ_in_kind():
    text = built_in_text(PlainTemplate())
    share = [np.mean([ord(c) > 0x250 for c in text[i : i + 20_000]]) for i in range(0, len(text) - 20_000, 20_000)]
    assert max(share) < 0.5  # no stretch is of foreign scripts alone


def test_a_template_that_writes_the_date_gives_the_same_text_every_day(tmp_path):
    """Else a run that is continued tomorrow would be refused: its calibration had changed."""
    (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}: " + TEMPLATE)
    text = built_in_text(open_template(tmp_path, prologue=FIXED_DATE))
    assert text.count("26 Jul 2024: <|") == len(conversations())


@pytest.mark.parametrize("limit", ["_MOST_SECONDS", "_MOST_CHARACTERS"])
def test_a_template_without_end_is_one_line(limit, monkeypatch):
    monkeypatch.setattr(module, limit, 0)
    with pytest.raises(InputError, match="chat template is too slow"):
        built_in_text(ChatTemplate(TEMPLATE, {}, "here"))
