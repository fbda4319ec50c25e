"""How much of each text's guess to compute in a step: as much as makes the most tokens a second."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_py.speculation.costs import StepCosts

_WORTH = 1.03  # times the plain step's tokens a second that a guess has to promise


def best_lengths(chances: Sequence[Sequence[float]], costs: StepCosts, most: int) -> list[int]:
    """Tokens of each guess to compute beside the one that each text gives anyway.

    chances: of each text, the probability that its guess is right up to each token, decreasing. most: tokens of the
    step in all. A step's worth is its expected number of new tokens by its seconds, so the likeliest tokens go first;
    texts without a guess to compute take part with their one token.
    """
    total = len(chances)
    taken, expected = [0] * total, float(total)
    best, found = _WORTH * expected / costs.of(total), list(taken)
    while total < most:
        text = max(range(len(chances)), key=lambda i: chances[i][taken[i]] if taken[i] < len(chances[i]) else 0.0)
        if taken[text] >= len(chances[text]):
            break
        expected += chances[text][taken[text]]
        taken[text] += 1
        total += 1
        worth = expected / costs.of(total)
        if worth > best:
            best, found = worth, list(taken)
    return found
