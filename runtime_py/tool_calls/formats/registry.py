"""Which notation a chat template writes. A new one is a file in formats/ and its class here."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_py.tool_calls.formats.gemma4 import Gemma4
from runtime_py.tool_calls.formats.gpt_oss import GptOss
from runtime_py.tool_calls.formats.hermes import Hermes
from runtime_py.tool_calls.formats.lfm2 import Lfm2
from runtime_py.tool_calls.formats.llama3 import Llama3
from runtime_py.tool_calls.formats.mistral import Mistral
from runtime_py.tool_calls.formats.plain import Plain
from runtime_py.tool_calls.notation import Format, Marks, Put, Tool
from runtime_py.tool_calls.reader import Reading, Text

FORMATS: tuple[type[Format], ...] = (GptOss, Gemma4, Mistral, Lfm2, Llama3, Hermes, Plain)  # the first that fits


class Unknown(Format):
    """A template with tools in a notation that no file knows: text, perhaps with reasoning before it."""

    NAME = "unknown"

    @classmethod
    def fits(cls, template: str) -> bool:
        return True

    def rest(self, tools: Sequence[Tool], marks: Marks, several: bool) -> list[str]:
        raise NotImplementedError("no request with tools comes here")

    def read(self, text: Text, put: Put, marks: Marks) -> Reading:
        yield from text.all(put.content)


def notation(template: str) -> Format:
    """The notation of a chat template."""
    return next((kind for kind in FORMATS if kind.fits(template)), Unknown)(template)
