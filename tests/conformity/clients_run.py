"""Talks to a server with LangChain's and LlamaIndex's OpenAI classes: python clients_run.py URL CHAT_MODEL ENCODER.

Runs in an environment of its own (these need an older openai than our tests); prints what came as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def langchain(url: str, model: str, encoder: str) -> dict[str, Any]:
    """A chat, a stream, tools, a form, embeddings, and the Responses API."""
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    given: dict[str, Any] = {"base_url": url, "api_key": "none", "model": model, "max_retries": 0}
    chat = ChatOpenAI(temperature=0, max_tokens=12, **given)
    messages = [("system", "Be brief."), ("user", "Once upon a time")]

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    schema = {
        "title": "fine",
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    tools = ChatOpenAI(temperature=0, max_tokens=200, **given).bind_tools([add], tool_choice="add")
    formed = ChatOpenAI(seed=1, max_tokens=200, **given).with_structured_output(schema, method="json_schema")
    embeddings = OpenAIEmbeddings(base_url=url, api_key="none", model=encoder, check_embedding_ctx_length=False)
    responses = ChatOpenAI(temperature=0, max_tokens=12, use_responses_api=True, **given)
    return {
        "whole": chat.invoke(messages).content,
        "streamed": "".join(str(chunk.content) for chunk in chat.stream(messages)),
        "calls": [[call["name"], sorted(call["args"])] for call in tools.invoke(messages).tool_calls],
        "formed": formed.invoke(messages),
        "vectors": [len(one) for one in embeddings.embed_documents(["a b c", "d"])],
        "responses": responses.invoke(messages).text,
        "responses_streamed": "".join(chunk.text for chunk in responses.stream(messages)),
    }


def llama_index(url: str, model: str, encoder: str) -> dict[str, Any]:
    """Chats, completions, streams of both, embeddings."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    given: dict[str, Any] = {"api_base": url, "api_key": "none", "model": model, "temperature": 0, "max_tokens": 12}
    chat, plain = OpenAILike(is_chat_model=True, **given), OpenAILike(is_chat_model=False, **given)
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Once upon a time")]
    return {
        "whole": chat.chat(messages).message.content,
        "streamed": "".join(chunk.delta or "" for chunk in chat.stream_chat(messages)),
        "completed": plain.complete("Once upon a time").text,
        "completed_streamed": "".join(chunk.delta or "" for chunk in plain.stream_complete("Once upon a time")),
    }


def main() -> None:
    """Command line."""
    clients: tuple[Callable[[str, str, str], dict[str, Any]], ...] = (langchain, llama_index)
    print(json.dumps({client.__name__: client(*sys.argv[1:]) for client in clients}))


if __name__ == "__main__":
    main()
