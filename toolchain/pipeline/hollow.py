"""The graph of a model before it is quantized: nodes and shapes of an export, weights of zeros that take no room.

Everything that the cost model reads of a model folder, made in a second or two whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from export.artefacts.graph import Graph
from export.artefacts.reader import read_graph
from export.artefacts.records import CODES, TensorRecord
from export.graph.archs import model_spec
from export.graph.spec import ModelSpec
from export.graph.tender import UNIT
from export.graph.whole.decoder import build_decoder
from export.model_folder import DATA_FILE, MODEL_FILE
from toolchain.pipeline.random import all_records
from toolchain.settings.quantize import QuantizeSettings

_SMALL = 4096  # bytes of a tensor that stays in the file: shape arithmetic, frequencies
_ALIGNED = 4096


class _Hollow:
    """Looks like a quantized checkpoint to the graph's builder; its tensors are never read."""

    def __init__(self, config: dict[str, Any], spec: ModelSpec, settings: QuantizeSettings, folder: Path) -> None:
        self.folder, self.config = folder, config
        self.records: dict[str, TensorRecord] = {r.name: r for r in all_records(config, spec, settings)}
        self.manifest: dict[str, Any] = {"settings": settings.to_json(), "integers": settings.arithmetic().to_json()}

    def has(self, name: str) -> bool:
        return name in self.records

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        """Zeros (units: ones), of a part small enough to be kept in the graph's file."""
        record, (name, _, inner) = self.records[record_name], suffix[1:].partition(".")
        part = record.parts.get(name)
        if part is None:  # units must be some number
            return np.full(record.shape, float(record_name.endswith(("_unit", UNIT))), record.scheme)
        if part.how == CODES:
            coded = part.coded_layout().parts()[inner]
            return np.zeros(coded.shape, coded.dtypes[0])
        return np.zeros(part.shape, part.dtype)


def hollow_graph(config: Mapping[str, Any], settings: QuantizeSettings, folder: Path) -> Graph:
    """The graph that a decoder of this (resolved) configuration is exported as; `folder` is empty and is written to.

    Weights are a file of holes: as long as theirs, and without a block on the disk.
    """
    spec = model_spec(dict(config))
    model = build_decoder(spec, _Hollow(dict(config), spec, settings, folder), "athena-export")
    end = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.LazyTensor) and tensor.nbytes > _SMALL:
            value.const_value = ir.ExternalTensor(
                DATA_FILE, end, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=str(value.name), base_dir=folder
            )
            end += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    with (folder / DATA_FILE).open("wb") as file:
        file.truncate(max(end, 1))
    ir.save(model, folder / MODEL_FILE)
    return read_graph(folder)
