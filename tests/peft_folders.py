"""LoRA folders as PEFT writes them, made by hand: random factors for the layers of a model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.adapters.sites import Site
from export.files.tensor_file import write_tensors

CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "bias": "none",
    "fan_in_fan_out": False, "use_rslora": False, "use_dora": False, "init_lora_weights": True,
    "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None,
    "layers_pattern": None, "target_modules": "all-linear", "base_model_name_or_path": "somebody/model",
}  # fmt: skip
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def random_pairs(sites: Sequence[Site], rank: int = 4, seed: int = 0, size: float = 0.3, only: str = "") -> Pairs:
    """A float32 [rank, columns] and B [rows, rank] of every site whose module ends with `only`."""
    rng = np.random.default_rng(seed)
    shapes = {site.module: (site.rows, site.columns) for site in sites if site.module.endswith(only)}
    return {
        module: (
            (rng.standard_normal((rank, columns)) * size).astype(np.float32),
            (rng.standard_normal((rows, rank)) * size / np.sqrt(columns)).astype(np.float32),
        )
        for module, (rows, columns) in shapes.items()
    }


def write_peft(
    folder: Path, pairs: Pairs, dtype: type = np.float32, more: Mapping[str, np.ndarray] | None = None, **config: Any
) -> Path:
    """config: over CONFIG; more: tensors beside the factors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
    tensors: dict[str, np.ndarray] = {}
    for module, (a, b) in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.astype(dtype)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(dtype)
    write_tensors(folder / "adapter_model.safetensors", {**tensors, **(more or {})})
    return folder
