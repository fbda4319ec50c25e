"""Every notation: what its grammar allows is read back as calls with valid arguments, however the text is cut."""

from __future__ import annotations

import json

import jsonschema
import pytest

from export.contract.errors import InputError
from runtime_py.structured import forms
from runtime_py.text.decoder_stages import MARK
from runtime_py.tool_calls.answer import AnswerReader, Part
from runtime_py.tool_calls.formats.registry import FORMATS, Unknown, notation
from runtime_py.tool_calls.notation import Asked, Format, Marks, Tool
from tests.runtime_py.structured.holding import Holding
from tests.runtime_py.structured.schemas import NAME, record

pytest.importorskip("llguidance")

TEMPLATES = {
    "gpt-oss": "<|channel|><|message|>{{ tools }}",
    "gemma4": "<|tool_call>{{ tools }}<channel|>",
    "mistral": "[TOOL_CALLS]{{ tools }}",
    "mistral args": "[TOOL_CALLS][ARGS]{{ tools }}[/THINK]",
    "lfm2": "<|tool_call_start|>{{ tools }}</think>",
    "llama3": 'ipython "parameters": {{ tools }}',
    "hermes": "<tool_call>{{ tools }}</think>",
    "plain": "{{ messages }}",
}
SCHEMAS = {
    "add": record(
        a={"type": "integer", "minimum": -9, "maximum": 99}, b={"type": "number", "maximum": 9.5, "minimum": 0}
    ),
    "weather.now": record(
        "city",
        city={"enum": ["Bern", "São Paulo", 'a"b']},
        days={"type": "integer", "maximum": 3, "minimum": 1},
        wet={"type": "boolean"},
        note={"type": ["string", "null"], "maxLength": 8},
    ),
    "store": record(
        "tags",
        "place",
        tags={"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 3},
        place=record(name={"type": "string", "minLength": 1, "maxLength": 6}, kind={"const": None}),
    ),
    "none": {"type": "object", "properties": {}, "additionalProperties": False},
}


def tools(strict=False, **schemas):
    return tuple(Tool(name, schema, strict, f"tools[{i}].function", {"function": {"name": name}})
                 for i, (name, schema) in enumerate((schemas or SCHEMAS).items()))  # fmt: skip


def read(found: Format, marks: Marks, text: str, thinking: bool = False):
    """(text, reasoning, calls), the same for every way of cutting the text."""
    results = []
    for size in (1, 2, 3, 7, 1 << 20):
        reader = AnswerReader(found, marks, thinking)
        parts = [p for at in range(0, len(text), size) for p in reader.push(text[at : at + size])] + reader.end()
        results.append(joined(parts))
        assert reader.calls == len(results[-1][2])
    assert all(result == results[0] for result in results)
    return results[0]


def joined(parts: list[Part]):
    calls: list[list[str]] = []
    for part in parts:
        if part.name:
            assert part.call == len(calls) and len(part.id) == 9 and part.id.isalnum()
            calls.append([part.name, ""])
        elif part.arguments:
            assert part.call == len(calls) - 1  # a call is complete before the next one begins
            calls[part.call][1] += part.arguments
    return "".join(p.content for p in parts), "".join(p.reasoning for p in parts), [tuple(call) for call in calls]


def endings(found: Format) -> tuple[str, ...]:
    """What free text of a notation ends with."""
    return (found.reasoning().closing, '<|"|>') if found.reasoning() else ("x",)


def drawn(name: str, special: bool, asked: Asked, seed: int, thinking: bool = False):
    """A random answer, as it is read."""
    found = notation(TEMPLATES[name])
    holding = holdings(found.names() if special else ())
    marks = Marks({mark: token for token, mark in holding.special.items() if mark in found.names()})
    text = holding.draw(forms.lark(found.rules(asked, marks, thinking), "tools"), seed, 3000, endings(found))
    return text, read(found, marks, text, thinking)


_HOLDINGS: dict[frozenset[str], Holding] = {}


def holdings(names) -> Holding:
    key = frozenset(names)
    if key not in _HOLDINGS:
        _HOLDINGS[key] = Holding(tuple(sorted(key)))
    return _HOLDINGS[key]


@pytest.fixture(scope="module", autouse=True)
def _closed():
    yield
    for holding in _HOLDINGS.values():
        holding.compiler.close()


def test_templates_are_recognized():
    assert {name: notation(text).NAME for name, text in TEMPLATES.items()} == {n: n.split()[0] for n in TEMPLATES}
    assert {kind.NAME for kind in FORMATS} == {name.split()[0] for name in TEMPLATES}
    assert isinstance(notation("<tool_call><function={{ tools }}"), Unknown)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_forced_calls_are_read_back_with_valid_arguments(name, special):
    several = notation(TEMPLATES[name]).SEVERAL
    seen = set()
    for seed in range(8):
        text, (content, _, calls) = drawn(name, special, Asked(tools(), forced=True, several=seed % 2 == 0), seed)
        assert calls and (name == "lfm2" or not content), text
        assert len(calls) == 1 or (several and seed % 2 == 0)
        for called, arguments in calls:
            found = json.loads(arguments)
            if special or name != "gemma4":  # where its quotes are text, no grammar can count what is between them
                jsonschema.validate(found, SCHEMAS[called])
            seen.add(called)
    assert len(seen) > 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_named_tool_is_the_only_one(name):
    for seed in range(3):
        _, (_, _, calls) = drawn(name, True, Asked(tools(store=SCHEMAS["store"]), forced=True), seed)
        assert {called for called, _ in calls} == {"store"}


OPENINGS = {"llama3": '{"name": "', "plain": '{"tool_calls": [{"name": "', "lfm2": "["}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "gpt-oss"])
def test_where_a_call_is_allowed_text_is_too_and_a_call_is_held_to_the_schema(name, special):
    found = notation(TEMPLATES[name])
    holding = holdings(found.names() if special else ())
    marks = Marks({mark: token for token, mark in holding.special.items() if mark in found.names()})
    form = forms.lark(found.rules(Asked(tools()), marks, False), "tools")
    for text in ("", "Hello there.\nTwo", " <tool> [x] <", "a {b}"):
        assert holding.accepts(form, text), text
        assert read(found, marks, text) == (text, "", [])
    if not special and found.OPENING:
        assert not holding.accepts(form, f"Hello {found.OPENING}")
        assert not holding.accepts(form, f"Hello {found.OPENING} and more")
    if found.reasoning() is not None and not special:
        thought = f"{found.reasoning().opening}why {found.OPENING} not"
        assert not holding.accepts(form, thought)
        assert holding.accepts(form, f"{thought}{found.reasoning().closing}\n\nSo.")


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_beside_tools_can_be_held_to_a_form(name, special):
    found = notation(TEMPLATES[name])
    holding = holdings(found.names() if special else ())
    marks = Marks({mark: token for token, mark in holding.special.items() if mark in found.names()})
    schema = record(answer={"type": "boolean"})
    rules = found.rules(Asked(tools(), form=True, several=False), marks, False)
    form = forms.within(forms.schema(schema, "response_format"), rules)
    kinds = set()
    for seed in range(12):
        content, _, calls = read(found, marks, holding.draw(form, seed, 3000, endings(found)))
        kinds.add(bool(calls))
        if not calls:
            jsonschema.validate(json.loads(content), schema)
        for called, arguments in calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[called])
    assert True in kinds or False in kinds


def mark(text: str, names) -> str:
    for name in names:
        text = text.replace(name, MARK + name)
    return text


CALL = ("weather", '{"city": "Bern \\"}{"}')
EXAMPLES = {
    "hermes": ('Let me see.\n<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>', "Let me see.", ""),
    "hermes thinking": (
        '<think>\nHm, so.\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>',
        "",
        "Hm, so.",
    ),
    "hermes compact": ('<tool_call>{"name":"weather","arguments":%s}</tool_call>', "", ""),
    "llama3": ('{"name": "weather", "parameters": %s}', "", ""),
    "llama3 tag": ('<|python_tag|>{"name": "weather", "parameters": %s}', "", ""),
    "mistral": ('[TOOL_CALLS] [{"name": "weather", "arguments": %s}]', "", ""),
    "mistral id": ('Yes[TOOL_CALLS][{"name": "weather", "arguments": %s, "id": "abcdefghi"}]', "Yes", ""),
    "mistral args": ("[THINK]Hm[/THINK]Yes[TOOL_CALLS]weather[ARGS]%s", "Yes", "Hm"),
    "gemma4": (
        '<|channel>thought\nHm\n<channel|>Yes<|tool_call>call:weather{city:<|"|>Bern "}{<|"|>}<tool_call|>',
        "Yes",
        "Hm",
    ),
    "lfm2": ('<|tool_call_start|>[weather(city="Bern \\"}{")]<|tool_call_end|>Wait.', "Wait.", ""),
    "lfm2 quotes": ("<|tool_call_start|>[weather(city='Bern \"}{')]<|tool_call_end|>", "", ""),
    "gpt-oss": (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        "<|constrain|>json<|message|>%s",
        "",
        "Hm",
    ),
    "gpt-oss header": (" to=functions.weather<|channel|>commentary json<|message|>%s", "", ""),
    "plain": ('{"tool_calls": [{"name": "weather", "arguments": %s}]}', "", ""),
}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_answers_as_models_write_them(name, special):
    template = TEMPLATES.get(name) or TEMPLATES[name.split()[0]]
    found = notation(template)
    text, content, reasoning = EXAMPLES[name]
    text = text.replace("%s", CALL[1])
    marks = Marks(dict.fromkeys(found.names(), 0) if special else {})
    text = mark(text, found.names()) if special else text
    assert read(found, marks, text) == (content, reasoning, [CALL])


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_answer_that_is_cut_off_is_read_as_far_as_it_goes(name):
    found = notation(TEMPLATES.get(name) or TEMPLATES[name.split()[0]])
    text, _, reasoning = EXAMPLES[name]
    text = text.replace("%s", CALL[1])
    for size in range(len(text)):
        _, thought, calls = read(found, Marks({}), text[:size])
        assert any(a.startswith(b) for a, b in ((reasoning, thought), (thought, reasoning), ("thought\n", thought)))
        assert len(calls) <= 1 and all(called == "weather" for called, _ in calls)
        assert all(CALL[1].startswith(arguments) for _, arguments in calls) or found.NAME in ("lfm2", "gemma4")


@pytest.mark.parametrize("name", ["hermes", "lfm2", "gemma4"])
def test_reasoning_that_the_prompt_began(name):
    found = notation(TEMPLATES[name])
    marks = found.reasoning()
    assert found.thinking(f"assistant\n{marks.opening}\n") and not found.thinking("assistant\n")
    assert read(found, Marks({}), f"Because.\n{marks.closing}\n\nYes.", True) == ("Yes.", "Because.", [])
    assert read(found, Marks({}), "Because", True) == ("", "Because", [])


@pytest.mark.parametrize("name", ["gemma4", "lfm2", "hermes", "plain"])
def test_what_cannot_be_held_to_is_refused_where_strict_asks_for_it(name):
    odd = record(x={"type": "string", "not": {"const": "a"}})
    found, holding = notation(TEMPLATES[name]), holdings(())

    def compiled(strict):
        rules = found.rules(Asked(tools(strict, odd=odd), forced=True), Marks({}), False)
        return holding.compiler.compile(forms.lark(rules, "tools"))

    with pytest.raises(InputError, match="tools"):
        compiled(True)
    assert compiled(False)


def test_recursive_schemas_in_a_notation_of_its_own():
    tree = {"$defs": {"n": record("v", v={"type": "integer", "minimum": 0, "maximum": 3}, next={"$ref": "#/$defs/n"})},
            **record(root={"$ref": "#/$defs/n"})}  # fmt: skip
    for seed in range(5):
        for name in ("gemma4", "lfm2"):
            _, (_, _, calls) = drawn(name, True, Asked(tools(tree=tree), forced=True, several=False), seed)
            jsonschema.validate(json.loads(calls[0][1]), tree)


def test_names_in_the_schemas_cannot_break_out_of_the_grammar():
    odd = record(**{'x"} | /.*/ {"': NAME, "a\nb: start": {"const": '"\nstart: /.*/'}})
    for name in TEMPLATES:
        for strict in (False, True):
            found, holding = notation(TEMPLATES[name]), holdings(notation(TEMPLATES[name]).names())
            marks = Marks({mark: token for token, mark in holding.special.items() if mark in found.names()})
            try:
                rules = found.rules(Asked(tools(strict, odd=odd), forced=True, several=False), marks, False)
                text = holding.draw(forms.lark(rules, "tools"), 0, 3000, endings(found))
            except InputError:
                assert name == "lfm2" or (strict and name == "gemma4")
                continue
            calls = read(found, marks, text)[2]
            assert [called for called, _ in calls] == ["odd"]
            if name != "gemma4":
                jsonschema.validate(json.loads(calls[0][1]), odd)
