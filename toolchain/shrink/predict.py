"""What a run will take and give, without writing anything: --dry-run."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from toolchain.calibrate.gradients import PLAN_SEQUENCES
from toolchain.settings.shrinking.shrink import JOINT_RANK, LORAPRUNE, SEARCH
from toolchain.shrink.folder import DTYPES
from toolchain.shrink.parts.cut import Sizes
from toolchain.shrink.report import count_parameters, priced, sizes_json
from toolchain.shrink.run import ShrinkRun

_PROBE = 2  # sequences that are timed, after one that pays for set-up


def predict(run: ShrinkRun) -> dict[str, Any]:
    """Sizes, parameters, costs, bytes and seconds. Sizes of a search are those of an even cut to its budget.

    Times are of this machine's own forward passes, scaled; a way back counts as two forward.
    """
    s, spec, own = run.settings, run.spec, Sizes.of(run.spec)
    everything, linear = count_parameters(run.source, spec)
    found: dict[str, Any] = {"dtype": run.dtype, "notes": [*run.freedom.notes]}
    costs = run.budget.costs
    prices: dict[str, Any] = {"before": priced(costs.report(own, range(own.layers)))}
    if s.by == JOINT_RANK:
        sizes, left = own, int((s.budget.keep or 1.0) * linear)
    else:
        sizes = run.budget.even(run.freedom, s.multiple)
        left, prices["after"] = sizes.weights(spec), priced(costs.report(sizes, range(sizes.layers)))
    if s.by == SEARCH:
        found["notes"].append("sizes are those of an even cut; the search finds others within the same budget")
    after = everything - linear + left
    return {
        **found,
        "sizes": {"before": sizes_json(own), "after": sizes_json(sizes)},
        "parameters": {"before": everything, "after": after},
        "linear_weights": {"before": linear, "after": left},
        "cost": {"target": costs.target.name, "bits": costs.bits, "context": costs.phase.total, **prices},
        "output_bytes": after * DTYPES[run.dtype].itemsize,
        "seconds": _seconds(run),
    }


def _seconds(run: ShrinkRun) -> float:
    s = run.settings
    if not run.reads_text:
        return 0.0
    from toolchain.calibrate.own_text import whole_model

    length = min(s.sequence_length, run.spec.context_length)
    model, tokens = whole_model(run.source), torch.from_numpy(run.windows(_PROBE + 1, length))
    times = []
    with torch.no_grad():
        for row in tokens:
            begun = time.perf_counter()
            model(input_ids=row[None], use_cache=False)
            times.append(time.perf_counter() - begun)
    one = float(np.median(times[1:] or times))
    count, passes = min(s.sequences, len(run.tokens())), 0.0
    if s.by == SEARCH:
        tried = s.search.population + s.search.generations * s.search.children
        passes += count + tried * min(s.search.scored_sequences, count)
    if s.by == LORAPRUNE:
        passes += 3 * s.adapters.prune_steps * s.adapters.prune_batch
    if s.reconstructs:
        passes += count + 4 * min(count, PLAN_SEQUENCES) if s.by == JOINT_RANK else 3 * count
    heal = s.healing
    passes += 4 * heal.heal_steps * heal.heal_batch * min(heal.heal_length, run.spec.context_length) / length
    return one * passes
