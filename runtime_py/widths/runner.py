"""An engine for each width of a schedule, which take turns at one state: a key-value cache is the same at all widths.

Whatever several tokens are computed by in one call is a prompt, or a piece of one; tokens that come alone are steps of
the answer behind it. What a token gets depends on the tokens before it and its step alone, not on what is computed
beside it. Nothing is guessed: a guess would have to be computed at the width of its step.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from export.contract.errors import InputError
from runtime_py.engine.engine import Engine
from runtime_py.engine.state import EngineState
from runtime_py.reference.stepping import Stepped, token_by_token
from runtime_py.system.memory import held_bytes
from runtime_py.widths.features import prompt_features
from runtime_py.widths.learned import LEARNED, Switch
from runtime_py.widths.schedule import Schedule, confident_at


@dataclass
class ScheduledState(EngineState):
    """A state, and how far its answer is."""

    prompt: int = 0  # tokens before the answer
    chances: list[float] = field(default_factory=list)  # of the answer's tokens, of the most likely one each
    narrow_from: int | None = None  # the step from which on the confidence rule, or the learned one, holds

    def begin(self) -> None:
        """All tokens so far are the prompt."""
        self.prompt, self.chances, self.narrow_from = self.length, [], None


def check_switch(switch: Switch, engine: Engine) -> None:
    """Raises InputError where it was learned on another model, or on caches of other bits."""
    known = dict(enumerate(engine.attention)).get(switch.layer)
    if known is None or switch.classifier.queries.shape[1] != known.head_dim:
        raise InputError(f"--schedule {LEARNED}: it was learned on another model; run `athena-export schedule` again")
    if known.coded:
        raise InputError(f"--schedule {LEARNED} reads keys and values, so it goes with --cache-bits 16 alone")


class Scheduled:
    """Runs one model folder at several widths. A runner as runtime_py/load.py has them, without adapters."""

    most_together = 1
    adapters: tuple[str, ...] = ()

    def __init__(self, engines: Mapping[int, Engine], schedule: Schedule) -> None:
        """engines: by width, at least those of the schedule, of one folder and with caches of the same bits.

        Raises InputError where the schedule was learned on another model.
        """
        self._engines, self.schedule = dict(engines), schedule
        self._first = self._engines[schedule.prefill]
        if schedule.switch is not None:
            check_switch(schedule.switch, self._first)
        self.vocab_size, self.cache_bits = self._first.vocab_size, self._first.cache_bits
        self.threads, self.instruction_set = self._first.threads, self._first.instruction_set
        self._lock = threading.Lock()

    def bytes_of(self, width: int) -> int:
        """Bytes of weights that a token at this width reads."""
        return self._engines[width].bytes_per_token

    def held_bytes(self) -> int:
        """What it takes without any state; weights that widths share count once."""
        return held_bytes(array for engine in self._engines.values() for array in engine.arrays())

    def state_bytes(self, tokens: int) -> int:
        """Most that a state of so many tokens takes."""
        return self._first.state_bytes(tokens)

    def new_state(self) -> ScheduledState:
        """An empty state."""
        made = self._first.new_state()
        return ScheduledState(**{one.name: getattr(made, one.name) for one in fields(EngineState)})

    def adapt(self, state: ScheduledState, adapter: str) -> None:
        """There are no adapters to take ("": none)."""
        self._first.adapt(state, adapter)

    def rewind(self, state: ScheduledState, length: int) -> int:
        """Forget all but the first `length` tokens; how many are left."""
        left = self._first.rewind(state, length)
        state.prompt = min(state.prompt, left)
        step = left - state.prompt
        del state.chances[step + 1 :]
        if self.schedule.switch is None:
            forgotten = state.narrow_from is not None and state.narrow_from > step
        else:
            forgotten = step == 0  # perhaps of another prompt now
        if forgotten:
            state.narrow_from = None
        return left

    def width_of(self, state: ScheduledState) -> int:
        """At which a token that comes alone would be computed now."""
        if state.length == 0:
            return self.schedule.prefill
        if self.schedule.switch is not None:
            return self._learned_width(state, self.schedule.switch)
        if state.narrow_from is not None and self.schedule.confident is not None:
            return self.schedule.confident
        return self.schedule.width(state.length - state.prompt)

    def _learned_width(self, state: ScheduledState, switch: Switch) -> int:
        """By the classifier, which is asked once for each prompt."""
        if state.narrow_from is None:
            shape = self._first.attention[switch.layer]
            state.narrow_from = switch.step(*prompt_features(state, shape, switch.layer, state.prompt))
        return switch.narrow if state.length - state.prompt >= state.narrow_from else switch.wide

    def forward(self, state: ScheduledState, tokens: np.ndarray | Sequence[int], last_only: bool = False) -> np.ndarray:
        """Append tokens to the state; their logits, float32 [T or 1, vocabulary]. Raises as Engine.forward does."""
        several = np.size(tokens) > 1
        width = self.schedule.prefill if several else self.width_of(state)
        logits = self.engine_of(width).forward(state, tokens, last_only)
        if several or state.length == 1:
            state.begin()
        self._note(state, logits[-1])
        return logits

    def step(self, states: Sequence[ScheduledState], tokens: Sequence[int]) -> list[Stepped]:
        """Append one token to each of several states: what forward() gives each alone, or why it gives nothing."""
        widths = [self.width_of(state) for state in states]
        found: list[Stepped] = [np.empty(0, np.float32)] * len(states)
        for width in sorted(set(widths)):
            places = [i for i, own in enumerate(widths) if own == width]
            rows = self.engine_of(width).step([states[i] for i in places], [tokens[i] for i in places])
            for i, row in zip(places, rows):
                found[i] = row
                if isinstance(row, np.ndarray):
                    if states[i].length == 1:
                        states[i].begin()
                    self._note(states[i], row)
        return found

    def advance(self, states: Sequence[ScheduledState], runs: Sequence[Sequence[int]]) -> list[list[Stepped]]:
        """The same for a run of tokens of each state."""
        if all(len(run) == 1 for run in runs):
            return [[row] for row in self.step(states, [run[0] for run in runs])]
        return token_by_token(self, states, runs)

    def engine_of(self, width: int) -> Engine:
        """The engine of a width, which knows of every number that another one found too large for float16."""
        with self._lock:
            for engine in self._engines.values():
                self._engines[width].widen_as(engine)
        return self._engines[width]

    def _note(self, state: ScheduledState, logits: np.ndarray) -> None:
        """What the confidence rule has to know of a token's logits [vocabulary]."""
        if self.schedule.confident is None or state.narrow_from is not None:
            return
        state.chances.append(float(1.0 / np.exp(logits - logits.max(), dtype=np.float64).sum()))
        if confident_at(state.chances):
            state.narrow_from = state.length - state.prompt
