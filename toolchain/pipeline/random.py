"""Random codes at the real shapes of known models: for benchmarks and cost reports where no checkpoint is at hand.

Nothing is read and nothing is quantized; tensors are made, from their name and a seed, while the model folder is
written. The layouts are those that `quantize` chooses for such matrices, so bytes and speed are those of a real export.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from export import __version__
from export.artefacts.checkpoint import FORMAT_VERSION
from export.artefacts.records import CODES, StoredPart, TensorRecord
from export.contract.errors import InputError
from export.contract.formats import CodebookLayout, Layout, layout_of
from export.contract.formats.razored import RazoredLayout
from export.files.access import write_json
from export.graph.archs import model_spec
from export.graph.spec import ModelSpec
from export.model_folder import install_folder
from toolchain.pipeline.packaging import package_checkpoint
from toolchain.pipeline.run import totals
from toolchain.quantize.methods import aqlm
from toolchain.quantize.methods.athena import choose_layout
from toolchain.quantize.solvers.trellis import choose_layout as choose_trellis
from toolchain.quantize.solvers.trellis import scale_bits as trellis_scale_bits
from toolchain.quantize.solvers.vectors import choose_dimension
from toolchain.quantize.solvers.vectors import choose_layout as choose_vectors
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.rules import check_random
from toolchain.settings.solver import FORMAT_SOLVERS
from toolchain.source.config import resolved_config

_LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": {
        **_LLAMA, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    },
    "scribe-6m": {
        **_LLAMA, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    },
    "llama-2-7b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    },
}  # fmt: skip
_UNIT = 0.001  # one step of integer activations: about 4 over 2**12
_SCALE_LEVEL = 100  # of coded scales, all alike
_WEIGHT_DEVIATION = 0.02  # standard deviation of the weights, so that activations stay of normal size


class RandomCheckpoint:
    """Looks like a quantized checkpoint to the exporter; every tensor is made when it is asked for."""

    def __init__(self, name: str, folder: Path, settings: QuantizeSettings) -> None:
        """`folder` receives config.json. Raises InputError on an unknown shape or a fractional width."""
        if name not in SHAPES:
            raise InputError(f"--random {name!r} is unknown; choose one of {', '.join(SHAPES)}")
        check_random(settings)
        self.folder, self._seed = folder, settings.seed
        self.config = resolved_config(SHAPES[name], folder / "config.json")
        write_json(folder / "config.json", self.config)
        spec = model_spec(self.config)
        self.records = {record.name: record for record in self._all_records(spec, settings)}
        self.manifest = {
            "tool_version": __version__,
            "fingerprint": "",
            "calibration": {"source": "none", "shape": [0, 0], "digest": ""},
            "format_version": FORMAT_VERSION,
            "source": {"name": f"random codes at the shape of {name}", "model_type": spec.model_type, "digest": ""},
            "settings": {**settings.to_json(), "method": "random"},
            "integers": settings.arithmetic().to_json(),
            "blocks": spec.blocks,
            "totals": totals(list(self.records.values()), spec),
            "tensors": [record.to_json() for record in self.records.values()],
        }

    def _all_records(self, spec: ModelSpec, settings: QuantizeSettings) -> list[TensorRecord]:
        records = [self._uniform(name, shape, settings.embedding_bits) for name, shape in spec.outside().items()]
        records.append(TensorRecord(f"{spec.final_norm}.weight", "float32", (spec.hidden_size,), 4 * spec.hidden_size))
        query, pair = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        names, hidden, inner = spec.block, spec.hidden_size, spec.feed_forward
        shapes: dict[str | None, tuple[int, int]] = {
            names.query: (query, hidden), names.key: (pair, hidden), names.value: (pair, hidden),
            names.attention_output: (hidden, query), names.gate: (inner, hidden), names.up: (inner, hidden),
            names.down: (hidden, inner),
        }  # fmt: skip
        biased = (names.query, names.key, names.value) if spec.model_type == "qwen2" else ()
        for layer in range(spec.blocks):
            prefix = spec.block_name(layer)
            for name in names.linears():
                records.append(self._codes(prefix + name, shapes[name], settings))
            for module in biased:
                size = shapes[module][0]
                records.append(TensorRecord(f"{prefix}{module}.bias", "float32", (size,), 4 * size))
            units = [f"{name}.input_unit" for name in names.linears() if settings.razor.activation_bits]
            units += ["key_unit", "value_unit"] if settings.razor.kv else []
            records += [TensorRecord(prefix + unit, "float32", (1,), 4) for unit in units]
            for norm in (names.attention_norm, names.mlp_norm):
                records.append(TensorRecord(f"{prefix}{norm}.weight", "float32", (hidden,), 4 * hidden))
        return records

    def _codes(self, name: str, shape: tuple[int, int], settings: QuantizeSettings) -> TensorRecord:
        """A linear layer in the layout that the quantizer would choose; trellis codes with levels of their own."""
        if settings.method == "qrazor":
            return _record(name, RazoredLayout(settings.width, shape[1], shape[0], settings.razor.razor_group), 16)
        if settings.format in FORMAT_SOLVERS:
            return _record(name, layout_of(settings.format, {"bits": settings.width, "K": shape[1], "N": shape[0]}), 16)
        if settings.method == "aqlm":
            return _record(name, *choose_vectors(*shape, settings, aqlm.DIMENSION, aqlm.ENTRY_BITS, settings.width))
        trellis = choose_trellis(*shape, settings) if settings.uses_trellis else None
        if trellis is not None:
            return _record(name, trellis[0], trellis_scale_bits(shape[1], settings))
        dimension = choose_dimension(*shape, settings)
        if dimension > 1:
            return _record(name, *choose_vectors(*shape, settings, dimension, settings.width * dimension, books=1))
        return _record(name, *choose_layout(*shape, settings))

    def _uniform(self, name: str, shape: tuple[int, int], bits: int) -> TensorRecord:
        if bits > 8:
            return TensorRecord(name, "float16", shape, 2 * shape[0] * shape[1])
        return _record(name, CodebookLayout(bits, shape[1], shape[0], rows_per_codebook=shape[0]), 16)

    def has(self, name: str) -> bool:
        return name in self.records

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        """One stored part, made from the seed and its name."""
        record = self.records[record_name]
        digest = hashlib.sha256(f"{self._seed}/{record_name}{suffix}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        if record.scheme == "float32":
            value = 0.0 if record_name.endswith("bias") else _UNIT if record_name.endswith("_unit") else 1.0
            return np.full(record.shape, value, np.float32)
        if record.scheme == "float16":
            return (rng.standard_normal(record.shape, np.float32) * _WEIGHT_DEVIATION).astype(np.float16)
        name, _, inner = suffix[1:].partition(".")
        part = record.parts[name]
        if part.how == CODES:
            layout = part.coded_layout()
            if inner == "codebook":
                return np.full(layout.codebook_shape, _SCALE_LEVEL, np.int8)
            return layout.random(inner, rng, _WEIGHT_DEVIATION / _SCALE_LEVEL)
        return record.matrix_layout().random(name, rng, _WEIGHT_DEVIATION)


def _record(name: str, layout: Layout, scale_bits: int) -> TensorRecord:
    """The record of a matrix whose scales have float16 (16 bits) or are coded with fewer."""
    parts = {part: StoredPart(shape.dtypes[0], shape.shape) for part, shape in layout.parts().items()}
    if scale_bits < 16:
        scales, groups = parts["scale"].shape
        coded = CodebookLayout(scale_bits, scales, groups, 0, groups, groups)
        parts["scale"] = StoredPart("float16", (scales, groups), CODES, coded.attributes())
    return TensorRecord.of(name, layout, parts)


def write_random_folder(name: str, output: Path, settings: QuantizeSettings, force: bool, quiet: bool) -> None:
    """A complete model folder (without a tokenizer) of random codes. Raises InputError on an unknown shape."""
    check_random(settings)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = RandomCheckpoint(name, Path(scratch), settings)
        install_folder(package_checkpoint(checkpoint, output, quiet), output, force)
