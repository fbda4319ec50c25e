"""Which width each token of an answer is computed at: `prefill=4,0=4,64=3,256=2`. Knows nothing of models.

PMPD (arXiv 2410.13461): a prompt and the beginning of an answer ask for more precise weights than what follows. Steps
are counted from the first token that is computed alone; the token before it comes from the prompt's own pass. A second
rule is theirs, too: `confident=2` goes to that width for the rest of the answer once a token was more likely than the
mean and one standard deviation of the first ten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.contract.errors import InputError
from runtime_py.widths.learned import LEARNED, Switch

FIRST = 10  # tokens whose likelihood the confidence rule compares with
_FORM = (
    "--schedule is prefill=WIDTH,0=WIDTH,STEP=WIDTH,... or ...,confident=WIDTH, such as prefill=4,0=4,64=3,256=2, or "
    f"{LEARNED}"
)
_MOST_STEPS = 64


@dataclass(frozen=True)
class Schedule:
    """Widths by what is computed."""

    prefill: int
    steps: tuple[tuple[int, int], ...]  # (first step, width), rising; the first is step 0
    confident: int | None = None  # for the rest of an answer, behind its first confident token
    switch: Switch | None = None  # which knows the step of its narrow width; `steps` has its wide one

    @staticmethod
    def of(switch: Switch) -> Schedule:
        """The learned one."""
        return Schedule(switch.wide, ((0, switch.wide),), switch=switch)

    @staticmethod
    def read(text: str) -> Schedule:
        """From what was typed. Raises InputError where it is no schedule."""
        found: dict[str, int] = {}
        for part in text.split(","):
            name, equals, width = part.strip().partition("=")
            if not equals or len(width) != 1 or width not in "12345678" or name in found:
                raise InputError(_FORM)
            found[name] = int(width)
        confident = found.pop("confident", None)
        prefill = found.pop("prefill", None)
        if not all(name.isascii() and name.isdigit() and len(name) < 10 for name in found) or len(found) > _MOST_STEPS:
            raise InputError(_FORM)
        steps = tuple(sorted((int(name), width) for name, width in found.items()))
        if not steps or steps[0][0] or len({step for step, _ in steps}) < len(steps):
            raise InputError(f"{_FORM}; it begins with step 0, and no step is there twice")
        return Schedule(steps[0][1] if prefill is None else prefill, steps, confident)

    @property
    def widths(self) -> tuple[int, ...]:
        """All that are needed, rising."""
        asked = {self.prefill, *(width for _, width in self.steps), self.confident}
        if self.switch is not None:
            asked.add(self.switch.narrow)
        return tuple(sorted(width for width in asked if width is not None))

    def width(self, step: int) -> int:
        """Of a step, by its number alone."""
        return next(width for first, width in reversed(self.steps) if first <= step)


def confident_at(chances: list[float]) -> bool:
    """Whether the last of an answer's tokens is more likely than its first ten give reason to expect.

    chances: of every token so far, what the model gave its most likely one.
    """
    if len(chances) <= FIRST:
        return False
    first = np.array(chances[:FIRST])
    return bool(chances[-1] > first.mean() + first.std())
