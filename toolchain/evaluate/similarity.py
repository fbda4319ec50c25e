"""How near the vectors of an emulated encoder are to those that it gives in float32."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.contract.errors import InputError
from runtime_py.text.encoder import TextEncoder
from targets import Target
from toolchain.evaluate.emulate import EmulatedEncoder


@dataclass(frozen=True)
class Similarity:
    """Cosines between two vectors of each text."""

    mean: float
    stderr: float  # standard error of the mean
    lowest: float
    texts: int

    def to_json(self) -> dict[str, Any]:
        return {"cosine": self.mean, **{n: v for n, v in asdict(self).items() if n != "mean"}}


def compare_encoder(folder: Path, text: str, limit: int | None, target: Target, noise: float) -> Similarity:
    """The lines of a text, as many as `limit`, through the target and through the interpreter in float32.

    Raises InputError for a text without lines, and as EmulatedEncoder.
    """
    lines = [line for line in text.splitlines() if line.strip()][:limit]
    if not lines:
        raise InputError("--text: has no line to embed")
    ours, exact = EmulatedEncoder(folder, target, noise).embed(lines), TextEncoder(folder, "float32").embed(lines)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(exact, axis=1)
    cosines = (ours * exact).sum(axis=1) / np.maximum(lengths, 1e-12)
    spread = float(cosines.std(ddof=1)) / len(lines) ** 0.5 if len(lines) > 1 else 0.0
    return Similarity(float(cosines.mean()), spread, float(cosines.min()), len(lines))
