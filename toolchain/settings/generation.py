"""How tokens are chosen and when an answer ends: what `run` and `chat` share, named as the server's request fields.

The runtime's own settings (runtime_py/text/sampling.py, logit_processors.py) check values: requests bring them, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Optional

from export.contract.errors import InputError
from toolchain.settings.option import check_limits, option

if TYPE_CHECKING:
    from runtime_py.structured.forms import Form
    from runtime_py.text.generation import Constraint
    from runtime_py.text.generator import TextGenerator
    from runtime_py.text.logit_processors import LogitRules
    from runtime_py.text.sampling import SamplingSettings

_OWN = "the model's own"


@dataclass(frozen=True)
class LengthSettings:
    """How long an answer is."""

    PANEL: ClassVar[str] = "Answer"

    max_tokens: int = option(512, "Most tokens of an answer", low=1, common=True)
    min_tokens: Optional[int] = option(None, "No stop token before the answer has this many tokens", unset=_OWN)


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is drawn."""

    PANEL: ClassVar[str] = "Sampling"

    temperature: Optional[float] = option(None, "0 is greedy", unset=f"{_OWN}, else 0.7", common=True)
    top_k: Optional[int] = option(None, "Keep the k most likely tokens; 0: all", unset=f"{_OWN}, else 0", common=True)
    top_p: Optional[float] = option(
        None, "Keep the most likely tokens up to this probability", unset=f"{_OWN}, else 0.95", common=True
    )
    seed: int = option(0, "Seed of the sampler", common=True)
    min_p: Optional[float] = option(
        None, "Drop tokens below this share of the most likely one's probability", unset=f"{_OWN}, else 0"
    )


@dataclass(frozen=True)
class TokenOptions:
    """Which tokens are likely or forbidden, and which ones end an answer."""

    PANEL: ClassVar[str] = "Tokens"

    repetition_penalty: Optional[float] = option(
        None, "Above 1: tokens of prompt and answer become less likely", unset=_OWN
    )
    frequency_penalty: float = option(0.0, "Taken from a token's logit for every time the answer has it")
    presence_penalty: float = option(0.0, "Taken once from the logit of a token that the answer has")
    logit_bias: tuple[str, ...] = option((), "Added to a token's logit; may be repeated", metavar="ID=BIAS")
    ignore_eos: bool = option(False, "The model's end-of-sequence tokens do not end it", negative=False)
    stop_token_ids: tuple[int, ...] = option((), "Token ids that end the answer, too, such as 2,7")
    stop: tuple[str, ...] = option((), "Text that ends an answer; may be repeated", common=True)


@dataclass(frozen=True)
class FormOptions:
    """What an answer is held to; at most one of them."""

    PANEL: ClassVar[str] = "Form"

    schema: Optional[str] = option(None, "The answer is JSON that this JSON Schema allows", metavar="FILE", common=True)
    regex: Optional[str] = option(None, "The answer is what this expression matches as a whole")
    choice: tuple[str, ...] = option((), "The answer is one of these texts; may be repeated")
    grammar: Optional[str] = option(None, "The answer is a text of this grammar (Lark or GBNF)", metavar="FILE")

    def form(self) -> Form | None:
        """The form of the answer, None for any text. Raises InputError naming the option or file that is wrong."""
        given = [name for name in ("schema", "regex", "choice", "grammar") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"--{' and --'.join(given)}: an answer is held to one form")
        if not given:
            return None
        from export.files.access import MAX_JSON, expanded, read_json_value, read_text
        from runtime_py.structured import forms
        from runtime_py.text.typed_text import typed_text

        if self.schema:
            return forms.schema(read_json_value(expanded(self.schema), None), self.schema)
        if self.regex:
            return forms.regex(typed_text(self.regex, "--regex"), "--regex")
        if self.choice:
            return forms.choices([typed_text(text, "--choice") for text in self.choice], "--choice")
        return forms.grammar(read_text(expanded(str(self.grammar)), MAX_JSON), str(self.grammar))

    def constraint(self, generator: TextGenerator) -> Callable[[frozenset[int]], Constraint] | None:
        """What holds the model's answers to the form. Raises InputError."""
        form = self.form()
        if form is None:
            return None
        from runtime_py.structured.compiler import Compiler

        compiler = Compiler(generator.tokenizer, generator.session.vocab_size)
        try:
            return compiler.compile(form).constraint
        finally:
            compiler.close()


@dataclass(frozen=True)
class GenerationSettings(LengthSettings, SamplingOptions, TokenOptions, FormOptions):
    """What was asked for on the command line; the fields are in the parts."""

    def __post_init__(self) -> None:
        """Raises InputError when there is no answer of such a length."""
        check_limits(self)
        if (self.min_tokens or 0) > self.max_tokens:
            raise InputError(f"--min-tokens is {self.min_tokens}, more than the {self.max_tokens} of --max-tokens")

    def sampling(self) -> SamplingSettings:
        """As they stand: greedy, and every token kept, where nothing was asked for. Raises InputError."""
        from runtime_py.text.sampling import SamplingSettings

        top_p = 1.0 if self.top_p is None else self.top_p
        return SamplingSettings(self.temperature or 0.0, self.top_k or 0, top_p, self.seed, self.min_p or 0.0)

    def sampling_of(self, folder: Path) -> SamplingSettings:
        """The model's own where nothing was asked for. Raises InputError."""
        from runtime_py.text.generator import default_sampling

        return default_sampling(folder, self.temperature, self.top_k, self.top_p, self.seed, self.min_p)

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
        tokens = frozenset(self.stop_token_ids)
        _inside(tokens, generator.session.vocab_size, "--stop-token-ids")
        return tokens if self.ignore_eos else tokens | generator.stop

    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end the answer. Raises InputError for one that is not UTF-8."""
        from runtime_py.text.typed_text import typed_text

        return tuple(typed_text(text, "--stop") for text in self.stop)


CONVERSATION = GenerationSettings()  # the model's own everywhere
CONTINUATION = GenerationSettings(max_tokens=200, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)  # greedy


def _bias(text: str, vocabulary: int) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        found = int(token), float(bias)
    except ValueError:
        raise InputError(f"--logit-bias must be ID=BIAS, such as 13=-5, not {text[:100]!r}") from None
    _inside({found[0]}, vocabulary, "--logit-bias")
    return found


def _inside(tokens: set[int] | frozenset[int], vocabulary: int, option: str) -> None:
    if any(not 0 <= token < vocabulary for token in tokens):
        raise InputError(f"{option}: token ids go from 0 to {vocabulary - 1}")
