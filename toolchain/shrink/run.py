"""A source model in, a smaller Hugging Face folder out: choose, cut, reconstruct, heal, measure.

Every stage leaves a folder of its own in the working folder beside the output, so a stopped run goes on behind the last
one that is whole; methods and the training keep their own state there, too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.contract.errors import InputError
from export.files.access import SHRUNK, read_json, write_json
from export.files.replace import building_folder, install_folder
from export.graph.spec import ModelSpec
from runtime_py.system.memory import give_back
from toolchain.calibrate import text as calibration
from toolchain.numerics.products import chosen_precision
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.shrinking.shrink import JOINT_RANK, LORAPRUNE, SEARCH, ShrinkSettings
from toolchain.shrink.folder import stored_dtype, write_folder
from toolchain.shrink.methods import checker, chooser
from toolchain.shrink.parts.budget import Budget
from toolchain.shrink.parts.cost import TokenCosts
from toolchain.shrink.parts.cut import Cut, LayerCut, Sizes
from toolchain.shrink.parts.family import Freedom
from toolchain.shrink.parts.slicing import cut_tensors
from toolchain.shrink.parts.work import Choice, Work
from toolchain.shrink.reconstruct import reconstruct
from toolchain.shrink.report import Judge, written_report
from toolchain.source.checkpoint import resolve
from toolchain.source.empty_model import check_shapes, empty_model
from toolchain.source.heads import open_model
from toolchain.system.threads import fixed_rounding

FORMAT_VERSION = 2
_STATE, _CHOICE = SHRUNK, "choice.json"  # the working folder is known for ours by the first
_CHOSEN, _FITTED, _HEALED = "chosen", "fitted", "healed"


class ShrinkRun:
    """One model that is made smaller, with everything that stands before the work begins."""

    def __init__(self, model: str, settings: ShrinkSettings, text: CalibrationChoice, quiet: bool = False) -> None:
        """Raises InputError for a model, target or text that will not do."""
        self.model, self.settings, self.text, self.quiet = model, settings, text, quiet
        self.origin = resolve(model)
        self.source, self.spec = open_model(self.origin)
        check_shapes(self.source, empty_model(self.source.config))
        self.freedom = Freedom(self.source, self.spec)
        costs = TokenCosts(self.freedom, self.spec, settings.budget)
        self.budget = Budget(self.spec, settings.budget, costs)
        self.dtype = stored_dtype(self.source)
        self.precision = chosen_precision("auto", self.spec.hidden_size)
        if self.budget.fits(Sizes.of(self.spec)):
            raise InputError(f"{self.budget.text()}: the model as it is keeps within that; there is nothing to cut")
        checker(settings.by)(self.freedom, self.budget, settings)

    @cached_property
    def _calibration(self) -> str:
        return calibration.slice_text(calibration.calibration_text(self.text.source, self.origin), self.text.part)

    @property
    def reads_text(self) -> bool:
        """Whether what comes out depends on the calibration text."""
        s = self.settings
        return s.by in (SEARCH, LORAPRUNE) or s.reconstructs or s.healing.heal_steps > 0

    def windows(self, count: int | None, length: int) -> np.ndarray:
        """Token ids of the calibration text, int64 [count or all there are, length]."""
        found = calibration.sample_sequences(
            self._calibration, calibration.load_tokenizer(self.origin), count, min(length, self.spec.context_length),
            self.settings.seed, self.spec.vocab_size, self.text.source,
        )  # fmt: skip
        return found.tokens

    def tokens(self) -> np.ndarray:
        """The calibration sequences."""
        return self.windows(self.settings.sequences, self.settings.sequence_length)

    def work(self, folder: Path) -> Work:
        return Work(
            self.source, self.spec, self.settings, self.freedom, self.budget, self.tokens, folder, self.precision,
            self.quiet,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """What a run that goes on must share with the one that was stopped."""
        text = hashlib.sha256(self._calibration.encode()).hexdigest() if self.reads_text else ""
        about = {"name": Path(self.model).name or self.model, "model_type": self.spec.model_type}
        return {
            "format_version": FORMAT_VERSION,
            "source": {**about, "digest": self.source.fingerprint()},
            "calibration": {"source": Path(self.text.source).name if self.reads_text else "none", "digest": text},
            "settings": self.settings.to_json(),
        }

    def finish(self, work: Path, place: Path, judge: Judge, restart: bool, force: bool) -> dict[str, Any]:
        """Do what is left of the work in the folder `work`, and install the result at `place`; its report."""
        with fixed_rounding():
            return self._finish(work, place, judge, restart, force)

    def _finish(self, work: Path, place: Path, judge: Judge, restart: bool, force: bool) -> dict[str, Any]:
        identity = self.identity()
        prepare(work, identity, restart)
        self.source.print_notes()
        for line in self.freedom.notes:
            print(line, file=sys.stderr)
        if not (work / _CHOICE).exists():
            self._choose(work)
        about = read_json(work / _CHOICE)
        last = work / _CHOSEN
        try:
            cut = self._cut_of(about["cut"])
            about = {"cut": about["cut"], "about": dict(about["about"])}
        except (AttributeError, KeyError, TypeError, ValueError, IndexError):
            raise InputError(f"{work / _CHOICE}: is not what a run has left; use --force to start again") from None
        if cut is not None and self.settings.reconstructs:
            last = self._reconstructed(work, cut, about)
        if self.settings.healing.heal_steps:
            last = self._healed(work, last)
        give_back()
        report = written_report(self, identity, last, cut, about, judge)
        built = building_folder(place)
        shutil.rmtree(built, ignore_errors=True)
        shutil.copytree(last, built)
        write_json(built / SHRUNK, report)
        install_folder(built, place, force)
        shutil.rmtree(work, ignore_errors=True)
        return report

    def _cut_of(self, data: dict[str, Any] | None) -> Cut | None:
        """What a run has left, None where the method cuts nothing. Raises as _read_cut does."""
        if (data is None) != (self.settings.by == JOINT_RANK):
            raise ValueError("a cut of another method")
        return None if data is None else _read_cut(data, self.spec, self.settings.multiple)

    def _choose(self, work: Path) -> None:
        choice: Choice = chooser(self.settings.by)(self.work(work))
        write_folder(work / _CHOSEN, self.source, choice.config, choice.tensors(), self.dtype)
        write_json(work / _CHOICE, {"cut": _cut_json(choice.cut), "about": choice.about})

    def _reconstructed(self, work: Path, cut: Cut, about: dict[str, Any]) -> Path:
        place = work / _FITTED
        if not place.exists():
            found = reconstruct(self.source, self.spec, cut, self.tokens(), self.settings.healing.damping, self.quiet)
            losses = {"cut": [a for a, _ in found.losses], "fitted": [b for _, b in found.losses]}
            about["about"]["layer_errors"] = losses
            write_json(work / _CHOICE, about)
            config = self.freedom.config(cut.sizes, cut.layers)
            tensors = cut_tensors(self.source, self.spec, cut, found.fitted)
            write_folder(place, self.source, config, tensors, self.dtype)
        return place

    def _healed(self, work: Path, last: Path) -> Path:
        from toolchain.shrink.heal import healed_tensors

        place = work / _HEALED
        if not place.exists():
            h = self.settings.healing
            windows = self.windows(None, h.heal_length)
            tensors: Iterator[tuple[str, torch.Tensor]] = healed_tensors(
                self.source, last, windows, h, self.settings.seed, work, self.quiet, self.precision
            )
            config = open_model(last)[0].config
            write_folder(place, self.source, config, tensors, self.dtype)
        return place


def prepare(work: Path, identity: dict[str, Any], restart: bool) -> None:
    """Make the working folder, or see that what is there is of the same run. Raises InputError where it is not."""
    if work.exists() and any(work.iterdir()):
        known = read_json(work / _STATE) if (work / _STATE).is_file() else None
        if known is None:
            raise InputError(f"{work}: holds files and no {_STATE} of a run; remove it or choose another folder")
        if json.dumps(known, sort_keys=True) == json.dumps(identity, sort_keys=True):
            return
        if not restart:
            raise InputError(
                f"{work}: holds a run that was stopped, of another model, text or settings. Use the same, or --force "
                "to start again"
            )
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / _STATE, identity)


def _cut_json(cut: Cut | None) -> dict[str, Any] | None:
    if cut is None:
        return None
    parts = [{"heads": p.heads, "kv_heads": p.kv_heads, "channels": p.channels} for p in cut.parts]
    return {"layers": cut.layers, "parts": parts}


def _read_cut(data: dict[str, Any], spec: ModelSpec, multiple: int) -> Cut:
    """A cut from its JSON. Raises KeyError, TypeError or ValueError for what is no cut of the model."""
    own = Sizes.of(spec)
    sizes = {"heads": own.heads, "kv_heads": own.kv_heads, "channels": own.feed_forward}
    parts = [LayerCut(*(_rising(part[name], most) for name, most in sizes.items())) for part in data["parts"]]
    layers = _rising(data["layers"], spec.layers)
    if len(parts) != len(layers) or len({(len(p.heads), len(p.kv_heads), len(p.channels)) for p in parts}) != 1:
        raise ValueError("layers of different sizes")
    for part in parts:
        groups = [head // own.group for head in part.heads]
        if sorted(set(groups)) != list(part.kv_heads) or len({groups.count(one) for one in part.kv_heads}) != 1:
            raise ValueError("heads that do not belong to the keys and values")
        if len(part.channels) % multiple and len(part.channels) != own.feed_forward:
            raise ValueError("a width that is no multiple")
    return Cut(layers, tuple(parts))


def _rising(numbers: Any, most: int) -> tuple[int, ...]:
    """Whole numbers below `most`, each larger than the one before. Raises TypeError or ValueError."""
    found = tuple(numbers)
    if not found or any(type(n) is not int for n in found) or not 0 <= found[0] <= found[-1] < most:
        raise ValueError("no numbers of parts")
    if any(one >= other for one, other in pairwise(found)):
        raise ValueError("not rising")
    return found
