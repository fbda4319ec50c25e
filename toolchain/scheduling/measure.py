"""What an answer loses when it narrows at each of some steps, and what the cache holds of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.artefacts.reader import read_graph
from export.artefacts.widths import widths_of
from export.contract.errors import InputError
from runtime_py.load import open_model
from runtime_py.system.finite import checked_logits
from runtime_py.widths.features import prompt_features
from runtime_py.widths.learned import NEVER
from runtime_py.widths.runner import Scheduled, ScheduledState
from runtime_py.widths.schedule import Schedule
from toolchain.evaluate.perplexity import compared
from toolchain.settings.scheduling.schedule import ScheduleSettings
from toolchain.system.progress import Reporter

_SHORTEST = 8  # tokens of a prompt


@dataclass(frozen=True)
class Prompts:
    """n windows of a text, each a prompt and its answer."""

    keys: list[np.ndarray]  # of each prompt's tokens in one layer, float32 [tokens, D]
    values: list[np.ndarray]
    divergences: np.ndarray  # float64 [n, steps]: nats a token of the answer, to the answer at the wide width
    steps: tuple[int, ...]  # from which it is narrow; the last is NEVER
    layer: int


def widths(folder: Path, settings: ScheduleSettings) -> tuple[int, int]:
    """The wide and the narrow width that are asked for. Raises InputError where the folder does not have them."""
    there = widths_of(read_graph(folder))
    if there is None:
        raise InputError(f"{folder}: its codes have one width; a schedule needs `export --nested`")
    wide, narrow = settings.wide or there[-1], settings.narrow or there[0]
    for width in (wide, narrow):
        if width not in there:
            raise InputError(f"{folder}: {width} bits are not among the widths of its codes, {there[0]} to {there[-1]}")
    if wide <= narrow:
        raise InputError(f"{folder}: an answer would go from {wide} bits to {narrow}; --wide must be the larger")
    return wide, narrow


def open_both(folder: Path, wide: int, narrow: int) -> tuple[Scheduled, int]:
    """The folder at two widths, and the last layer whose cache can be read. Raises InputError where there is none."""
    runner, _ = open_model(folder, bits=Schedule(wide, ((0, narrow),)))
    assert isinstance(runner, Scheduled)
    shapes = runner.engine_of(wide).attention
    readable = [i for i, shape in enumerate(shapes) if not shape.coded]
    if not readable:
        raise InputError(f"{folder}: keeps no keys and values that a schedule could be read off")
    return runner, readable[-1]


def measure(
    runner: Scheduled, windows: np.ndarray, settings: ScheduleSettings, widths: tuple[int, int], layer: int,
    quiet: bool = False,
) -> Prompts:  # fmt: skip
    """windows: int64 [n, prompt + answer]; prompts are all of it, half and a quarter of it long, in turn."""
    keys, values, rows = list[np.ndarray](), list[np.ndarray](), []
    shape = runner.engine_of(widths[0]).attention[layer]
    with Reporter("Measuring", len(windows), quiet) as report:
        for number, window in enumerate(windows):
            prompt = max(settings.prompt >> number % 3, min(_SHORTEST, settings.prompt))
            tokens = window[settings.prompt - prompt :]
            state = runner.new_state()
            rows.append(_divergences(runner, state, tokens, prompt, settings.steps, widths))
            own = prompt_features(state, shape, layer, prompt)
            keys.append(own[0])
            values.append(own[1])
            report.step("answer")
    found = np.array(rows)
    return Prompts(keys, values, np.hstack([found, np.zeros((len(found), 1))]), (*settings.steps, NEVER), layer)


def _divergences(
    runner: Scheduled, state: ScheduledState, tokens: np.ndarray, prompt: int, steps: Sequence[int],
    widths: tuple[int, int],
) -> list[float]:  # fmt: skip
    """For each step the mean divergence over the answer's tokens; the prompt's last token gives the first of them."""
    wide, narrow = (runner.engine_of(width) for width in widths)
    wide.forward(state, tokens[:prompt], last_only=True)
    wanted = checked_logits(wide.forward(state, tokens[prompt:-1]), "the model")
    targets, found = tokens[prompt + 1 :], list[float]()
    for step in sorted(steps, reverse=True):  # what is cached before the step stays that of the wide width
        left = wide.rewind(state, prompt + step)
        if left < prompt + step:
            wide.forward(state, tokens[left : prompt + step], last_only=True)
        if step >= len(targets):
            found.append(0.0)
            continue
        logits = checked_logits(narrow.forward(state, tokens[prompt + step : -1]))
        found.append(float(compared(logits, wanted[step:], targets[step:])[2].sum()) / (len(targets) + 1))
    return found[::-1]
