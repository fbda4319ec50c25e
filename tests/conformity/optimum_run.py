"""Runs in optimum's own environment, which pins an older transformers: folders in, tokens or states out as JSON.

python optimum_run.py FOLDER ... < {"tokens": [...], "count": 20}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForFeatureExtraction


def generate(folder: Path, tokens: list[int], count: int) -> list[int]:
    model = ORTModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([tokens])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return out[0, len(tokens) :].tolist()


def states(folder: Path, tokens: list[int]) -> list[list[float]]:
    model = ORTModelForFeatureExtraction.from_pretrained(folder, file_name="model.onnx")
    ids = torch.tensor([tokens])
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "token_type_ids" in model.input_names:
        feeds["token_type_ids"] = torch.zeros_like(ids)
    return model(**feeds).last_hidden_state[0].tolist()


def main() -> None:
    asked = json.load(sys.stdin)
    found = {}
    for argument in sys.argv[1:]:
        folder = Path(argument)
        try:
            if (folder / "genai_config.json").exists():
                found[folder.name] = generate(folder, asked["tokens"], asked["count"])
            else:
                found[folder.name] = states(folder, asked["tokens"])
        except Exception as error:  # the table says which families optimum cannot run, and why
            found[folder.name] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
