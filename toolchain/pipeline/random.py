"""Random codes at the real shapes of known models: for benchmarks and cost reports where no checkpoint is at hand.

Nothing is read and nothing is quantized; tensors are made, from their name and a seed, while the model folder is
written. The layouts are those that `quantize` chooses for such matrices, so bytes and speed are those of a real export.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from export import __version__
from export.artefacts.checkpoint import FORMAT_VERSION, RAZORED, TRELLIS, TensorRecord
from export.contract.errors import InputError
from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.trellis import TrellisLayout
from export.contract.sdr import SdrFormat, code_table, pack_flags
from export.files.access import write_json
from export.graph.archs import model_spec
from export.graph.spec import ModelSpec
from export.model_folder import install_folder
from toolchain.pipeline.packaging import package_checkpoint
from toolchain.pipeline.run import totals
from toolchain.quantize.methods.athena import choose_layout
from toolchain.quantize.solvers.trellis import choose_layout as choose_trellis
from toolchain.quantize.solvers.trellis import scale_bits as trellis_scale_bits
from toolchain.settings.quantize import QuantizeSettings
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
_WEIGHT_DEVIATION = 0.02  # standard deviation of the weights, so that activations stay of normal size


class RandomCheckpoint:
    """Looks like a quantized checkpoint to the exporter; every tensor is made when it is asked for."""

    def __init__(self, name: str, folder: Path, settings: QuantizeSettings) -> None:
        """`folder` receives config.json. Raises InputError on an unknown shape or a fractional width."""
        if name not in SHAPES:
            raise InputError(f"--random {name!r} is unknown; choose one of {', '.join(SHAPES)}")
        if settings.is_budget:
            raise InputError("--random needs a whole number of --bits")
        self.folder, self._seed = folder, settings.seed
        self.config = resolved_config(SHAPES[name], folder / "config.json")
        write_json(folder / "config.json", self.config)
        spec = model_spec(self.config)
        self._coded: dict[str, int] = {}
        self.records = {record.name: record for record in self._all_records(spec, settings)}
        self.manifest = {
            "tool_version": __version__,
            "fingerprint": "",
            "calibration": {"source": "none", "shape": [0, 0], "digest": ""},
            "format_version": FORMAT_VERSION,
            "source": {"name": f"random codes at the shape of {name}", "model_type": spec.model_type, "digest": ""},
            "settings": {**settings.to_json(), "method": "random"},
            "integers": settings.razor.arithmetic().to_json(),
            "layers": spec.blocks,
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
                records.append(self._codebook(prefix + name, shapes[name], settings))
            for module in biased:
                size = shapes[module][0]
                records.append(TensorRecord(f"{prefix}{module}.bias", "float32", (size,), 4 * size))
            units = [f"{name}.input_unit" for name in names.linears() if settings.razor.activation_bits]
            units += ["key_unit", "value_unit"] if settings.razor.kv else []
            records += [TensorRecord(prefix + unit, "float32", (1,), 4) for unit in units]
            for norm in (names.attention_norm, names.mlp_norm):
                records.append(TensorRecord(f"{prefix}{norm}.weight", "float32", (hidden,), 4 * hidden))
        return records

    def _codebook(self, name: str, shape: tuple[int, int], settings: QuantizeSettings) -> TensorRecord:
        if settings.method == "qrazor":
            return self._razored(name, shape, settings)
        trellis = choose_trellis(*shape, settings) if settings.uses_trellis else None
        if trellis is not None:
            return self._trellis(name, shape, trellis[0], trellis_scale_bits(shape[1], settings))
        layout, scale_bits = choose_layout(*shape, settings)
        return self._record(name, layout, scale_bits if scale_bits < 16 else None)

    @staticmethod
    def _razored(name: str, shape: tuple[int, int], settings: QuantizeSettings) -> TensorRecord:
        group, width = settings.razor.razor_group, settings.width
        record = TensorRecord(name, RAZORED, shape, 0, width, group, rows_per_codebook=shape[0])
        flags = (shape[0] if width < 8 else 1) * -(-record.integer_layout(group).groups // 2)
        return replace(record, bytes=record.integer_layout(group).stored().stored_bytes() + flags)

    def _uniform(self, name: str, shape: tuple[int, int], bits: int) -> TensorRecord:
        if bits > 8:
            return TensorRecord(name, "float16", shape, 2 * shape[0] * shape[1])
        return self._record(name, CodebookLayout(bits, shape[1], shape[0], rows_per_codebook=shape[0]), None)

    @staticmethod
    def _record(name: str, layout: CodebookLayout, scale_bits: int | None) -> TensorRecord:
        record = TensorRecord(
            name=name, scheme="codebook", shape=(layout.N, layout.K), bytes=layout.stored_bytes(), bits=layout.bits,
            group_size=layout.group_size, rows_per_codebook=layout.rows_per_codebook,
            rows_per_scale=layout.rows_per_scale, rank=0, scale_dtype="float16", scale_bits=scale_bits, losses={},
        )  # fmt: skip
        return RandomCheckpoint._with_scales(record, layout, scale_bits)

    @staticmethod
    def _trellis(name: str, shape: tuple[int, int], layout: TrellisLayout, scale_bits: int) -> TensorRecord:
        """With levels of its own: those of the quantizer's small matrices may be the standard ones."""
        size = math.prod(layout.codes_shape) + math.prod(layout.codebook_shape) + 2 * math.prod(layout.scale_shape)
        coded = scale_bits if scale_bits < 16 else None
        record = TensorRecord(
            name=name, scheme=TRELLIS, shape=shape, bytes=size, bits=layout.bits, state_bits=layout.state_bits,
            rows_per_codebook=layout.rows_per_codebook, rows_per_scale=layout.rows_per_scale, scale_dtype="float16",
            scale_bits=coded,
        )  # fmt: skip
        return RandomCheckpoint._with_scales(record, layout, coded)

    @staticmethod
    def _with_scales(
        record: TensorRecord, layout: CodebookLayout | TrellisLayout, scale_bits: int | None
    ) -> TensorRecord:
        """The record with the bytes of coded scales in place of float16 ones."""
        if scale_bits is None:
            return record
        scales = record.scale_layout().stored_bytes() - 2 * layout.scale_shape[0] * layout.scale_shape[1]
        return TensorRecord(**{**record.__dict__, "bytes": record.bytes + scales})

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
        if record.scheme == RAZORED and suffix in (".flags", ".codebook"):
            form = SdrFormat(8, record.bits or 0, record.group_size)
            if suffix == ".codebook":
                return code_table(form)[None, None]
            flags = rng.integers(0, form.flag_limit + 1, (record.shape[0], form.groups(record.shape[1])))
            return pack_flags(flags if form.flag_limit else flags[:1])
        layout: CodebookLayout | TrellisLayout
        if record.scheme == RAZORED:
            layout = record.integer_layout(record.group_size).stored()
        elif suffix.startswith(".scale."):
            layout = record.scale_layout()
        else:
            layout = record.trellis_layout() if record.scheme == TRELLIS else record.layout()
        part = suffix.rsplit(".", 1)[-1]
        if part == "codes":
            return np.frombuffer(rng.bytes(layout.codes_shape[0] * layout.codes_shape[1]), np.uint8).reshape(
                layout.codes_shape
            )
        if part == "codebook":
            if suffix.startswith(".scale."):
                return np.full(layout.codebook_shape, 100, np.int8)
            if isinstance(layout, TrellisLayout):
                return rng.integers(-127, 128, layout.codebook_shape).astype(np.int8)
            levels = np.linspace(-128, 127, 1 << layout.bits).round().astype(np.int8)
            return np.broadcast_to(levels, layout.codebook_shape).copy()
        unit = _WEIGHT_DEVIATION / (100 if suffix.startswith(".scale.") else 1) / 74  # 74: deviation of the levels
        return np.full(layout.scale_shape, unit, np.float16)


def write_random_folder(name: str, output: Path, settings: QuantizeSettings, force: bool, quiet: bool) -> None:
    """A complete model folder (without a tokenizer) of random codes. Raises InputError on an unknown shape."""
    if settings.uses_vectors:
        raise InputError("--random writes scalar or trellis codes; give it no --vector or --method aqlm")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = RandomCheckpoint(name, Path(scratch), settings)
        install_folder(package_checkpoint(checkpoint, output, quiet), output, force)
