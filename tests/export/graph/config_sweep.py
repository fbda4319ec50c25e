"""Every key of a family's config.json dropped, nulled and changed: what transformers makes of it and what we make.

A cell is a folder with the weights of the family's tiny model and one changed config.json. Where the weights do not fit
the changed sizes, a second cell has the weights of the model that transformers builds from the changed config.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig
from transformers.activations import ACT2CLS
from transformers.utils import logging

from export.contract.errors import InputError
from export.model_folder import write_model_folder
from tests.export.graph.families import COMMON, TINY, TINY_ENCODERS, FloatCheckpoint, is_mixture, tiny_model

TOKENS = np.random.default_rng(0).integers(5, 40, (1, 12))
TOLERANCE = 1e-4
_LARGEST_MODEL = 2_000_000  # parameters of a rebuilt model; beyond it only the refusal of the weights is compared
_BASE = {field.name for field in dataclasses.fields(PretrainedConfig)} - {"chunk_size_feed_forward"}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
# Keys that a family's class may not have: read from relatives and older releases, or ignored.
ELSEWHERE: dict[str, list[Any]] = {
    "head_dim": [8, 16, None],
    "num_key_value_heads": [1, 4, None],
    "rope_theta": [500, 1e6],
    "rope_scaling": [None, {"type": "linear", "factor": 2.0}, _YARN],
    "partial_rotary_factor": [0.25, 0.5],
    "rotary_pct": [0.5],
    "sliding_window": [3],
    "use_sliding_window": [True],
    "max_window_layers": [1],
    "layer_types": [["sliding_attention", "full_attention"], None],
    "attention_bias": [True, False],
    "mlp_bias": [True, False],
    "is_decoder": [True],
    "add_cross_attention": [True],
    "position_embedding_type": ["relative_key"],
    "pretraining_tp": [2],
    "hidden_activation": ["relu"],
    "clip_qkv": [1.0],
    "logits_scaling": [2.0],
    "per_layer_config": [None, {"0": {"attention_dropout": 0.5}}],
    "original_max_position_embeddings": [16],
    "no_rope_layers": [[1, 0]],
    "tie_word_embeddings": [True, False, "yes"],
    "torch_dtype": ["float16"],
    "auto_map": [{"AutoConfig": "x.Y"}],
    "num_labels": [1],
}


@dataclass(frozen=True)
class Cell:
    family: str
    key: str
    change: str  # what was done, for messages
    config: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Logits or states of TOKENS, or why there are none."""

    values: np.ndarray | None
    refusal: str = ""


def is_causal(family: str) -> bool:
    return family in TINY


def default_config(family: str) -> dict[str, Any]:
    """The family's default config.json in the tiny sizes of tests/export/graph/families.py, every key in it."""
    chosen = TINY[family] if is_causal(family) else TINY_ENCODERS[family]
    config = AutoConfig.for_model(family, **{**({} if family == "gpt2" else COMMON), **chosen})
    names = {field.name for field in dataclasses.fields(config)} - _BASE | {"model_type"}
    return {name: value for name, value in config.to_dict().items() if name in names}


def cells(family: str) -> list[Cell]:
    """All changes of one key."""
    base = default_config(family)
    found = []

    def add(key: str, change: str, config: dict[str, Any]) -> None:
        found.append(Cell(family, key, change, config))

    for key, value in base.items():
        if key == "model_type":
            continue
        add(key, "dropped", {k: v for k, v in base.items() if k != key})
        for other in (None, *_others(key, value)):
            add(key, f"{value!r} -> {other!r}", {**base, key: other})
    for key, values in ELSEWHERE.items():
        for value in values:
            if key not in base or base[key] != value:
                add(key, f"set to {value!r}", {**base, key: value})
    return found


def _others(key: str, value: Any) -> list[Any]:
    """Other values of a key: legal ones, and ones of a wrong type."""
    if key.endswith("_token_id"):
        return [3, [3, 4], 10_000]
    if key.endswith(("_act", "_activation", "activation_function")) or key == "activation":
        return [*ACT2CLS, "no_such_activation"]
    if isinstance(value, bool):
        return [not value, "true", 1]
    if isinstance(value, int):
        return [2 * value, max(1, value // 2), value + 1, 0, float(value), str(value)]
    if isinstance(value, float):
        return [2 * value or 0.5, 1, 0.0, -1.0, str(value)]
    if isinstance(value, list):
        return [value[::-1], value[:-1], [], "full_attention", ["chunked_attention"] * len(value)]
    if isinstance(value, dict):
        return [{}, [], {"rope_theta": 5e5, "rope_type": "default"}, {**_YARN, "rope_theta": 5e5}]
    return [4, 0.5, "x"]


class Evaluator:
    """Runs cells of one family; graphs with equal weights and equal text are run once."""

    def __init__(self, family: str, folder: Path, **more: object) -> None:
        """folder: for the model and its changed copies. more: fields of the model's configuration."""
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        self.family, self.folder = family, folder
        self._kind = AutoModelForCausalLM if is_causal(family) else AutoModel
        tiny_model(family, folder / "source", **more)
        self._ours: dict[bytes, np.ndarray] = {}

    def difference(self, cell: Cell) -> tuple[str, str]:
        """What differs ("" where nothing does), and why we refuse what transformers runs ("" where we do not)."""
        folder = self.folder / "cell"
        folder.mkdir(exist_ok=True)
        weights = folder / "model.safetensors"
        weights.unlink(missing_ok=True)
        os.link(self.folder / "source" / "model.safetensors", weights)
        (folder / "config.json").write_text(json.dumps(cell.config))
        found = self._compared(folder)
        if found is None and self._rebuild(folder):
            found = self._compared(folder)
        return found or ("", "")

    def _compared(self, folder: Path) -> tuple[str, str] | None:
        """As difference(); None where both refuse."""
        theirs, ours = self.transformers(folder), self.exported(folder)
        if theirs.values is None:
            return None if ours.values is None else (f"transformers refuses ({theirs.refusal}), we do not", "")
        if ours.values is None:
            return "", ours.refusal
        if theirs.values.shape != ours.values.shape:
            return f"shapes {theirs.values.shape} and {ours.values.shape}", ""
        worst = float(np.abs(theirs.values - ours.values).max())
        return (f"differs by {worst:.3g}", "") if not worst <= TOLERANCE else ("", "")

    def _rebuild(self, folder: Path) -> bool:
        """Put the weights of the changed configuration there; False where transformers builds no small model of it."""
        try:
            config = AutoConfig.from_pretrained(folder)
            with torch.device("meta"):
                size = sum(p.numel() for p in self._kind.from_config(config).parameters())
            if size > _LARGEST_MODEL:
                return False
            torch.manual_seed(0)
            model = self._kind.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    wide = max(1, parameter.shape[-1] / 64) if parameter.ndim > 1 else 1  # keeps the logits near one
                    parameter.copy_(torch.randn_like(parameter) * 0.3 / wide**0.5)
            model.save_pretrained(folder.with_name("rebuilt"))
        except Exception:  # whatever it is, it is refused
            return False
        (folder.with_name("rebuilt") / "model.safetensors").replace(folder / "model.safetensors")
        return True

    def transformers(self, folder: Path) -> Outcome:
        """transformers' own model of a folder."""
        # torch's grouped products refuse widths that are no multiple of 16 bytes; the model itself has any
        experts = {"experts_implementation": "eager"} if is_mixture(self.family) else {}
        try:
            model, info = self._kind.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **experts
            )
            missing = {name for name in info["missing_keys"] if "pooler" not in name}
            if missing or info["mismatched_keys"]:
                return Outcome(None, f"makes up weights {sorted(missing)[:3]}")
            with torch.no_grad():
                out = model.eval()(input_ids=torch.from_numpy(TOKENS), return_dict=True, use_cache=False)
        except Exception as error:  # transformers raises whatever comes
            return Outcome(None, f"{type(error).__name__}: {str(error)[:200]}")
        values = (out.logits if is_causal(self.family) else out.last_hidden_state).numpy()
        return Outcome(values) if np.isfinite(values).all() else Outcome(None, "not finite")

    def exported(self, folder: Path) -> Outcome:
        """The float32 export of a folder in onnxruntime."""
        try:
            checkpoint = FloatCheckpoint(folder)
            key = self._fingerprint(checkpoint)
            if key not in self._ours:
                with tempfile.TemporaryDirectory() as out:
                    write_model_folder(checkpoint, Path(out))
                    self._ours[key] = self._run(Path(out))
        except InputError as error:
            assert "\n" not in str(error)
            return Outcome(None, str(error))
        return Outcome(self._ours[key])

    @staticmethod
    def _fingerprint(checkpoint: FloatCheckpoint) -> bytes:
        digest = hashlib.sha256(repr(checkpoint.spec).encode())
        for name in sorted(checkpoint.records):
            digest.update(name.encode() + checkpoint.tensor(name, "").tobytes())
        return digest.digest()

    def _run(self, folder: Path) -> np.ndarray:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        count = TOKENS.shape[1]
        feeds = {
            "input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS), "position_ids": np.arange(count)[None],
            "token_type_ids": np.zeros_like(TOKENS),
        }  # fmt: skip
        wanted = {i.name: i for i in session.get_inputs()}
        feeds = {name: value for name, value in feeds.items() if name in wanted}
        for name, info in wanted.items():
            if name not in feeds:
                feeds[name] = np.zeros([1, *(n if isinstance(n, int) else 0 for n in info.shape[1:])], np.float32)
        return session.run(["logits" if "position_ids" in wanted else "last_hidden_state"], feeds)[0]
