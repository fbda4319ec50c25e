"""A lowered folder is opened and run by onnxruntime once, before anyone relies on it.

A few tokens go through it and, where that is cheap, through the folder it was made from: a graph that opens may still
compute something else. What the operators keep exact may differ by float32's order of sums, what quantizes activations
to int8 by more; matrices that were encoded again are not compared, their errors are in the manifest.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.artefacts.graph import Graph
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.formats import LOOKUPS
from export.contract.formats.base import DOMAIN
from export.files.access import read_json
from export.graph.archs import model_spec
from export.model_folder import FOLDED_WEIGHTS

_SCRIPT = Path(__file__).with_name("onnxruntime_run.py")
_TOKENS = 4
_SECONDS = 1800
# of the outputs' spread: float32 sums in another order, and activations in int8
EXACT, INT8 = 1e-3, 0.5


@dataclass(frozen=True)
class Check:
    """What is asked of a lowered folder."""

    source: Path
    folder: Path
    library: Path | None = None  # of custom operators that it needs
    foreign: str = ""  # why this machine cannot run it
    changed: bool = True  # whether its graph is another one
    tolerance: float = EXACT  # in units of the outputs' spread; infinite: anything

    def run(self) -> dict[str, Any]:
        """{"onnxruntime": version, "run": bool, "difference"} or {"skipped": why}, for the manifest.

        Raises InputError when onnxruntime cannot open or run the folder, or computes something else.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            return {"skipped": "onnxruntime is not installed"}
        if self.foreign:
            return {"skipped": self.foreign}
        spec = model_spec(read_json(self.folder / "config.json"))
        run = self.library is not None or _unpacked(read_graph(self.folder)) <= FOLDED_WEIGHTS
        compare = run and self.changed and _unpacked(read_graph(self.source)) <= FOLDED_WEIGHTS
        told = _ask(
            {
                "folder": str(self.folder), "source": str(self.source) if compare else None, "run": run,
                "library": str(self.library) if self.library else None, "vocabulary": spec.vocab_size,
                "tokens": min(_TOKENS, spec.context_length),
            }
        )  # fmt: skip
        name = f"onnxruntime {told.get('onnxruntime', '')}".strip()
        if "error" in told:
            raise InputError(f"{self.source}: {name} cannot run what it was lowered to ({told['error']})")
        difference = told.get("difference")
        if difference is not None and not difference <= self.tolerance:  # NaN, too
            raise InputError(
                f"{self.source}: in {name}, what it was lowered to computes something else: off by "
                f"{_percent(difference)} of the spread, {_percent(self.tolerance)} are allowed"
            )
        compared = {"difference": difference} if compare else {}
        return {"onnxruntime": told["onnxruntime"], "run": run, **compared}


def describe(check: dict[str, Any]) -> str:
    """What `Check.run` found, for people."""
    if "skipped" in check:
        return f"not checked: {check['skipped']}"
    name = f"onnxruntime {check['onnxruntime']}"
    if not check["run"]:
        return f"{name} opens it (not run: too large to unpack)"
    if "difference" not in check:
        return f"{name} runs it"
    if check["difference"] is None:
        return f"{name} runs it (not compared: the source's numbers are not finite)"
    return f"{name} runs it, off by {_percent(check['difference'])}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if math.isfinite(share) else "numbers that are not finite"


def _unpacked(graph: Graph) -> int:
    """Weights that function bodies unpack to float32 when the graph runs; rows that are looked up are few."""
    products = [n for n in graph.nodes if n.domain == DOMAIN and n.op_type not in LOOKUPS]
    sizes = [(node.attributes.get("K"), node.attributes.get("N")) for node in products]
    return sum(k * n for k, n in sizes if isinstance(k, int) and isinstance(n, int))


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, str(_SCRIPT)], input=json.dumps(request), capture_output=True, text=True,
            errors="replace", timeout=_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"it takes longer than {_SECONDS} s"}
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        last = next(iter(reversed(done.stderr.strip().splitlines())), "")
        return {"error": f"its process ended with {done.returncode}: {last}".removesuffix(": ")}
