"""Tools and response formats as the real openai client sees them: loops, streams, every tool_choice, and refusals."""

from __future__ import annotations

import json
import threading
import time

import jsonschema
import openai
import pytest

from runtime_py.chat.template import ChatTemplate, PlainTemplate
from runtime_py.serving.app import Server
from runtime_py.serving.settings import ServeSettings
from runtime_py.text.generator import TextGenerator
from tests.runtime_py.serving.helpers import ServerProcess
from tests.runtime_py.structured.schemas import record

pytest.importorskip("llguidance")

HERMES = """{%- if tools %}Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}\n{% endif %}
{%- for m in messages %}{{ m.role }}: {{ m.content }}
{%- for call in m.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}\n{% endfor -%}
assistant: {% if thinking %}<think>{% endif %}"""
THINKING = HERMES + "{# </think> #}"
ADD = record(a={"type": "integer", "minimum": 0, "maximum": 99}, b={"type": "integer", "minimum": 0, "maximum": 99})
WEATHER = record("city", city={"enum": ["Bern", "Oslo"]}, days={"type": "integer", "minimum": 1, "maximum": 7})
SCHEMAS = {"add": ADD, "weather": WEATHER}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds two numbers.", "parameters": ADD}},
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}},
]
ASK = [{"role": "user", "content": "What is it?"}]


@pytest.fixture(scope="module")
def generator(served_folder):
    return TextGenerator(served_folder)


@pytest.fixture(scope="module", params=["plain", "hermes"])
def client(request, generator):
    """The openai client on the application itself, with a notation of its own and without one."""
    template = PlainTemplate() if request.param == "plain" else ChatTemplate(HERMES, {}, "t")
    with serving(generator, template) as found:
        found.notation = request.param
        yield found


class serving:
    """An application in a thread of its own event loop, behind the openai client."""

    def __init__(self, generator, template, **settings):
        import uvicorn

        from runtime_py.serving.server import bind

        self._server = Server(generator, template, "m", ServeSettings(sessions=2, queue=6, **settings))
        socket = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}/v1"
        config = uvicorn.Config(self._server.application(), log_level="warning", lifespan="off")
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [socket]})

    def __enter__(self):
        self._thread.start()
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=60)

    def __exit__(self, *_):
        self._uvicorn.should_exit = True
        self._thread.join()
        self._server.close()


def talk(client, messages=ASK, **more):
    return client.chat.completions.create(model="m", messages=messages, **{"max_tokens": 150, **more})


def named(name):
    return {"type": "function", "function": {"name": name}}


def check(call):
    arguments = json.loads(call.function.arguments)
    jsonschema.validate(arguments, SCHEMAS[call.function.name])
    return arguments


def test_a_loop_over_two_tools(client):
    """Each turn's call is carried out and sent back, until the answer is text."""
    functions = {"add": lambda a, b: a + b, "weather": lambda city, days=1: f"rain in {city} for {days}"}
    messages = list(ASK)
    for turn, choice in enumerate((named("add"), named("weather"), "none")):
        answer = talk(
            client, messages, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_tokens=80, seed=turn
        )
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if choice == "none":
            assert message.content and not message.tool_calls and answer.choices[0].finish_reason in ("stop", "length")
            break
        (call,) = message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == choice["function"]["name"]
        result = functions[call.function.name](**check(call))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("seed", range(4))
def test_required_calls_some_tool_with_valid_arguments_at_any_temperature(client, seed):
    answer = talk(client, tools=TOOLS, tool_choice="required", temperature=1.5, seed=seed, parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls
    check(call)
    assert answer.choices[0].message.content is None and len(call.id) == 9


def test_several_calls_in_one_answer(client):
    counts = set()
    for seed in range(12):
        answer = talk(client, tools=TOOLS, tool_choice="required", seed=seed, temperature=1.5).choices[0]
        calls = answer.message.tool_calls
        counts.add(len(calls))
        assert len({call.id for call in calls}) == len(calls)
        if answer.finish_reason == "tool_calls":
            for call in calls:
                check(call)
    assert max(counts) > 1


def test_auto_and_none(client):
    """Left to itself, this model writes stories; without tools its answer is what it was without the field."""
    plain = talk(client, max_tokens=12, temperature=0)
    none = talk(client, max_tokens=12, temperature=0, tools=TOOLS, tool_choice="none")
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    auto = talk(client, max_tokens=12, temperature=0, tools=TOOLS)
    assert auto.choices[0].message.content and auto.choices[0].message.tool_calls is None
    assert auto.usage.prompt_tokens > plain.usage.prompt_tokens + 50  # the template told of the tools


@pytest.mark.parametrize("count", [1, 2])
def test_a_stream_has_the_same_calls_in_pieces(client, count):
    asked = {"tools": TOOLS, "tool_choice": "required", "seed": 3, "n": count, "temperature": 1.2}
    whole = talk(client, **asked)
    chunks = list(talk(client, stream=True, stream_options={"include_usage": True}, **asked))
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant" and [one.finish_reason for one in mine[:-1]] == [None] * (
            len(mine) - 1
        )
        assert mine[-1].finish_reason == choice.finish_reason and not mine[-1].delta.tool_calls
        deltas = [call for one in mine for call in one.delta.tool_calls or []]
        assert all(len(one.delta.tool_calls or []) <= 1 for one in mine)
        calls = []
        for delta in deltas:  # the first of a call has its name, the others only more of its arguments
            if delta.index == len(calls):
                assert delta.id and delta.type == "function" and delta.function.arguments == ""
                calls.append([delta.function.name, ""])
            else:
                assert delta.index == len(calls) - 1 and delta.id is None and delta.function.name is None
                calls[-1][1] += delta.function.arguments
        assert calls == [[c.function.name, c.function.arguments] for c in choice.message.tool_calls]
        assert len(deltas) > 2 * len(calls)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_clients_own_stream_helper_and_parser(client):
    import pydantic

    class Answer(pydantic.BaseModel):
        fine: bool
        number: int = pydantic.Field(ge=0, le=9)

    parsed = client.chat.completions.parse(model="m", messages=ASK, response_format=Answer, max_tokens=60)
    assert 0 <= parsed.choices[0].message.parsed.number <= 9
    with client.chat.completions.stream(model="m", messages=ASK, response_format=Answer, max_tokens=60) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Answer)


FORMS = {
    "json_schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": ADD, "strict": True}}
    },
    "llama.cpp": {"response_format": {"type": "json_object", "schema": ADD}},
    "structured_outputs": {"structured_outputs": {"json": ADD}},
    "guided_json": {"guided_json": json.dumps(ADD)},
    "json_schema of llama.cpp": {"json_schema": ADD},
}
TEXTS = {
    "guided_regex": "[ab]{3}",
    "regex": "[ab]{3}",
    "guided_choice": ["aab", "bba"],
    "ebnf": "root ::= [ab] [ab] [ab]",
}


@pytest.mark.parametrize("name", [*FORMS, *TEXTS])
@pytest.mark.parametrize("chat", [False, True])
def test_answers_are_held_to_a_form_under_every_name(client, name, chat):
    asked = {"extra_body": FORMS.get(name) or {name: TEXTS[name]}, "temperature": 1.5, "n": 2, "max_tokens": 60}
    if chat:
        texts = [choice.message.content for choice in talk(client, **asked).choices]
    else:
        texts = [choice.text for choice in client.completions.create(model="m", prompt="A:", **asked).choices]
    for text in texts:
        if name in FORMS:
            jsonschema.validate(json.loads(text), ADD)
        else:
            assert len(text) == 3 and set(text) <= {"a", "b"}


def test_a_form_beside_tools_holds_the_text(client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": record(ok={"type": "boolean"})}}
    for seed in range(4):
        choice = talk(client, tools=TOOLS, response_format=form, seed=seed, temperature=1.5).choices[0]
        if choice.finish_reason == "tool_calls":
            [check(call) for call in choice.message.tool_calls]
        elif choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content)["ok"], bool)
    with pytest.raises(openai.BadRequestError, match="tool_choice asks for a call"):
        talk(client, tools=TOOLS, tool_choice="required", response_format=form)


def test_log_probabilities_and_stop_strings_beside_calls(client):
    asked = {"tools": TOOLS, "tool_choice": named("add"), "parallel_tool_calls": False, "seed": 1, "logprobs": True}
    whole = talk(client, **asked)
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    chunks = [c.choices[0] for c in talk(client, stream=True, **asked)]
    assert sum(len(c.logprobs.content) for c in chunks if c.logprobs) == whole.usage.completion_tokens
    cut = talk(client, stop=['"b"'], **asked).choices[0]
    assert (
        cut.message.tool_calls[0].function.arguments.rstrip(", ")
        in whole.choices[0].message.tool_calls[0].function.arguments
    )


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True,
                     "parameters": record(x={"not": {}})}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": 5}}}]}, "tools"),
        ({"tools": TOOLS, "chat_template_kwargs": {"tools": []}}, "tools"),
        ({"response_format": {"type": "json_object", "schema": {"type": "nope"}}}, "response_format.schema"),
        ({"response_format": {"type": "json_object", "schema": {"$ref": "#/x"}}}, "response_format.schema"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_regex": "(a{1,1000}){1,1000}{1,1000}"}, "guided_regex"),
        ({"guided_grammar": "start: x"}, "guided_grammar"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_form_is_refused_by_name(client, asked, param):
    if "chat_template_kwargs" in asked and client.notation == "plain":
        pytest.skip("no template")
    with pytest.raises(openai.BadRequestError) as caught:
        talk(client, extra_body=asked)
    assert caught.value.body["param"].startswith(param), caught.value.body


def test_a_hostile_grammar_does_not_hold_up_others(client):
    """While one grammar is given up after its seconds, another client gets its answers."""
    hostile = "start: " + " | ".join(f'"{i}x{i}"' for i in range(38000))
    statuses = []

    def attack():
        try:
            talk(client, extra_body={"guided_grammar": hostile}, max_tokens=5)
            statuses.append(200)
        except openai.APIStatusError as error:
            statuses.append(error.status_code)

    thread = threading.Thread(target=attack)
    thread.start()
    waits = []
    while thread.is_alive():
        start = time.monotonic()
        talk(client, max_tokens=2)
        waits.append(time.monotonic() - start)
    thread.join()
    assert statuses[0] in (200, 400) and max(waits, default=0) < 4


def test_reasoning_goes_to_a_field_of_its_own(generator):
    """The prompt begins the reasoning, which this model does not end within twelve tokens."""
    with serving(generator, ChatTemplate(THINKING, {}, "t")) as client:
        asked = {"max_tokens": 12, "temperature": 0}
        thinking = {"extra_body": {"chat_template_kwargs": {"thinking": True}}, **asked}
        message = talk(client, **thinking).choices[0].message
        assert message.reasoning_content and message.content == ""
        deltas = [chunk.choices[0].delta for chunk in talk(client, stream=True, **thinking)]
        assert "".join(getattr(d, "reasoning_content", "") for d in deltas) == message.reasoning_content
        assert not any(delta.content for delta in deltas)
        message = talk(client, **asked).choices[0].message
        assert message.content and not hasattr(message, "reasoning_content")


def test_a_template_with_tools_in_an_unknown_notation_refuses_them(generator):
    with serving(
        generator, ChatTemplate("{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}", {}, "t")
    ) as client:
        with pytest.raises(openai.BadRequestError, match="does not know"):
            talk(client, tools=TOOLS)
        assert talk(client, max_tokens=3).choices[0].message.content


def test_a_real_process_serves_them(served_folder):
    with ServerProcess(served_folder, "--model-name", "m") as process:
        client = openai.OpenAI(base_url=process.url, api_key="none", max_retries=0, timeout=60)
        (call,) = (
            talk(client, tools=TOOLS, tool_choice=named("add"), parallel_tool_calls=False).choices[0].message.tool_calls
        )
        assert set(check(call)) == {"a", "b"}
