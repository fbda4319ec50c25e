"""Bottleneck folders as the package `adapters` writes them, made by hand: random weights for the ends of blocks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.files.tensor_file import write_tensors

SEQUENTIAL = {
    "adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0, "factorized_phm_W": True,
    "factorized_phm_rule": False, "hypercomplex_nonlinearity": "glorot-uniform", "init_weights": "bert",
    "init_weights_seed": None, "inv_adapter": None, "inv_adapter_reduction_factor": None, "is_parallel": False,
    "learn_phm": True, "leave_out": [], "ln_after": False, "ln_before": False, "mh_adapter": False,
    "non_linearity": "relu", "original_ln_after": True, "original_ln_before": True, "output_adapter": True,
    "phm_bias": True, "phm_c_init": "normal", "phm_dim": 4, "phm_init_range": 0.0001, "phm_layer": False, "phm_rank": 1,
    "reduction_factor": 16, "residual_before_ln": True, "scaling": 1.0, "shared_W_phm": False, "shared_phm_rule": True,
    "stochastic_depth": 0.0, "use_gating": False,
}  # fmt: skip
HOULSBY = {"mh_adapter": True, "original_ln_before": False, "non_linearity": "swish"}
PARALLEL = {"is_parallel": True, "original_ln_before": False, "scaling": 4.0}
WEIGHTS = "adapter.safetensors"
Tensors = dict[str, np.ndarray]
# By model_type: what the modules at a layer's two ends are called, and the product and norm there.
PARENTS = {
    "bert": {"attention.output": ("attention.output.dense", "attention.output.LayerNorm"),
             "output": ("output.dense", "output.LayerNorm")},
    "albert": {"attention.attention_adapters": ("attention.dense", "attention.LayerNorm"),
               "output_adapters": ("ffn_output", "full_layer_layer_norm")},
    "distilbert": {"attention_adapters": ("attention.out_lin", "sa_layer_norm"),
                   "output_adapters": ("ffn.lin2", "output_layer_norm")},
}  # fmt: skip


def random_tensors(
    parents: Sequence[str], width: int, rank: int, seed: int = 0, name: str = "task", scaling: int = 0
) -> Tensors:
    """Weights of a bottleneck at each parent. scaling: numbers of its own, 1 or `width`; 0 for none."""
    rng, found = np.random.default_rng(seed), {}
    for parent in parents:
        shapes = {"adapter_down.0.weight": (rank, width), "adapter_down.0.bias": (rank,),
                  "adapter_up.weight": (width, rank), "adapter_up.bias": (width,)}  # fmt: skip
        for part, shape in shapes.items():
            found[f"{parent}.adapters.{name}.{part}"] = (0.3 * rng.standard_normal(shape)).astype(np.float32)
        if scaling:
            found[f"{parent}.adapters.{name}.scaling"] = (1 + rng.random(scaling)).astype(np.float32)
    return found


def write_hub(
    folder: Path, tensors: Mapping[str, np.ndarray], outer: Mapping[str, Any] | None = None, **config: Any
) -> Path:
    """config: over SEQUENTIAL; outer: over the fields beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "config": {**SEQUENTIAL, **config}, "hidden_size": 64, "model_class": "BertModel",
        "model_name": "somebody/model", "model_type": "bert", "name": "task",
        "version": "adapters.1.3.0", **(outer or {}),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(given), encoding="utf-8")
    write_tensors(folder / WEIGHTS, dict(tensors))
    return folder
