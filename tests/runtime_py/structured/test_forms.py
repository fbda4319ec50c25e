"""What an answer is held to: which texts forms allow, and that those of strangers end in one line, soon."""

from __future__ import annotations

import json
import time

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from runtime_py.structured import forms
from runtime_py.structured.compiler import Compiler
from tests.runtime_py.structured.holding import Holding
from tests.runtime_py.structured.schemas import SCHEMAS

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def holding():
    found = Holding()
    yield found
    found.compiler.close()


@settings(max_examples=40)
@given(texts=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4), other=st.text(max_size=12))
def test_a_choice_is_one_of_the_texts_and_nothing_else(holding, texts, other):
    form = forms.choices(texts, "choice")
    assert all(holding.accepts(form, text) for text in texts)
    assert holding.accepts(form, other) == (other in texts)


@pytest.mark.parametrize(
    ("expression", "yes", "no"),
    [
        (r"[a-c]{3}", ["abc", "ccc"], ["ab", "abcd", "abd", ""]),
        (r"a|bc", ["a", "bc"], ["abc", "b"]),
        (r"/\d+\/x", ["/12/x"], ["12/x", "/a/x"]),
        (r"(?i)yes", ["YES", "yEs"], ["no"]),
        (r".*", ["", "any"], ["a\nb"]),
        ("ü+", ["ü", "üüü"], ["u"]),
    ],
)
def test_an_expression_holds_the_whole_text(holding, expression, yes, no):
    form = forms.regex(expression, "regex")
    assert [holding.accepts(form, text) for text in yes] == [True] * len(yes)
    assert [holding.accepts(form, text) for text in no] == [False] * len(no)


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        ('start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]+/', ["1", "12+3"], ["+", "1+"]),
        ('root ::= "(" root? ")"', ["()", "((()))"], ["(", ")("]),
        ('root ::= item ("," item)*\nitem ::= [a-z]+ | "\\""', ['a,bc,"'], [",", "A"]),
    ],
)
def test_grammars_of_both_kinds(holding, grammar, yes, no):
    form = forms.grammar(grammar, "grammar")
    assert [holding.accepts(form, text) for text in yes] == [True] * len(yes)
    assert [holding.accepts(form, text) for text in no] == [False] * len(no)


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_answers_under_a_schema_are_valid(holding, name):
    schema = SCHEMAS[name]
    form = forms.schema(schema, "schema")
    for seed in range(5):
        jsonschema.Draft202012Validator(schema).validate(json.loads(holding.draw(form, seed)))


_EDGES = st.sampled_from([0, 7, 2**53 - 1, 2**53, 2**53 + 1, 2**62 + 1, 2**63 - 1, 2**63, 2**64, 10**30])
_FAR = st.builds(lambda edge, off, sign: sign * (edge + off), _EDGES, st.integers(-1, 1), st.sampled_from([1, -1]))
_BOUND = st.one_of(_FAR, _FAR.map(float))


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.sampled_from(["integer", "number", ["integer", "null"], ["integer", "number"]]),
    bounds=st.dictionaries(
        st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), _BOUND, max_size=3
    ),
    wrap=st.sampled_from(["", "anyOf", "allOf"]),
    seed=st.integers(0, 9),
)
def test_bounds_of_any_size_are_kept_or_refused(holding, kinds, bounds, wrap, seed):
    schema = {"type": kinds, **bounds}
    schema = {wrap: [schema]} if wrap else schema
    try:
        form = forms.schema(schema, "schema")
        drawn = holding.draw(form, seed, endings=())
    except InputError as error:
        assert str(error).startswith("schema")
        return
    except AssertionError:  # digits without an end
        return
    jsonschema.Draft202012Validator(schema).validate(json.loads(drawn))


@pytest.mark.parametrize(
    ("schema", "most"),
    [
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, 2**63 - 1024),
        ({"type": "integer", "exclusiveMinimum": -(2**62), "exclusiveMaximum": 2**62}, 2**62 - 512),
        ({"type": ["integer", "null"], "minimum": -(2**53) - 1, "maximum": 2**53 + 1}, 2**53),
        ({"type": ["null", "integer"]}, 2**53 - 1),
        ({"type": "integer", "minimum": -(10**400), "maximum": 10**400}, 2**63 - 1024),
        ({"type": "integer", "minimum": -1e300, "maximum": 1e300}, 2**63 - 1024),
    ],
)
def test_the_largest_whole_numbers_are_exact(holding, schema, most):
    form = forms.schema(schema, "schema")
    assert holding.accepts(form, str(most)) and not holding.accepts(form, str(most + 1))
    assert holding.accepts(form, str(-most)) and not holding.accepts(form, str(-most - 1))


def test_an_object_has_no_members_that_its_schema_does_not_name(holding):
    form = forms.schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, "schema")
    assert holding.accepts(form, '{"a": 1}') and holding.accepts(form, '{"a":1}')
    assert not holding.accepts(form, '{"a": 1, "b": 2}') and not holding.accepts(form, '{"a":  1}')
    assert holding.accepts(forms.json_object("x"), '{"b": [1, {"c": null}]}')
    named = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": True}
    assert holding.accepts(forms.schema(named, "schema"), '{"a": 1, "b": 2}')


def test_whole_numbers_have_an_end(holding):
    form = forms.schema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}, "schema")
    assert holding.accepts(form, '{"n": -9007199254740991}') and not holding.accepts(form, '{"n": 90071992547409910}')
    asked = {"type": "integer", "minimum": 10**17, "maximum": 10**17 + 5}
    assert holding.accepts(forms.schema(asked, "schema"), "100000000000000000")


def nested(depth):
    found = {"type": "boolean"}
    for _ in range(depth):
        found = {"type": "array", "items": found}
    return found


HOSTILE = {
    "deep": nested(5000),
    "wide": {"enum": list(range(30000))},
    "no schema": 5,
    "a list": [],
    "wrong type": {"type": "nope"},
    "type of a number": {"type": 5},
    "unknown keyword": {"not": {"type": "null"}},
    "unsatisfiable": {"type": "string", "minLength": 5, "maxLength": 2},
    "never": False,
    "a remote reference": {"$ref": "https://example.org/x.json"},
    "a reference to nothing": {"$ref": "#/$defs/x"},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "a broken pattern": {"type": "string", "pattern": "("},
    "a pattern that looks back": {"type": "string", "pattern": r"(a)\1"},
    "surrogate": {"enum": ["\ud800"]},
    "a product": {
        "allOf": [{"anyOf": [{"type": "object", "properties": {f"p{i}_{j}": {}}} for j in range(8)]} for i in range(8)]
    },
    "a huge count": {"type": "string", "pattern": "(((a{1,500}){1,500}){1,500}){1,500}"},
    "huge bounds": {"type": "array", "items": {"type": "array", "minItems": 10**9}, "minItems": 10**9},
    "a large product": {"type": "integer", "multipleOf": 10**15 + 1, "minimum": 10**300},
    "intersections": {"allOf": [{"type": "string", "pattern": f"(.*{c}.*){{9}}"} for c in "abcdefghijk"]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_end_soon_and_in_one_line(holding, name):
    start = time.monotonic()
    try:
        found = holding.compiler.compile(forms.schema(HOSTILE[name], "the_field"))
        holding.draw(forms.schema(HOSTILE[name], "the_field"), 0, most=30)
        assert found
    except InputError as error:
        assert str(error).startswith("the_field") and str(error).isprintable()
    except AssertionError as error:  # an answer may be long
        assert "no end" in str(error)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "grammar",
    [
        "start: a",
        "start: ",
        "start: start",
        "root ::= x",
        "root",
        "\x00",
        "start: /(/",
        'start: "a"{1000000000}',
        'start: a\na: a a | "x" |',
        "%llguidance {",
        "%llguidance {}\nstart: %json {",
        "start: <[99999999]>",
        "start: <nothing>",
        "start: @other",
        "start: " + "(" * 50000,
        "root ::= " + "(" * 50000 + '"a"',
        "%ignore /.*/\nstart: /a/",
        'start: a\na[stop="x"]: /.*/ "y"',
        "start: " + " | ".join(f'"{i}"' for i in range(40000)),
        " \n",
        "start: \ud800",
        "start: " + "x" * 600_000,
    ],
)
def test_hostile_grammars_end_soon_and_in_one_line(holding, grammar):
    start = time.monotonic()
    try:
        holding.draw(forms.grammar(grammar, "the_field"), 0, most=30)
    except InputError as error:
        assert str(error).startswith("the_field") and str(error).isprintable()
    except AssertionError as error:
        assert "no end" in str(error)
    assert time.monotonic() - start < 30
    assert holding.accepts(forms.choices(["ok"], "choice"), "ok")  # the next one works


def test_a_grammar_that_takes_too_long_is_given_up_and_the_next_one_works():
    holding = Holding()
    compiler = Compiler(holding.tokenizer, holding.size, seconds=1e-6)
    with pytest.raises(InputError, match=r"the_field.*longer than 1e-06 s"):
        compiler.compile(forms.choices(["a"], "the_field"))
    compiler._seconds = 5.0
    assert compiler.compile(forms.choices(["a"], "the_field"))
    compiler.close()


def test_a_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match="pip install"):
        Compiler(Holding().tokenizer, 1536).compile(forms.choices(["a"], "x"))
