"""Every field of a request: supported, without effect, refused by name, or unknown. Nothing is dropped in silence."""

from __future__ import annotations

import json

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import openai.types.embedding_create_params as embedding_params
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.chat_completion_content_part_text_param import ChatCompletionContentPartTextParam
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam

from runtime_py.serving.requests import fields, schema
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.messages import messages, template_variables
from runtime_py.serving.requests.tools import tool_use
from runtime_py.serving.shell import json_object
from runtime_py.text.generation_config import RULES, SAMPLING, UNSUPPORTED
from runtime_py.text.logit_processors import NEUTRAL, LogitRules

SERVED = schema.Served("m", 100, NEUTRAL, False, 68)
LENIENT = schema.Served("m", 100, NEUTRAL, True, 68)
ROUTES = {"completions": fields.COMPLETIONS, "chat": fields.CHAT, "embeddings": fields.EMBEDDINGS}
OF_OPENAI = {
    "completions": (completion_params, "CompletionCreateParams"),
    "chat": (chat_params, "CompletionCreateParams"),
    "embeddings": (embedding_params, "EmbeddingCreateParams"),
}
EXTENSIONS = """
min_p top_k repetition_penalty length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens prompt_logprobs allowed_token_ids bad_words
guided_json guided_regex guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern
structured_outputs echo add_generation_prompt continue_final_message add_special_tokens documents chat_template
chat_template_kwargs mm_processor_kwargs logits_processors cache_salt kv_transfer_params return_tokens_as_token_ids
return_token_ids use_beam_search best_of priority request_id vllm_xargs n_predict n_keep n_probs typical_p tfs_z
mirostat mirostat_tau mirostat_eta dry_multiplier dry_base dry_allowed_length dry_penalty_last_n
dry_sequence_breakers xtc_probability xtc_threshold dynatemp_range dynatemp_exponent top_n_sigma grammar json_schema
cache_prompt id_slot samplers t_max_predict_ms repeat_penalty repeat_last_n penalize_nl min_keep lora
reasoning_format timings_per_token post_sampling_probs do_sample watermark details decoder_input_details
return_full_text max_new_tokens truncate top_n_tokens adapter_id regex ebnf no_stop_trim separate_reasoning
lora_path session_params custom_logit_processor return_hidden_states rid options keep_alive think format raw images
num_predict num_ctx
"""  # of vLLM, llama.cpp, TGI, SGLang and Ollama


def schema_of(route: str) -> set[str]:
    """Field names of the installed openai client's types for a route."""
    module, prefix = OF_OPENAI[route]
    return {
        name
        for kind in vars(module).values()
        if getattr(kind, "__name__", "").startswith(prefix)
        for name in getattr(kind, "__annotations__", {})
    }


def classes(table: fields.Fields, name: str) -> int:
    return (name in table.supported) + (name in table.inert) + (name in table.refused)


def body_of(chat: bool, **more):
    if chat:
        return {"model": "m", "messages": [{"role": "user", "content": "x"}], **more}
    return {"model": "m", "prompt": "x", **more}


@pytest.mark.parametrize("route", ROUTES)
def test_every_field_of_the_schema_is_in_exactly_one_class(route):
    found = schema_of(route)
    assert len(found) >= 5
    assert {name: classes(ROUTES[route], name) for name in found} == dict.fromkeys(found, 1)


@pytest.mark.parametrize("route", ROUTES)
def test_the_classes_do_not_overlap_and_extensions_are_known_everywhere(route):
    table = ROUTES[route]
    known = table.supported | table.inert | set(table.refused)
    assert {name: classes(table, name) for name in known} == dict.fromkeys(known, 1)
    assert [name for name in EXTENSIONS.split() if name not in known] == []
    assert [name for name in (*UNSUPPORTED, *RULES, *SAMPLING) if name not in known] == []  # of transformers


@pytest.mark.parametrize("chat", [False, True])
def test_every_supported_field_reaches_the_options(chat):
    """Each supported field with a value other than its default gives other options."""
    values = {
        "stream": True, "max_tokens": 3, "max_completion_tokens": 3, "n": 2, "temperature": 0.5, "top_p": 0.5,
        "top_k": 3, "min_p": 0.1, "seed": 5, "stop": "x", "repetition_penalty": 1.1, "frequency_penalty": 1,
        "presence_penalty": -1, "logit_bias": {"3": -2}, "stop_token_ids": [4], "min_tokens": 1, "ignore_eos": True,
        "logprobs": True if chat else 1, "response_format": {"type": "json_object"}, "guided_regex": "a", "regex": "a",
        "structured_outputs": {"choice": ["a"]}, "guided_json": {}, "guided_choice": ["a"], "grammar": 'root ::= "a"',
        "guided_grammar": 'start: "a"', "json_schema": {}, "ebnf": 'root ::= "a"',
    }  # fmt: skip
    table = fields.CHAT if chat else fields.COMPLETIONS
    elsewhere = {"model", "messages", "prompt", "stream_options", "chat_template_kwargs", "top_logprobs", "best_of"}
    elsewhere |= {"tools", "tool_choice", "parallel_tool_calls"}  # test_request_tools.py
    assert table.supported - elsewhere == set(values) - (set() if chat else {"max_completion_tokens"})
    base = {"seed": 1}
    plain = schema.options(body_of(chat, **base), SERVED, chat, None)
    for name in table.supported - elsewhere:
        assert schema.options(body_of(chat, **base | {name: values[name]}), SERVED, chat, None) != plain, name
    both = schema.options(body_of(chat, n=3, best_of=3, **base), SERVED, chat, None)
    assert both.choices == 3
    asked = {"stream": True, "stream_options": {"include_usage": True}, **base}
    assert schema.options(body_of(chat, **asked), SERVED, chat, None).include_usage


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("lenient", [False, True])
def test_refused_fields_are_named_unless_they_change_nothing(route, lenient):
    table = ROUTES[route]
    for name, neutral in table.refused.items():
        for value in (None, *neutral):
            fields.check({name: value}, table, lenient)
        for value in ("other", 0.123, -7, ["other"], {"other": 1}, not any(v is True for v in neutral)):
            if any(type(value) is type(v) and value == v for v in neutral):
                continue
            with pytest.raises(ApiError) as caught:
                fields.check({name: value}, table, lenient)
            assert caught.value.status == 400 and caught.value.param == name and name in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"), [("suffix", 0), ("echo", 0), ("length_penalty", True), ("mirostat", False), ("functions", {})]
)
def test_a_number_is_no_truth_value(name, value):
    with pytest.raises(ApiError, match=name):
        fields.check({name: value}, fields.CHAT, False)


@pytest.mark.parametrize("name", ["temperatur", "Temperature", "", "top-k", "\ud800", "x" * 10000, "__class__", "né"])
@pytest.mark.parametrize("value", [None, 1, {}])
def test_unknown_fields_are_refused_unless_the_server_ignores_them(name, value):
    for chat in (False, True):
        with pytest.raises(ApiError, match="unknown field") as caught:
            schema.options(body_of(chat, **{name: value}), SERVED, chat, None)
        assert caught.value.status == 400
        json.dumps(caught.value.body(), ensure_ascii=False).encode()  # it can be sent
        schema.options(body_of(chat, **{name: value}), LENIENT, chat, None)


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.sampled_from([10**400, -(10**400), 2**63, -1, 0, 1, 1e308, 1e-320])
)
JSON = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(st.characters(exclude_categories=()), max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=600)
@given(st.booleans(), st.data())
def test_no_value_of_a_field_is_a_fault(chat, data):
    """Any JSON in any field gives options, or status 400 (404: another model) naming that field."""
    table = fields.CHAT if chat else fields.COMPLETIONS
    name = data.draw(st.sampled_from(sorted(table.supported | table.inert | set(table.refused))))
    body = body_of(chat, **{name: data.draw(JSON)})
    try:
        schema.options(body, SERVED, chat, 16)
        messages(body) if chat else schema.prompt(body)
        tool_use(body) if chat else None
        template_variables(body) if chat else None
    except ApiError as error:
        assert error.status == (404 if name == "model" and isinstance(body["model"], str) else 400)
        assert error.param is not None and error.param.split(".")[0].split("[")[0] == name
        json.dumps(error.body(), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"min_p": 1.01}, "min_p"),
        ({"min_p": 10**400}, "min_p"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": "1.1"}, "repetition_penalty"),
        ({"repetition_penalty": True}, "repetition_penalty"),
        ({"frequency_penalty": 2.01}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"logit_bias": [[1, -100]]}, "logit_bias"),  # llama.cpp's form
        ({"logit_bias": {"100": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"\u0663": 1}}, "logit_bias"),  # a digit, but not ASCII
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": False}}, "logit_bias"),
        ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias"),
        ({"stop_token_ids": [100]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"min_tokens": 17, "max_tokens": 16}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 2**31}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"best_of": 2}, "best_of"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"stream_options": []}, "stream_options"),
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": 5}, "guided_json"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
        ({"regex": "\ud800"}, "regex"),
        ({"json_schema": {"enum": ["\ud800"]}}, "json_schema"),
        ({"grammar": " "}, "grammar"),
        ({"ebnf": "x" * 600_000}, "ebnf"),
        ({"stop": ["\ud800"]}, "stop"),
    ],
)
def test_wrong_values_are_named(asked, param):
    for chat in (False, True):
        with pytest.raises(ApiError) as caught:
            schema.options(body_of(chat, **asked), SERVED, chat, None)
        assert (caught.value.status, caught.value.param) == (400, param)


def test_values_at_the_edges_are_accepted():
    for asked in (
        {"min_p": 0}, {"min_p": 1}, {"top_k": -1}, {"repetition_penalty": 1}, {"logit_bias": {}},
        {"logit_bias": {"0": -100, "99": 100}}, {"stop_token_ids": []}, {"min_tokens": 0}, {"n": 16},
        {"min_tokens": 16, "max_tokens": 16}, {"stream_options": {"include_obfuscation": True}}, {"top_logprobs": 0},
        {"parallel_tool_calls": True}, {"tools": []}, {"seed": -1},
    ):  # fmt: skip
        schema.options(body_of(True, **asked), SERVED, True, None)


def test_the_models_own_rules_hold_where_a_request_does_not_say_otherwise():
    own = LogitRules(repetition_penalty=1.2, min_length=5, suppress_tokens=(3,))
    served = schema.Served("m", 100, own, False, 68)
    assert schema.options(body_of(True), served, True, None).rules == own
    asked = schema.options(body_of(True, repetition_penalty=1, min_tokens=2), served, True, None).rules
    assert asked == LogitRules(min_tokens=2, suppress_tokens=(3,))


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (ChatCompletionUserMessageParam, fields.MESSAGE),
        (ChatCompletionSystemMessageParam, fields.MESSAGE),
        (ChatCompletionAssistantMessageParam, fields.MESSAGE),
        (ChatCompletionContentPartTextParam, fields.PART),
        (ChatCompletionStreamOptionsParam, fields.STREAM_OPTIONS),
    ],
)
def test_fields_of_nested_objects_are_in_exactly_one_class(kind, table):
    assert {name: classes(table, name) for name in kind.__annotations__} == dict.fromkeys(kind.__annotations__, 1)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "tool", "content": None, "tool_call_id": "1"}, "content"),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "tool_calls"),
        ({"role": "assistant", "tool_calls": {}}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [5]}, "tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}, "tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "function": {}}]}, "tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]},
            "tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]},
            "tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[1]"}}]},
            "tool_calls[0].function.arguments",
        ),
        ({"role": "function", "content": "x", "name": "f"}, "role"),
        ({"role": "robot", "content": "x"}, "role"),
        ({"role": ["user"], "content": "x"}, "role"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "tool_calls[0].function"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "content": "x", "refusal": "no"}, "refusal"),
        ({"role": "assistant", "content": "x", "prefix": True}, "prefix"),
        ({"role": "assistant", "content": "x", "weight": 0}, "weight"),
        ({"role": "user", "content": "x", "images": ["data"]}, "images"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, "tool_call_id"),
        ({"role": "user", "content": "x", "name": 5}, "name"),
        ({"role": "user", "content": "x", "name": "\udfff"}, "name"),
        ({"role": "user", "content": "x", "colour": "red"}, "colour"),
        ({"role": "user", "content": "\ud800"}, "content"),
        ({"role": "user", "content": None}, "content"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": {"type": "text", "text": "x"}}, "content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content[0].type"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}, "content[1].type"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "a"}]}, "content[0].type"),
        ({"role": "user", "content": [{"text": "a"}]}, "content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "bold": True}]}, "content[0].bold"),
        ({"role": "user", "content": ["a"]}, "content[0]"),
    ],
)
def test_parts_of_messages_that_are_not_supported_are_named(message, param):
    with pytest.raises(ApiError) as caught:
        messages({"messages": [{"role": "user", "content": "first"}, message]})
    assert (caught.value.status, caught.value.param) == (400, f"messages[1].{param}")


def test_what_a_message_may_carry_reaches_the_template():
    answer = {  # as the openai client writes an answer back
        "role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None, "function_call": None,
        "tool_calls": None, "reasoning_content": "why",
    }  # fmt: skip
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]
    asked = [{"role": "developer", "content": "s"}, {"role": "user", "name": "Ann", "content": parts}, answer]
    assert messages({"messages": asked}) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "ab", "name": "Ann"},
        {"role": "assistant", "content": "x", "reasoning_content": "why"},
    ]
    odd = {"role": "user", "content": "x", "colour": {"red": [1]}}
    assert messages({"messages": [odd]}, ignore_unknown=True) == [odd]
    with pytest.raises(ApiError, match="tool_calls"):
        messages({"messages": [{**odd, "tool_calls": [1]}]}, ignore_unknown=True)


def test_calls_and_their_results_reach_the_template():
    def call(number, arguments):
        return {
            "id": number,
            "type": "function",
            "index": 0,
            "function": {"name": "f" + number, "arguments": arguments},
        }

    asked = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call("1", '{"a": [1]}'), call("2", "")]},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "two"}]},
        {"role": "tool", "tool_call_id": "1", "content": "one", "name": "own"},
    ]
    shown = messages({"messages": asked})
    assert shown[1]["content"] == "" and [c["function"]["arguments"] for c in shown[1]["tool_calls"]] == [
        {"a": [1]},
        {},
    ]
    assert shown[2:] == [
        {"role": "tool", "content": "two", "tool_call_id": "2", "name": "f2"},
        {"role": "tool", "content": "one", "tool_call_id": "1", "name": "own"},
    ]


def nested(depth: int):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [[], "x", 5, True, {"x": "\ud800"}, {"\udc00": 1}, {"x": nested(40)}])
def test_template_variables_are_checked(value):
    with pytest.raises(ApiError) as caught:
        template_variables({"chat_template_kwargs": value})
    assert (caught.value.status, caught.value.param) == (400, "chat_template_kwargs")
    assert template_variables({"chat_template_kwargs": {"x": nested(20)}}) == {"x": nested(20)}
    assert template_variables({"chat_template_kwargs": None}) == {} == template_variables({})


@pytest.mark.parametrize("text", ['{"seed": 1e999}', '{"temperature": 1e400}', '{"n": 1' + "0" * 400 + "}"])
def test_numbers_that_json_allows_and_floats_do_not(text):
    with pytest.raises(ApiError) as caught:
        schema.options({**body_of(True), **json_object(text.encode())}, SERVED, True, None)
    assert caught.value.status == 400
