"""Compiles grammars of strangers in a process of its own, which speaks JSON lines on stdin and stdout.

llguidance bounds what a grammar costs, and catches its own panics; what it misses (a stack that overflows, memory, a
conversion that takes for ever) ends this process and not the server. The vocabulary is a small one: what it costs to go
through a model's tokens is known.
"""

from __future__ import annotations

import json
import sys
from typing import Any

_MEMORY = 2 << 30  # bytes of address space the process may have


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # not on this system; the time limit is still there
        return


def tried(tokenizer: Any, request: dict[str, Any]) -> dict[str, Any]:
    """{"grammar": for llguidance} or {"error": why not} for the fields of a Form."""
    from runtime_py.structured.forms import MOST_BYTES, assembled, with_head
    from runtime_py.structured.vocabulary import library, limits

    grammar = request["grammar"]
    if request["gbnf"]:
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            grammar = with_head(any_to_lark(grammar))
        except Exception as error:  # whatever the converter meets
            return {"error": f"neither Lark nor GBNF: {error}"}
        if len(grammar.encode()) > MOST_BYTES:
            return {"error": f"it becomes more than {MOST_BYTES} bytes of Lark"}
    grammar = assembled(grammar, request["around"])
    matcher = library().LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return {"error": matcher.get_error()} if matcher.is_error() else {"grammar": grammar}


def main() -> None:
    """The first line: {"size": logits, "special": {id: name}}, answered by {}; each further one as tried() takes it."""
    from runtime_py.structured.vocabulary import library, of_bytes

    tokenizer = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if tokenizer is None:
                special = {int(token): name for token, name in request["special"].items()}
                tokenizer = library().LLTokenizer(of_bytes(request["size"], special))
                _limit_memory()
                answer: dict[str, Any] = {}
            else:
                answer = tried(tokenizer, request)
        except MemoryError:
            answer = {"error": "it needs too much memory"}
        except RecursionError:
            answer = {"error": "it nests too deeply"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
