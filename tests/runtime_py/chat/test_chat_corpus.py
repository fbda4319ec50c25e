"""A corpus of chat templates gives the text and ids of transformers' apply_chat_template, or both refuse.

The templates are written for this test, after the shapes that real families use; conversations and variables are those
that clients of the OpenAI API send.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.artefacts.chat_templates import read_templates, write_templates
from export.contract.errors import InputError
from export.model_folder import copy_tokenizer
from runtime_py.chat.conversation import fit, prompt_ids
from runtime_py.chat.template import ChatTemplate, PlainTemplate, open_template
from runtime_py.text.generator import load_tokenizer
from runtime_py.text.special_tokens import read_special_tokens
from tests.conftest import DEMO

CORPUS = sorted(path.stem for path in Path(__file__).with_name("chat_templates").glob("*.jinja"))
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
SYSTEM = {"role": "system", "content": " Be brief. /no_think "}
USER = {"role": "user", "content": "Hello <b>&'\" 世界\n"}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n Hi <|endoftext|> there "}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": '{"degrees": 21.5}', "tool_call_id": "abcdefghi", "name": "weather"}
CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, {"role": "user", "content": "And {{ 7 * 7 }} {% raw %}?"}],
    "system and turns": [SYSTEM, USER, ANSWER, USER],
    "tools": [USER, CALLING, RESULT],
    "tools and answer": [SYSTEM, USER, CALLING, RESULT, RESULT, ANSWER, USER],
    "arguments as text": [USER, {**CALLING, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{}"}}]}],
    "two calls": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}, RESULT],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "A "}, {"type": "image"}, {"type": "text", "text": "?"}]}
    ],
    "assistant last": [USER, ANSWER],
    "two users": [USER, USER],
    "empty": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    "null": [SYSTEM, USER, {"role": "assistant", "content": None}],
    "without content": [USER, {"role": "assistant"}],
    "reasoning": [USER, {**ANSWER, "reasoning": "because"}, USER, {**CALLING, "thinking": "so", "refusal": None}],
    "more fields": [{**USER, "name": "ann", "weight": 1.5, "flags": [True, None]}, {**ANSWER, "audio": {"id": "a"}}],
    "other roles": [{"role": "developer", "content": "Obey."}, {"role": "ipython", "content": "1"}],
}  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather — now.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Größe <b>", "enum": ["Bern", "Zürich"]},
                "days": {"type": ["integer", "null"], "default": 3},
                "more": {"type": "array", "items": {"type": "number"}},
            },
            "required": ["city"],
        },
        "return": {"type": "string"},
    },
}
DOCUMENTS = [{"title": "One", "text": "First text."}, {"title": "Zwei", "text": "Über & unter"}]
VARIABLES = {
    "none": {},
    "tools": {"tools": [TOOL, TOOL]},
    "no tools": {"tools": [], "documents": []},
    "null tools": {"tools": None, "documents": None, "enable_thinking": None},
    "documents": {"documents": DOCUMENTS, "controls": {"citations": True}, "citation_mode": "fast"},
    "off": {"enable_thinking": False, "thinking": False, "reasoning_effort": "low", "date_string": "1 Jan 2030"},
    "on": {"enable_thinking": True, "thinking": True, "contexts": [" c "], "tools": [TOOL], "documents": DOCUMENTS},
    "tokens": {"bos_token": "<other>", "tools_in_user_message": False, "tools": [TOOL], "builtin_tools": ["a"]},
    "not strings": {"x": 1.5, "nested": {"a": [None, {"b": "ü"}]}, "namespace_name": "n", "add": [1]},
}
TOKENS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<pad>",
    "extra_special_tokens": {"image_token": "<image>"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled model's tokenizer with special tokens of its own, as `export` writes it."""
    from toolchain.source.tokenizer import write_built_tokenizer

    source, written = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("written")
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(DEMO / name, source / name)
    (source / "tokenizer_config.json").write_text(json.dumps(TOKENS))
    copy_tokenizer(source, written)
    write_built_tokenizer(source, written)
    return source, written


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder[0])


def _text(name: str) -> str:
    return Path(__file__).with_name("chat_templates").joinpath(f"{name}.jinja").read_text(encoding="utf-8")


def _result(render, *arguments, **more):
    """What it gives, or None when it refuses."""
    from jinja2 import TemplateError

    try:
        return render(*arguments, **more)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError, TemplateError):
        return None
    except InputError as error:
        assert "\n" not in str(error)
        return None


def _compare(name, folder, theirs, share):
    """Render with every conversation, and all variables or the share-th third. Returns how many do not refuse."""
    theirs.chat_template, rendered = _text(name), 0
    tokenizer = load_tokenizer(folder[1])
    ours, sets = ChatTemplate(_text(name), read_special_tokens(folder[1]), name), list(VARIABLES.values())
    for i, conversation in enumerate(CONVERSATIONS.values()):
        for variables in sets[(share + i) % 3 :: 3] if share is not None else sets:
            for prompt in (True, False):
                more = {"add_generation_prompt": prompt, **variables}
                expected = _result(theirs.apply_chat_template, conversation, tokenize=False, **more)
                assert _result(ours.render, conversation, prompt, variables) == expected
                rendered += expected is not None
            expected = _result(
                theirs.apply_chat_template, conversation, add_generation_prompt=True, return_dict=False, **variables
            )
            given = _result(prompt_ids, conversation, ours, tokenizer, variables)
            assert given == (expected or None)  # an empty prompt is refused: there is nothing to go on from
    ours.close()
    return rendered


REFUSING = {
    "mutates", "mutates_dict", "namespace_underscore", "namespace_underscore_argument",
    "undefined_attribute_of_undefined", "undefined_concatenated",
}  # fmt: skip


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_renders_as_in_transformers(name, folder, theirs):
    assert bool(_compare(name, folder, theirs, CORPUS.index(name))) == (name not in REFUSING)


@pytest.mark.long
@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_renders_as_in_transformers_with_all_variables(name, folder, theirs):
    assert bool(_compare(name, folder, theirs, None)) == (name not in REFUSING)


RESERVED = [
    "messages", "conversation", "conversations", "self", "tokenize", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens",
]  # fmt: skip


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_name_is_refused(name):
    template = ChatTemplate("{{ messages[0].content }}", {}, "t")
    with pytest.raises(InputError, match=f"^{name}: this name is reserved"):
        template.render([USER], True, {name: None})
    with pytest.raises(InputError, match=f"a special token cannot be called '{name}'"):
        ChatTemplate("x", {name: "<x>"}, "t")
    template.close()


@pytest.mark.parametrize(
    ("variables", "field"),
    [
        ({"tools": "weather"}, "tools"), ({"tools": ["weather"]}, "tools"), ({"tools": {}}, "tools"),
        ({"tools": 5}, "tools"), ({"documents": ["text"]}, "documents"), ({"documents": True}, "documents"),
        ({"chat_template": 5}, "chat_template"), ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"continue_final_message": 2}, "continue_final_message"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"x": {1, 2}}, "variables"), ({"x": 10**5000}, "variables"),
    ],
)  # fmt: skip
def test_variables_of_the_wrong_kind_are_refused(variables, field):
    template = ChatTemplate("{{ messages[0].content }}", {}, "t")
    with pytest.raises(InputError, match=field) as error:
        template.render([USER], True, variables)
    assert "\n" not in str(error.value)
    assert template.render([USER]) == USER["content"]  # and goes on working
    with pytest.raises(InputError, match="messages"):
        template.render([])
    template.close()


def test_without_a_template_variables_and_parts_are_refused(folder):
    tokenizer = load_tokenizer(folder[1])
    with pytest.raises(InputError, match="tools: this model has no chat template"):
        prompt_ids([USER], PlainTemplate(), tokenizer, {"tools": [TOOL]})
    for message in (CONVERSATIONS["parts"][0], CALLING, {"role": "user"}):
        with pytest.raises(InputError, match="needs its content as text"):
            prompt_ids([message], PlainTemplate(), tokenizer)


def test_half_of_a_surrogate_pair_is_refused(folder):
    template = ChatTemplate("{{ messages[0].content }}", {}, "t")
    with pytest.raises(InputError, match="half of a surrogate pair"):
        prompt_ids([{"role": "user", "content": "a\ud83d"}], template, load_tokenizer(folder[1]))
    template.close()


def test_variables_reach_the_template_when_old_messages_are_dropped(folder):
    template = ChatTemplate("{{ word }}{% for m in messages %} {{ m.content }}{% endfor %}", {}, "t")
    messages = [{"role": "user", "content": f"question {i} " * 5} for i in range(9)]
    tokenizer = load_tokenizer(folder[1])
    kept, ids, dropped = fit(messages, template, tokenizer, 100, 20, {"word": "First"})
    assert dropped and tokenizer.decode(ids).startswith("First question") and len(kept) + dropped == 9
    template.close()


@pytest.mark.parametrize("name", CORPUS)
def test_a_message_is_continued_as_in_transformers(name, theirs, folder):
    theirs.chat_template = _text(name)
    ours = ChatTemplate(_text(name), read_special_tokens(folder[1]), name)
    for field in (True, "reasoning_content", "thinking", "reasoning", "nothing"):
        variables = {"add_generation_prompt": False, "continue_final_message": field}
        for conversation in CONVERSATIONS.values():
            expected = _result(theirs.apply_chat_template, conversation, tokenize=False, **variables)
            assert _result(ours.render, conversation, True, variables) == expected
    ours.close()


NAMED = {
    "default": "D{{ messages[0].content }}", "tool_use": "T{{ tools | length }}{{ messages[0].content }}",
    "rag": "R{{ documents | length }}{{ messages[0].content }}",
}  # fmt: skip
FILES = {
    "text in the config": ({"chat_template": NAMED["default"]}, {}),
    "empty text": ({"chat_template": ""}, {}),
    "null": ({"chat_template": None}, {}),
    "list": ({"chat_template": [{"name": n, "template": t} for n, t in NAMED.items()]}, {}),
    "object": ({"chat_template": NAMED}, {}),
    "list without default": ({"chat_template": [{"name": n, "template": NAMED[n]} for n in ("tool_use", "rag")]}, {}),
    "list with tools alone": ({"chat_template": [{"name": "tool_use", "template": "T{{ tools | length }}"}]}, {}),
    "list with default alone": ({"chat_template": [{"name": "default", "template": NAMED["default"]}]}, {}),
    "a name that is no file name": (
        {"chat_template": [{"name": "default", "template": "D"}, {"name": "../tool_use", "template": "T"}]},
        {},
    ),
    "file": ({}, {"chat_template.jinja": "F{{ bos_token }}\r\n{{ messages[0].content }}\n"}),
    "file and config": ({"chat_template": NAMED}, {"chat_template.jinja": "F{{ messages | length }}"}),
    "more files": (
        {},
        {"chat_template.jinja": NAMED["default"], "additional_chat_templates/tool_use.jinja": NAMED["tool_use"]},
    ),
    "more files and config": (
        {"chat_template": "C"},
        {"additional_chat_templates/tool_use.jinja": "T", "additional_chat_templates/rag.jinja": "R"},
    ),
    "default among the more": ({}, {"chat_template.jinja": "1", "additional_chat_templates/default.jinja": "2"}),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_template_is_found_and_carried_as_in_transformers(kind, folder, tmp_path):
    from transformers import AutoTokenizer

    config, files = FILES[kind]
    source, written = tmp_path / "source", tmp_path / "written"
    for path in (source, written):
        path.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(folder[0] / name, source / name)
    (source / "tokenizer_config.json").write_text(json.dumps({**TOKENS, **config}))
    for name, text in files.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(text.encode())
    shutil.copyfile(source / "config.json", written / "config.json")
    copy_tokenizer(source, written)
    write_templates(written)
    theirs, again = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(written)
    variables = [*VARIABLES.values(), {"chat_template": "rag", "documents": DOCUMENTS}, {"chat_template": "none"}]
    for read in (source, written):
        ours = open_template(read)
        assert isinstance(ours, PlainTemplate) == (theirs.chat_template is None)
        for values in variables if theirs.chat_template is not None else []:
            if "chat_template" in values and values["chat_template"] not in (theirs.chat_template or {}):
                expected = None  # transformers would take the name for a template's text
            else:
                expected = _result(theirs.apply_chat_template, [USER], tokenize=False, **values)
                assert _result(again.apply_chat_template, [USER], tokenize=False, **values) == expected
            assert _result(ours.render, [USER], False, values) == expected
        ours.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "written"]


def test_the_template_of_a_processor_is_read_last(tmp_path):
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "P"}))
    assert read_templates(tmp_path) == ("P", tmp_path / "chat_template.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "C"}))
    assert read_templates(tmp_path)[0] == "C"


@pytest.mark.parametrize(
    "value",
    [5, True, [1], [{"name": "default"}], [{"template": "x"}], [{"name": 1, "template": "x"}], {"default": 1}, [[]]],
)
def test_a_template_that_is_no_text_is_refused(value, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(InputError, match="tokenizer_config.json: chat_template must be a text"):
        open_template(tmp_path)
