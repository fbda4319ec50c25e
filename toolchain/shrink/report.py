"""What a smaller model has become: parameters, what a token takes on the target, quality on a held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import __version__
from export.graph.spec import ModelSpec
from hw_model.machines.result import CostReport
from toolchain.calibrate.text import load_tokenizer, read_text
from toolchain.evaluate.perplexity import HuggingFaceScorer, evaluate, windows_of
from toolchain.shrink.parts.cut import Cut, Sizes
from toolchain.source.checkpoint import SourceModel
from toolchain.source.heads import open_model

if TYPE_CHECKING:
    from toolchain.shrink.run import ShrinkRun

HELD_OUT = "held-out"


@dataclass(frozen=True)
class Judge:
    """The text that quality is measured on."""

    text: str = HELD_OUT  # a file, or the documentation strings that the built-in text does not contain
    window: int = 256
    limit: int = 8

    def read(self) -> str:
        """Raises InputError as read_text does."""
        if self.text == HELD_OUT:
            from toolchain.calibrate.corpus import standard_library_text

            return standard_library_text("held-out")
        return read_text(Path(self.text))

    def compare(self, source: str, smaller: Path, context: int, quiet: bool) -> dict[str, Any]:
        """Perplexity of both and the KL from the source to the smaller model, in windows that fit its context."""
        tokenizer = load_tokenizer(smaller)
        window = max(min(self.window, context), 2)
        windows = windows_of(self.read(), tokenizer, window, self.limit, self.text)
        result = evaluate(HuggingFaceScorer(str(smaller)), windows, HuggingFaceScorer(source), quiet)
        return {**result.to_json(), "text": self.text}


def count_parameters(source: SourceModel, spec: ModelSpec) -> tuple[int, int]:
    """Parameters of a model, and those of them in the linear layers of its blocks."""
    linears = {f"{name}.weight" for name in spec.quantizable()}
    sizes = {name: source.size(name) for name in source.parameters()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if name in linears)


def priced(report: CostReport) -> dict[str, Any]:
    return {"latency_s": report.latency_s, "energy_j": report.energy_j}


def written_report(
    run: ShrinkRun, identity: dict[str, Any], folder: Path, cut: Cut | None, about: dict[str, Any], judge: Judge
) -> dict[str, Any]:
    """The whole report of a finished run; folder: the smaller model."""
    smaller, spec = open_model(folder)
    before, after = count_parameters(run.source, run.spec), count_parameters(smaller, spec)
    costs, own = run.budget.costs, Sizes.of(run.spec)
    prices: dict[str, Any] = {"before": priced(costs.report(own, range(own.layers)))}
    after_cost = costs.of_config(smaller.config) if cut is None else costs.report(cut.sizes, cut.layers)
    prices["after"] = priced(after_cost)
    return {
        **about["about"],
        **identity,
        "tool_version": __version__,
        "precision": run.precision,
        "parameters": {"before": before[0], "after": after[0]},
        "linear_weights": {"before": before[1], "after": after[1]},
        "sizes": {"before": sizes_json(own), "after": sizes_json(Sizes.of(spec))},
        "cost": {"target": costs.target.name, "bits": costs.bits, "context": costs.phase.total, **prices},
        "quality": judge.compare(run.model, folder, spec.context_length, run.quiet),
        "cut": about["cut"],
    }


def sizes_json(sizes: Sizes) -> dict[str, int]:
    return {
        "layers": sizes.layers,
        "heads": sizes.heads,
        "kv_heads": sizes.kv_heads,
        "feed_forward": sizes.feed_forward,
    }
