"""A conversation that fits the model's context: what is kept when it does not, and the ids to continue from.

The rule: the system message and the newest message always stay. Older messages are dropped from the oldest on, a
question together with its answers, until the prompt leaves the room that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from export.contract.errors import InputError
from runtime_py.chat.template import NONE, Message, PlainTemplate, Template
from runtime_py.text.tokenizing import TooLong, encode_prompt


def prompt_ids(
    messages: Sequence[Message], template: Template, tokenizer: Tokenizer, variables: Mapping[str, Any] = NONE,
    most: int | None = None,
) -> list[int]:  # fmt: skip
    """Token ids of the conversation. Templates write their own special tokens; plain text gets the tokenizer's.

    variables: what the template may read besides the messages, such as tools (ChatTemplate.render). most: bytes of
    the prompt (tokenizing.most_bytes).

    Raises InputError when the template refuses the messages or nothing is left of them, TooLong when there are
    more bytes.
    """
    text = template.render(messages, variables=variables)
    ids = encode_prompt(tokenizer, text, most, special=isinstance(template, PlainTemplate))
    if not ids:
        raise InputError("the prompt is empty: at least one token is needed")
    return ids


def fit(
    messages: Sequence[Message], template: Template, tokenizer: Tokenizer, context: int, room: int,
    variables: Mapping[str, Any] = NONE, most: int | None = None,
) -> tuple[list[Message], list[int], int]:  # fmt: skip
    """(messages kept, their ids, messages dropped) such that `room` tokens of the context stay free for the answer.

    Raises InputError when the newest message alone is too long.
    """
    kept = list(messages)
    while True:
        try:
            ids = prompt_ids(kept, template, tokenizer, variables, most)
            if len(ids) + room <= context:
                return kept, ids, len(messages) - len(kept)
            size = f"{len(ids)} tokens"
        except TooLong:
            size = "too many tokens"
        first = 1 if kept[0]["role"] == "system" else 0
        later = [i for i in range(first + 1, len(kept)) if kept[i]["role"] == "user"]
        if not later:
            raise InputError(
                f"the message has {size} with its surroundings; the context of {context} leaves "
                f"{max(context - room, 0)} for it and {room} for the answer"
            )
        del kept[first : later[0]]
