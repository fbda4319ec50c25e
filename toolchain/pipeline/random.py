"""Random codes at the real shapes of known models: for benchmarks and cost reports where no checkpoint is at hand.

Nothing is read and nothing is quantized; tensors are made, from their name and a seed, while the model folder is
written. The layouts are those that `quantize` chooses for such matrices, so bytes and speed are those of a real export.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from export import __version__
from export.artefacts.checkpoint import FORMAT_VERSION
from export.artefacts.records import CODES, StoredPart, TensorRecord
from export.contract.formats import CodebookLayout, Layout
from export.contract.formats.razored import RazoredLayout
from export.contract.formats.trellis import SUMS, TrellisLayout, standard_levels
from export.files.access import write_json
from export.graph.archs import model_spec
from export.graph.spec import ModelSpec
from export.graph.tender import MIDDLE_PRODUCT, MIDDLES, SHIFTS, UNIT
from export.model_folder import install_folder
from toolchain.calibrate.gradients import weight_of
from toolchain.numerics.plain_modules import plain_modules
from toolchain.pipeline.blocks.apart import apart
from toolchain.pipeline.non_block import bits_of
from toolchain.pipeline.packaging import package_checkpoint
from toolchain.pipeline.published_shapes import chosen_shape
from toolchain.pipeline.run import totals
from toolchain.quantize.methods import abq, aqlm
from toolchain.quantize.methods.athena import choose_layout
from toolchain.quantize.solvers.nested import choose_layout as choose_nested
from toolchain.quantize.solvers.trellis import choose_layout as choose_trellis
from toolchain.quantize.solvers.trellis import scale_bits as trellis_scale_bits
from toolchain.quantize.solvers.vectors import choose_dimension
from toolchain.quantize.solvers.vectors import choose_layout as choose_vectors
from toolchain.settings.format import SUM_LEVELS
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.rules import check_calibrated, check_experts, check_random, check_shared_keys
from toolchain.settings.solver import ABQ, FORMAT_SOLVERS
from toolchain.source.config import resolved_config
from toolchain.source.empty_model import empty_model

_UNIT = 0.001  # one step of integer activations: about 4 over 2**12
_SCALE_LEVEL = 100  # of coded scales, all alike
_WEIGHT_DEVIATION = 0.02  # standard deviation of the weights, so that activations stay of normal size


class RandomCheckpoint:
    """Looks like a quantized checkpoint to the exporter; every tensor is made when it is asked for."""

    def __init__(self, name: str, folder: Path, settings: QuantizeSettings) -> None:
        """`folder` receives config.json. Raises InputError on an unknown shape or a fractional width."""
        shape = chosen_shape(name)
        check_random(settings)
        self.folder, self._seed, self._sums = folder, settings.seed, settings.levels == SUM_LEVELS
        self._groups = settings.razor.activation_groups
        self.config = resolved_config(shape, folder / "config.json")
        write_json(folder / "config.json", self.config)
        spec = model_spec(self.config)
        if spec.has_experts:
            check_experts(settings, spec)
        check_shared_keys(settings, spec)
        check_calibrated(settings, spec)
        self._norm_weight = 1.0 - spec.norm_offset
        nets = [names.delta_net for names in spec.kinds() if names.delta_net is not None]
        self._plain_norms = tuple(f"{net.norm}.weight" for net in nets)  # which have no offset
        self.records = {record.name: record for record in all_records(self.config, spec, settings)}
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

    def has(self, name: str) -> bool:
        return name in self.records

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        """One stored part, made from the seed and its name."""
        record = self.records[record_name]
        digest = hashlib.sha256(f"{self._seed}/{record_name}{suffix}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        if record.scheme == "float32" and len(record.shape) > 1:  # routers
            return rng.standard_normal(record.shape, np.float32) * np.float32(_WEIGHT_DEVIATION)
        if record_name.endswith(SHIFTS):  # the same for all that read the same, as calibration gives them
            drawn = np.random.default_rng((self._seed, *record.shape)).geometric(0.5, record.shape)
            return np.minimum(drawn - 1, self._groups - 1).astype(np.float32)
        if record.scheme == "float32":
            return np.full(record.shape, self._number(record_name), np.float32)
        if record.scheme == "float16":
            return (rng.standard_normal(record.shape, np.float32) * _WEIGHT_DEVIATION).astype(np.float16)
        name, _, inner = suffix[1:].partition(".")
        part = record.parts[name]
        if part.how == CODES:
            layout = part.coded_layout()
            if inner == "codebook":
                return np.full(layout.codebook_shape, _SCALE_LEVEL, np.int8)
            return layout.random(inner, rng, _WEIGHT_DEVIATION / _SCALE_LEVEL)
        matrix = record.matrix_layout()
        if self._sums and name == "codebook" and isinstance(matrix, TrellisLayout):
            return np.repeat(standard_levels(matrix.bits, SUMS)[None], matrix.codebook_shape[0], axis=0)
        return matrix.random(name, rng, _WEIGHT_DEVIATION)

    def _number(self, name: str) -> float:
        """What all numbers of a vector are: those of norms make them do nothing."""
        if name.endswith(("bias", MIDDLES, MIDDLE_PRODUCT)):
            return 0.0
        if name.endswith(("_unit", UNIT)):
            return _UNIT
        return 1.0 if name.endswith(self._plain_norms) else self._norm_weight


def all_records(config: dict[str, Any], spec: ModelSpec, settings: QuantizeSettings) -> list[TensorRecord]:
    """What a checkpoint of this configuration holds, in the layouts that `quantize` chooses, without losses."""
    records = [_uniform(name, shape, bits_of(name, spec, settings)) for name, shape in spec.outside().items()]
    records += [_vector(name, shape) for name, shape in spec.outside_floats().items()]
    model = plain_modules(empty_model(dict(config)))
    for number in range(spec.blocks):
        prefix, names, matrices = spec.block_name(number), spec.names(number), set[str]()
        of_experts = {name for own in names.by_expert() for name in own}
        for name in names.linears():
            rows, columns = weight_of(model.get_submodule(prefix + name)).shape
            shape = (columns, rows) if spec.linear_is_transposed else (rows, columns)
            own = apart(settings, *shape) if name in of_experts else settings
            records.append(_codes(prefix + name, shape, own))
            matrices.add(f"{name}.weight")
        for name, parameter in model.get_submodule(prefix[:-1]).named_parameters():
            if name not in matrices:
                records.append(_vector(prefix + name, tuple(parameter.shape)))
        if settings.razor.activation_groups:
            records += _grouped(records, [prefix + name for name in names.linears()])
        elif settings.razor.activation_bits:
            records += [_vector(f"{prefix}{name}.input_unit", (1,)) for name in names.linears()]
        units = ["key_unit", "value_unit"] if settings.razor.kv and names.attends else []
        records += [_vector(prefix + unit, (1,)) for unit in units]
    return records


def _grouped(records: list[TensorRecord], layers: list[str]) -> list[TensorRecord]:
    """What lies beside the matrices of layers whose activations are in channel groups."""
    shapes = {record.name: record.shape for record in records}
    found = []
    for name in layers:
        rows, columns = shapes[name]
        sizes = {UNIT: 1, MIDDLES: columns, SHIFTS: columns, MIDDLE_PRODUCT: rows}
        found += [_vector(f"{name}.{what}", (size,)) for what, size in sizes.items()]
    return found


def _codes(name: str, shape: tuple[int, int], settings: QuantizeSettings) -> TensorRecord:
    """A linear layer in the layout that the quantizer would choose; trellis codes with levels of their own."""
    if settings.method == "qrazor":
        return _record(name, RazoredLayout(settings.width, shape[1], shape[0], settings.razor.razor_group), 16)
    if settings.method in ("tender", ABQ):
        return _uniform(name, shape, abq.BALANCED_BITS if settings.bit_balance else settings.width)
    if settings.format in FORMAT_SOLVERS:
        solver = import_module(f"toolchain.quantize.solvers.{settings.format}")
        return _record(name, *solver.choose_layout(*shape, settings))
    if settings.nested:
        return _record(name, *choose_nested(*shape, settings))
    if settings.method == "aqlm":
        return _record(name, *choose_vectors(*shape, settings, aqlm.DIMENSION, aqlm.ENTRY_BITS, settings.width))
    trellis = choose_trellis(*shape, settings) if settings.uses_trellis else None
    if trellis is not None:
        return _record(name, trellis[0], trellis_scale_bits(shape[1], settings))
    dimension = choose_dimension(*shape, settings)
    if dimension > 1:
        return _record(name, *choose_vectors(*shape, settings, dimension, settings.width * dimension, books=1))
    return _record(name, *choose_layout(*shape, settings))


def _uniform(name: str, shape: tuple[int, int], bits: int) -> TensorRecord:
    if bits > 8:
        return TensorRecord(name, "float16", shape, 2 * shape[0] * shape[1])
    return _record(name, CodebookLayout(bits, shape[1], shape[0], rows_per_codebook=shape[0]), 16)


def _vector(name: str, shape: tuple[int, ...]) -> TensorRecord:
    """The record of what is stored as it is."""
    return TensorRecord(name, "float32", shape, 4 * math.prod(shape))


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
