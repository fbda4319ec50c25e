"""The tools of a request, checked key by key: what is used, and what is refused by name."""

from __future__ import annotations

import openai.types.chat.completion_create_params  # noqa: F401 (its types are resolved with it)
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.shared_params import FunctionDefinition

from runtime_py.serving.requests import fields
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.tools import ToolUse, tool_use
from tests.runtime_py.serving.test_request_fields import JSON, classes


def tool(name="f", **more):
    return {"type": "function", "function": {"name": name, **more}}


TWO = {"tools": [tool(), tool("g", parameters={"properties": {"a": {}}}, strict=True, description="G")]}
G = {"type": "function", "function": {"name": "g"}}


def names(use: ToolUse):
    return [one.name for one in use.tools], use.forced


def allowed(mode, *choices):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(choices)}}


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (None, (["f", "g"], False)),
        ("auto", (["f", "g"], False)),
        ("none", ([], False)),
        ("required", (["f", "g"], True)),
        (G, (["g"], True)),
        (allowed("auto", G), (["g"], False)),
        (allowed("required", G, tool()), (["f", "g"], True)),
    ],
)
def test_which_tools_may_be_called_and_whether_one_must_be(choice, found):
    assert names(tool_use({**TWO, "tool_choice": choice})) == found


def test_tools_reach_the_template_as_they_were_sent():
    first, second = tool_use(TWO).tools
    assert first.parameters == {"type": "object", "properties": {}} and not first.strict
    assert second.declared == {
        "type": "function",
        "function": {"name": "g", "description": "G", "parameters": {"type": "object", "properties": {"a": {}}}},
    }
    assert second.strict and second.where == "tools[1].function"
    assert tool_use({**TWO, "parallel_tool_calls": False}).several is False and tool_use(TWO).several
    assert tool_use({}) == tool_use({"tools": [], "tool_choice": "none"}) == ToolUse()


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [tool()] * 129}, "tools"),
        ({"tools": [tool(), tool()]}, "tools"),
        ({"tools": [5]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{**tool(), "x": 1}]}, "tools[0].x"),
        ({"tools": [tool(x=1)]}, "tools[0].function.x"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool("f\n")]}, "tools[0].function.name"),
        ({"tools": [tool(description=5)]}, "tools[0].function.description"),
        ({"tools": [tool(description="\ud800")]}, "tools[0].function.description"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"enum": ["\udc00"]})]}, "tools[0].function.parameters"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": "any", **TWO}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "h"}}, **TWO}, "tool_choice"),
        ({"tool_choice": {**G, "x": 1}, **TWO}, "tool_choice.x"),
        ({"tool_choice": allowed("all", G), **TWO}, "tool_choice.allowed_tools"),
        ({"tool_choice": allowed("auto"), **TWO}, "tool_choice.allowed_tools"),
        ({"tool_choice": allowed("auto", tool("h")), **TWO}, "tool_choice.allowed_tools.tools"),
        ({"parallel_tool_calls": 1, **TWO}, "parallel_tool_calls"),
    ],
)
def test_wrong_values_are_named(asked, param):
    with pytest.raises(ApiError) as caught:
        tool_use(asked)
    assert (caught.value.status, caught.value.param) == (400, param)


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(["type", "function", "x"]), JSON), JSON, JSON, JSON)
def test_no_value_is_a_fault(odd, parameters, choice, several):
    asked = {"tools": [odd, tool(parameters=parameters)], "tool_choice": choice, "parallel_tool_calls": several}
    for body in (asked, {**asked, "tools": asked["tools"][1:]}):
        try:
            tool_use(body)
        except ApiError as error:
            assert error.status == 400 and error.param


def test_fields_of_a_function_are_in_exactly_one_class():
    keys = FunctionDefinition.__annotations__
    assert {name: classes(fields.FUNCTION, name) for name in keys} == dict.fromkeys(keys, 1)
