"""Renders chat templates in a process of its own. Run as a script; speaks JSON lines on stdin and stdout.

A chat template is a program that came with a downloaded model. Jinja's sandbox keeps it from files and attributes; only
a process keeps it from looping forever or filling the memory, so template.py starts this file, limits it and kills it.
The environment is the one of transformers (utils/chat_template_utils.py), so that every template renders the same.

Imports nothing of this project: the script must start fast and know nothing worth stealing.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

_MEMORY = 1 << 30  # bytes of address space the process may have


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    except (ImportError, ValueError, OSError):  # not on this system; the time limit is still there
        return


def _environment() -> Any:
    import jinja2
    import jinja2.ext
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """The {% generation %} block, with which templates mark the assistant's words for training: passed through."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

        @staticmethod
        def _pass(caller: Any) -> str:
            return str(caller())

    class Dict:
        """`dict` for templates: it makes dictionaries and has no attribute of the type."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class Namespace(jinja2.utils.Namespace):
        """A namespace without names that start with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name in the namespace
            attributes = dict(*args[1:], **kwargs)
            for name in attributes:
                Namespace._check(name)
            jinja2.utils.Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace._check(name)
            super().__setitem__(name, value)

        @staticmethod
        def _check(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=Dict(), namespace=Namespace
    )
    return environment


def _answer(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Each line: {"template": text, "variables": null or object}. Answers {"text": ...} or {"error": ...}.

    Without variables the template is only compiled.
    """
    _limit_memory()
    environment, compiled = None, {}
    for line in sys.stdin:
        try:
            environment = environment or _environment()
            request = json.loads(line)
            text, variables = request["template"], request["variables"]
            if text not in compiled:
                compiled[text] = environment.from_string(text)
            _answer({"text": "" if variables is None else compiled[text].render(**variables)})
        except MemoryError:
            _answer({"error": "it needs more than 1 GB of memory"})
        except RecursionError:
            _answer({"error": "it nests too deeply"})
        except Exception as error:  # whatever a template can raise
            _answer({"error": " ".join(f"{type(error).__name__}: {error}"[:500].split())})


if __name__ == "__main__":
    main()
