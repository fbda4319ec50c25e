"""Runs in the environment of the package `adapters`, which needs an older transformers: its folders, and its states.

python adapters_run.py SOURCE OUT IDS: writes OUT/FORM (a pickle), OUT/FORM-safe (safetensors) and OUT/states.npz.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import adapters
import numpy as np
import torch
from transformers import AutoModel

FORMS = {
    "pfeiffer": adapters.SeqBnConfig(reduction_factor=4),
    "houlsby": adapters.DoubleSeqBnConfig(reduction_factor=4),
    "parallel": adapters.ParBnConfig(reduction_factor=8),
    "channel": adapters.DoubleSeqBnConfig(reduction_factor=4, scaling="channel", non_linearity="gelu"),
    "learned": adapters.SeqBnConfig(reduction_factor=4, scaling="learned", non_linearity="gelu_new", mh_adapter=True),
    "leftout": adapters.SeqBnConfig(reduction_factor=4, non_linearity="tanh", leave_out=[1]),
}


def main() -> None:
    source, out, ids = Path(sys.argv[1]), Path(sys.argv[2]), torch.tensor([json.loads(sys.argv[3])])
    states = {}
    for form, config in FORMS.items():
        model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
        adapters.init(model)
        model.add_adapter("task", config=config)
        generator = torch.Generator().manual_seed(3)
        for name, value in model.named_parameters():
            if ".task." in name:
                value.data = torch.randn(value.shape, generator=generator) * 0.3 + ("scaling" in name)
        model.set_active_adapters("task")
        model.eval()
        with torch.no_grad():
            states[form] = model(ids).last_hidden_state[0].numpy()
        model.save_adapter(str(out / form), "task")
        model.save_adapter(str(out / f"{form}-safe"), "task", use_safetensors=True)
    np.savez(out / "states.npz", **states)


main()
