"""Options of `run` and `chat` that change how tokens are chosen. Named and defined as the server's request fields."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from toolchain.cli.common import whole_numbers

if TYPE_CHECKING:
    from runtime_py.text.generator import TextGenerator
    from runtime_py.text.logit_processors import LogitRules

MinP = Annotated[
    Optional[float], typer.Option(help="Drop tokens below this share of the most likely one's probability.")
]
RepetitionPenalty = Annotated[
    Optional[float], typer.Option(help="Above 1: tokens of prompt and answer become less likely.")
]
FrequencyPenalty = Annotated[float, typer.Option(help="Taken from a token's logit for every time the answer has it.")]
PresencePenalty = Annotated[float, typer.Option(help="Taken once from the logit of a token that the answer has.")]
LogitBias = Annotated[
    Optional[list[str]], typer.Option(metavar="ID=BIAS", help="Added to a token's logit; may be repeated.")
]
MinTokens = Annotated[Optional[int], typer.Option(help="No stop token before the answer has this many tokens.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="The model's end-of-sequence tokens do not end it.")]
StopTokenIds = Annotated[str, typer.Option(help="Token ids that end the answer, too, such as 2,7.")]
Stop = Annotated[Optional[list[str]], typer.Option(help="Text that ends an answer; may be repeated.")]
TemplateVariable = Annotated[
    Optional[list[str]],
    typer.Option(metavar="NAME=JSON", help="For the chat template, such as enable_thinking=false; may be repeated."),
]


@dataclass(frozen=True)
class TokenOptions:
    """What was asked for on the command line."""

    repetition_penalty: float | None
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Sequence[str]
    min_tokens: int | None
    ignore_eos: bool
    stop_token_ids: str

    def rules(self, generator: TextGenerator) -> LogitRules:
        """The model's own rules with what was asked for. Raises InputError naming the option that is wrong."""
        bias = tuple(_bias(text, generator.session.vocab_size) for text in self.logit_bias)
        return generator.rules.with_asked(
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=tuple(dict(bias).items()),
            min_tokens=self.min_tokens,
        )

    def stops(self, generator: TextGenerator) -> frozenset[int]:
        """Tokens that end the answer. Raises InputError when one is outside the vocabulary."""
        tokens = frozenset(whole_numbers(self.stop_token_ids, "--stop-token-ids"))
        _inside(tokens, generator.session.vocab_size, "--stop-token-ids")
        return tokens if self.ignore_eos else tokens | generator.stop


def check_counts(max_tokens: int, min_tokens: int | None) -> None:
    """Raises InputError when there is no answer of such a length."""
    from export.contract.errors import InputError

    if max_tokens < 1:
        raise InputError(f"--max-tokens must be 1 or more, not {max_tokens}")
    if (min_tokens or 0) > max_tokens:
        raise InputError(f"--min-tokens is {min_tokens}, more than the {max_tokens} of --max-tokens")


def template_variables(given: Sequence[str]) -> dict[str, Any]:
    """NAME=JSON pairs. Raises InputError for one that is none."""
    from export.contract.errors import InputError

    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            equals = ""
        if not name or not equals:
            raise InputError(
                f"--template-variable must be NAME=JSON, such as enable_thinking=false, not {text[:100]!r}"
            )
    return found


def tell_unsupported(generator: TextGenerator) -> None:
    """One line for what the model's generation_config.json asks for in vain."""
    if generator.unsupported:
        names = ", ".join(generator.unsupported)
        print(f"[generation_config.json asks for {names}, which this runtime does not have: ignored]", file=sys.stderr)


def _bias(text: str, vocabulary: int) -> tuple[int, float]:
    from export.contract.errors import InputError

    token, _, bias = text.partition("=")
    try:
        found = int(token), float(bias)
    except ValueError:
        raise InputError(f"--logit-bias must be ID=BIAS, such as 13=-5, not {text[:100]!r}") from None
    _inside({found[0]}, vocabulary, "--logit-bias")
    return found


def _inside(tokens: set[int] | frozenset[int], vocabulary: int, option: str) -> None:
    from export.contract.errors import InputError

    if any(not 0 <= token < vocabulary for token in tokens):
        raise InputError(f"{option}: token ids go from 0 to {vocabulary - 1}")
