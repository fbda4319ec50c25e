"""For how long an answer is computed at more bits, read off its prompt's keys and values: PMPD's learned scheduler.

Algorithm (arXiv 2410.13461, section 4.2): one layer's cached keys and values, averaged over heads, are pooled by
attention with learned queries, normed, and classified by two layers of a perceptron; a class is a step from which on
the answer is computed at fewer bits. Applied once, when the answer's first token is computed. Trained by `athena-export
schedule`, kept beside the graph in one file, and evaluated here in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.contract.errors import InputError
from export.files.tensor_file import read_tensors, write_tensors

FILE = "schedule.safetensors"
LEARNED = "learned"  # what is typed for it
NEVER = 2**31 - 1  # the step of a class that stays at more bits
_MOST_BYTES = 16 << 20
_MOST_CLASSES, _MOST_NUMBERS = 16, 1 << 20
_EPSILON = 1e-5


@dataclass(frozen=True)
class Classifier:
    """Numbers of the classifier, float32; D: key and value width of a head, Q: queries, H: hidden, C: classes."""

    queries: np.ndarray  # [Q, D]
    norm: np.ndarray  # [2, 2 Q D]: weight and bias
    hidden: np.ndarray  # [H, 2 Q D]
    hidden_bias: np.ndarray  # [H]
    output: np.ndarray  # [C, H]
    output_bias: np.ndarray  # [C]

    @staticmethod
    def shapes(queries: int, width: int, hidden: int, classes: int) -> dict[str, tuple[int, ...]]:
        """Of every array by its name."""
        pooled = 2 * queries * width
        return {
            "queries": (queries, width), "norm": (2, pooled), "hidden": (hidden, pooled), "hidden_bias": (hidden,),
            "output": (classes, hidden), "output_bias": (classes,),
        }  # fmt: skip

    def chances(self, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Of each class, float64 [C]; keys and values: of the prompt's tokens, means over heads, float32 [T, D]."""
        keys, values = keys.astype(np.float64), values.astype(np.float64)
        scores = self.queries.astype(np.float64) @ keys.T / np.sqrt(keys.shape[1])
        shares = _softmax(scores)
        pooled = np.concatenate([(shares @ keys).ravel(), (shares @ values).ravel()])
        normed = (pooled - pooled.mean()) / np.sqrt(pooled.var() + _EPSILON) * self.norm[0] + self.norm[1]
        inner = np.maximum(self.hidden.astype(np.float64) @ normed + self.hidden_bias, 0.0)
        return _softmax(self.output.astype(np.float64) @ inner + self.output_bias)


@dataclass(frozen=True)
class Switch:
    """When an answer goes from one width to a narrower one."""

    wide: int
    narrow: int
    steps: tuple[int, ...]  # of each class, rising; NEVER: none
    layer: int  # whose cache is read, a number of an attention
    confidence: float  # how likely it has to be that a step is late enough
    classifier: Classifier

    def step(self, keys: np.ndarray, values: np.ndarray) -> int:
        """The first step at fewer bits, for a prompt's keys and values as Classifier.chances() takes them.

        A class says the earliest step that serves; so does every later one.
        """
        with np.errstate(all="ignore"):  # a file's numbers may be too large to multiply: the last class then
            late_enough = np.cumsum(self.classifier.chances(keys, values))
        late_enough[-1] = 1.0  # but for rounding, and whatever is no number
        return self.steps[int(np.argmax(late_enough >= self.confidence))]


def write_switch(folder: Path, switch: Switch) -> None:
    """Keep it in a model folder, atomically."""
    tensors: dict[str, np.ndarray] = {
        "widths": np.array([switch.wide, switch.narrow], np.int64), "steps": np.array(switch.steps, np.int64),
        "layer": np.array([switch.layer], np.int64), "confidence": np.array([switch.confidence], np.float32),
    }  # fmt: skip
    write_tensors(folder / FILE, tensors | vars(switch.classifier))


def read_switch(folder: Path) -> Switch:
    """The one of a model folder. Raises InputError where there is none, or one that is malformed."""
    path = folder / FILE
    if not path.exists():
        raise InputError(f"--schedule {LEARNED}: {folder} has no {FILE}; `athena-export schedule` makes it")
    found = read_tensors(path, _MOST_BYTES, folder)

    def get(name: str, kind: type, shape: tuple[int, ...] | None = None, dimensions: int = 1) -> np.ndarray:
        array = found.get(name)
        if array is None or array.dtype != kind or (array.shape != shape if shape else array.ndim != dimensions):
            raise InputError(f"{path}: {name} is missing or has another type or shape")
        if array.size == 0 or array.size > _MOST_NUMBERS or not np.isfinite(array).all():
            raise InputError(f"{path}: {name} has too many numbers, none, or what is no number")
        return array

    wide, narrow = get("widths", np.int64, (2,)).tolist()
    steps = get("steps", np.int64).tolist()
    layer, confidence = int(get("layer", np.int64, (1,))[0]), float(get("confidence", np.float32, (1,))[0])
    if not 1 <= narrow < wide <= 8:
        raise InputError(f"{path}: widths must be two of 1 to 8, the larger first")
    if len(steps) > _MOST_CLASSES or steps != sorted(set(steps)) or steps[0] < 0 or steps[-1] > NEVER:
        raise InputError(f"{path}: steps must rise from 0 or more, {_MOST_CLASSES} at most")
    if layer < 0 or not 0.0 <= confidence <= 1.0:
        raise InputError(f"{path}: layer or confidence is out of range")
    count, width = get("queries", np.float32, dimensions=2).shape
    shapes = Classifier.shapes(count, width, len(get("hidden_bias", np.float32)), len(steps))
    arrays = {name: get(name, np.float32, shape) for name, shape in shapes.items()}
    return Switch(wide, narrow, tuple(steps), layer, confidence, Classifier(**arrays))


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    found = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: np.ndarray = found / found.sum(axis=-1, keepdims=True)
    return shares
