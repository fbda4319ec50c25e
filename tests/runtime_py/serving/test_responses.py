"""`/v1/responses` as the openai client asks for it: texts, streams, tools, forms; and what is refused."""

from __future__ import annotations

import json

import openai
import pytest
from starlette.testclient import TestClient

from runtime_py.chat.template import ChatTemplate
from runtime_py.serving.app import Server
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.responses import as_chat
from runtime_py.serving.settings import ServeSettings
from runtime_py.text.generator import TextGenerator

TEMPLATE = """{% for t in tools or [] %}<tools>{{ t.function.name }}</tools>{% endfor %}{% for m in messages %}\
<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>\
{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
ADD = {
    "type": "function",
    "name": "add",
    "description": "Adds",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
    },
}


@pytest.fixture(scope="module")
def http(served_folder):
    generator = TextGenerator(served_folder)
    server = Server(generator, ChatTemplate(TEMPLATE, {}, "t"), "m", ServeSettings(sessions=2, queue=6))
    with TestClient(server.application(), base_url="http://test") as found:
        yield found
    server.close()


@pytest.fixture(scope="module")
def client(server_url):
    return openai.OpenAI(base_url=server_url, api_key="x", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def server_url(served_folder, tmp_path_factory):
    from tests.runtime_py.serving.helpers import ServerProcess

    template = tmp_path_factory.mktemp("template") / "t.jinja"
    template.write_text(TEMPLATE)
    with ServerProcess(served_folder, "--model-name", "m", "--chat-template", str(template)) as process:
        yield process.url


def test_a_response_is_the_chat_of_the_same_messages(client):
    asked = {"model": "m", "temperature": 0}
    chat = client.chat.completions.create(
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once"}],
        max_tokens=12,
        **asked,
    )
    found = client.responses.create(instructions="Be brief.", input="Once", max_output_tokens=12, **asked)
    assert found.output_text == chat.choices[0].message.content
    assert found.usage.input_tokens == chat.usage.prompt_tokens
    assert found.usage.output_tokens == chat.usage.completion_tokens == 12
    assert found.status == "incomplete" and found.incomplete_details.reason == "max_output_tokens"
    assert found.output[0].status == "incomplete"
    assert (found.object, found.model, found.instructions, found.temperature) == ("response", "m", "Be brief.", 0)
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Once"}]},
    ]
    assert client.responses.create(input=items, max_output_tokens=12, **asked).output_text == found.output_text


def test_a_stream_has_every_step_in_order(client):
    asked = {"model": "m", "input": "Once", "temperature": 0, "max_output_tokens": 12}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = events[-1].response  # the client calls only a completed one final
    assert final.output_text == whole.output_text
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    raw = list(client.responses.create(stream=True, **asked))
    assert "".join(e.delta for e in raw if e.type == "response.output_text.delta") == whole.output_text
    assert len({e.response.id for e in raw if hasattr(e, "response")}) == 1
    assert raw[-1].response.usage.output_tokens == 12


def test_a_conversation_goes_on_with_what_came(client):
    first = client.responses.create(model="m", input="Once", max_output_tokens=5, temperature=0)
    items = [{"role": "user", "content": "Once"}, *first.output, {"role": "user", "content": "And?"}]
    second = client.responses.create(model="m", input=items, max_output_tokens=5, temperature=0)
    chat = client.chat.completions.create(
        model="m", max_tokens=5, temperature=0,
        messages=[{"role": "user", "content": "Once"}, {"role": "assistant", "content": first.output_text},
                  {"role": "user", "content": "And?"}],
    )  # fmt: skip
    assert second.output_text == chat.choices[0].message.content


def test_a_loop_of_tools(client):
    asked = {"model": "m", "tools": [ADD], "tool_choice": {"type": "function", "name": "add"}, "temperature": 0}
    asked["parallel_tool_calls"] = False
    items = [{"role": "user", "content": "Add 2"}]
    found = client.responses.create(input=items, **asked)
    (call,) = [item for item in found.output if item.type == "function_call"]
    assert call.name == "add" and call.status == "completed" and found.status == "completed"
    assert set(json.loads(call.arguments)) == {"a", "b"}
    events = list(client.responses.create(input=items, stream=True, **asked))
    kinds = [event.type for event in events]
    assert "response.function_call_arguments.delta" in kinds and kinds[-1] == "response.completed"
    done = next(e for e in events if e.type == "response.function_call_arguments.done")
    assert done.arguments == call.arguments
    items += [*found.output, {"type": "function_call_output", "call_id": call.call_id, "output": "4"}]
    answer = client.responses.create(model="m", input=items, tools=[ADD], temperature=0, max_output_tokens=4)
    assert answer.output_text or answer.output


def test_several_calls_are_several_items(client):
    found = client.responses.create(
        model="m", input="Add", tools=[ADD], tool_choice="required", extra_body={"seed": 2}, max_output_tokens=300
    )
    calls = [item for item in found.output if item.type == "function_call"]
    assert len({call.call_id for call in calls}) == len({call.id for call in calls}) == len(calls)
    if found.status == "completed":
        assert all(json.loads(call.arguments).keys() == {"a", "b"} for call in calls)


def test_an_answer_has_the_form_that_text_asks_for(client):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "x", "strict": True, "schema": schema}
    found = client.responses.create(model="m", input="x", text={"format": form}, extra_body={"seed": 1})
    assert isinstance(json.loads(found.output_text)["a"], bool) and found.status == "completed"
    assert found.text.format.type == "json_schema"


def test_log_probabilities(client):
    include = ["message.output_text.logprobs"]
    asked = {
        "model": "m",
        "input": "Once",
        "temperature": 0,
        "max_output_tokens": 4,
        "include": include,
        "top_logprobs": 2,
    }
    found = client.responses.create(**asked).output[0].content[0]
    assert len(found.logprobs) == 4 and all(len(one.top_logprobs) == 2 for one in found.logprobs)
    assert "".join(one.token for one in found.logprobs).strip() == found.text.strip()
    events = list(client.responses.create(stream=True, **asked))
    told = [one.token for e in events if e.type == "response.output_text.delta" for one in e.logprobs]
    assert told == [one.token for one in found.logprobs]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": {"a": 1}}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"input": [{"type": "reasoning", "content": [1]}]}, "input[0].content"),
        ({"input": [{"type": "reasoning", "content": 1}]}, "input[0].content"),
        ({"input": "\ud800"}, "input[0].content"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": 1}, "tools"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        ({"nobody": 2}, "nobody"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
    ],
)
def test_what_is_wrong_is_named_as_the_client_wrote_it(body, param):
    with pytest.raises(ApiError) as error:
        as_chat({"input": "x", **body} if body else {}, False)
    assert error.value.status == 400 and error.value.param == param and "\n" not in error.value.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"instructions": "x", "input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "no"}]},
         "input[0].tool_calls[0].function.arguments"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "word " * 5000}, "input"),
        ({"model": "other"}, "model"),
    ],
)  # fmt: skip
def test_what_the_chat_finds_wrong_is_named_so_too(http, body, param):
    answer = http.post("/v1/responses", json={"model": "m", "input": "x", **body})
    assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == param, answer.text


def test_harmless_fields_are_accepted(http):
    more = {
        "store": True, "metadata": {"a": "b"}, "user": "u", "truncation": "disabled", "background": False,
        "include": [], "reasoning": {"effort": None}, "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "service_tier": "auto", "stream": False,
        "previous_response_id": None, "prompt_cache_key": "x", "top_logprobs": None,
    }  # fmt: skip
    answer = http.post("/v1/responses", json={"input": "x", "max_output_tokens": 2, **more}).json()
    assert answer["store"] is False and answer["metadata"] == {"a": "b"} and answer["status"] == "incomplete"


def test_a_stored_response_is_not_there(http):
    assert http.get("/v1/responses/resp_1").status_code == 404
