"""From the states of all tokens to one vector of the text, as the folder's sentence-transformers files say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.contract.errors import InputError
from export.files.access import read_json, read_json_value
from export.graph.layers import BATCH, SEQUENCE
from export.graph.writer import GraphWriter

MODULES, POOLING = "modules.json", "1_Pooling/config.json"
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True)
class Pooling:
    """mode: "mean" over the tokens that are not padding, "cls" (the first token) or "max"."""

    mode: str = "mean"
    normalize: bool = False  # to length one


def read_pooling(folder: Path) -> Pooling:
    """What modules.json and 1_Pooling/config.json ask for; the mean, not normalized, where they are not there.

    Raises InputError when they ask for something else.
    """
    if not (folder / MODULES).exists():
        return Pooling()
    try:
        modules = read_json_value(folder / MODULES, folder)
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    except InputError:
        raise
    except (TypeError, KeyError) as error:
        raise InputError(f"{folder / MODULES}: not a list of sentence-transformers modules ({error})") from None
    if kinds[:1] != ["Transformer"] or set(kinds[1:]) - {"Pooling", "Normalize"}:
        raise InputError(f"{folder / MODULES}: modules {', '.join(kinds)} are not supported; Transformer, Pooling and "
                         "Normalize are")  # fmt: skip
    config = read_json(folder / POOLING, folder) if "Pooling" in kinds else {}
    chosen = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    if isinstance(config.get("pooling_mode"), str):  # as later releases write it
        chosen = [f"pooling_mode_{config['pooling_mode']}{'' if config['pooling_mode'] == 'lasttoken' else '_tokens'}"]
        chosen = ["pooling_mode_cls_token" if name == "pooling_mode_cls_tokens" else name for name in chosen]
    if len(chosen) > 1 or any(name not in _MODES for name in chosen):
        raise InputError(f"{folder / POOLING}: {', '.join(chosen)} is not supported; {', '.join(_MODES)} are")
    return Pooling(_MODES[chosen[0]] if chosen else "mean", "Normalize" in kinds)


def pool(g: GraphWriter, pooling: Pooling, hidden: ir.Value, attention_mask: ir.Value, width: int) -> ir.Value:
    """float32 [batch, width] from hidden [batch, sequence, width] and the mask int64 [batch, sequence]."""
    at = "/pooling"
    if pooling.mode == "cls":
        out = g.op("Gather", f"{at}/first", [hidden, g.constant("zero", np.asarray(0, np.int64))], [BATCH, width],
                   axis=1)  # fmt: skip
    else:
        out = (_mean if pooling.mode == "mean" else _maximum)(g, hidden, attention_mask, width)
    if not pooling.normalize:
        return out
    last = g.constant("axis.last", np.asarray([-1], np.int64))
    length = g.op("ReduceL2", f"{at}/length", [out, last], [BATCH, 1], keepdims=1)
    least = g.constant("pooling.least_length", np.asarray(1e-12, np.float32))
    divisor = g.op("Max", f"{at}/divisor", [length, least], [BATCH, 1])
    return g.op("Div", f"{at}/normalized", [out, divisor], [BATCH, width])


def _mean(g: GraphWriter, hidden: ir.Value, attention_mask: ir.Value, width: int) -> ir.Value:
    at, real = "/pooling/mean", ir.DataType.FLOAT
    last = g.constant("axis.last", np.asarray([-1], np.int64))
    second = g.constant("axis.second", np.asarray([1], np.int64))
    mask = g.op("Cast", f"{at}/mask", [attention_mask], [BATCH, SEQUENCE], to=real)
    column = g.op("Unsqueeze", f"{at}/column", [mask, last], [BATCH, SEQUENCE, 1])
    kept = g.op("Mul", f"{at}/kept", [hidden, column], [BATCH, SEQUENCE, width])
    total = g.op("ReduceSum", f"{at}/total", [kept, second], [BATCH, width], keepdims=0)
    count = g.op("ReduceSum", f"{at}/count", [column, second], [BATCH, 1], keepdims=0)
    least = g.constant("pooling.least_count", np.asarray(1e-9, np.float32))
    return g.op("Div", at, [total, g.op("Max", f"{at}/divisor", [count, least], [BATCH, 1])], [BATCH, width])


def _maximum(g: GraphWriter, hidden: ir.Value, attention_mask: ir.Value, width: int) -> ir.Value:
    at, boolean = "/pooling/max", ir.DataType.BOOL
    last = g.constant("axis.last", np.asarray([-1], np.int64))
    second = g.constant("axis.second", np.asarray([1], np.int64))
    keep = g.op("Cast", f"{at}/keep", [attention_mask], [BATCH, SEQUENCE], boolean, to=boolean)
    column = g.op("Unsqueeze", f"{at}/column", [keep, last], [BATCH, SEQUENCE, 1], boolean)
    lowest = g.constant("pooling.lowest", np.asarray(-1e9, np.float32))  # what sentence-transformers puts there
    kept = g.op("Where", f"{at}/kept", [column, hidden, lowest], [BATCH, SEQUENCE, width])
    return g.op("ReduceMax", at, [kept, second], [BATCH, width], keepdims=0)
