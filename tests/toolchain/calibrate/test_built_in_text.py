"""The built-in calibration text: of many kinds, the same everywhere, conversations in the model's own notation."""

import json
import re
from importlib import resources

import numpy as np
import pytest

from export.contract.errors import InputError
from runtime_py.chat.template import ChatTemplate, PlainTemplate
from toolchain.calibrate.built_in_text import built_in_text

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
