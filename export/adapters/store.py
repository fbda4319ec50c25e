"""Adapters of a model folder: OUT/adapters/NAME/, two files beside the weights that all of them share.

`adapter.json` says what it is made of, `adapter.safetensors` holds for each module with a term

    MODULE.lora_a  [rank, columns]        MODULE.lora_b  [rank, rows], transposed, the scale multiplied in

as float16, float32, or int8 with MODULE.lora_a.scale and MODULE.lora_b.scale, float32 [rank], one of each row. The term
of kind `lora` is y += (x @ a^T) @ b, behind a product. That of kind `bottleneck` has MODULE.lora_a.bias [rank] and
MODULE.lora_b.bias [rows], float32, and the record's `activation` f: y += f(x @ a^T + a.bias) @ b + b.bias, at the
entry's `place` (sites.py). Read without trust: names, sizes and values are checked before a runtime sees them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.adapters.factors import BITS, DTYPES, Factors
from export.adapters.sites import PLACES, PRODUCT, Site
from export.contract.errors import InputError
from export.files.access import read_json, write_json
from export.files.json_shape import COUNT, TEXT, check
from export.files.tensor_file import read_tensors, write_tensors

ADAPTERS = "adapters"
RECORD, FACTORS = "adapter.json", "adapter.safetensors"
VERSION = 1
LORA, BOTTLENECK = "lora", "bottleneck"
NO_ACTIVATION = "none"
ACTIVATIONS = (NO_ACTIVATION, "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
MOST_RANK, MOST_ADAPTERS = 1024, 256
MAX_BYTES = 4 << 30  # of an adapter's factors
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIELDS = {
    "version": COUNT,
    "kind": TEXT,
    "bits": COUNT,
    "source?": {},
    "activation?": TEXT,
    "terms": [{"module": TEXT, "rank": COUNT, "rows": COUNT, "columns": COUNT, "place?": TEXT}],
}


@dataclass(frozen=True)
class Adapter:
    """One adapter: its terms by module, all of one kind, and where it came from."""

    name: str
    bits: int
    terms: Mapping[str, Factors]
    source: Mapping[str, Any] = field(default_factory=dict)
    activation: str = NO_ACTIVATION

    @property
    def kind(self) -> str:
        return BOTTLENECK if any(term.biases is not None for term in self.terms.values()) else LORA

    def rank(self) -> int:
        """The largest of its terms."""
        return max((term.rank for term in self.terms.values()), default=0)

    def nbytes(self) -> int:
        return sum(term.nbytes() for term in self.terms.values())


def check_name(name: str) -> str:
    """The name. Raises InputError for one that cannot be a folder and a part of a model's name."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"adapter name {name[:100]!r}: letters, digits, '.', '_' and '-' are possible, 64 at most, "
            "a letter or digit first"
        )
    return name


def adapter_names(folder: Path) -> tuple[str, ...]:
    """The adapters of a model folder in order of their names. Raises InputError on one that cannot be."""
    place = folder / ADAPTERS
    if not place.is_dir():
        return ()
    found = sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
    found = [name for name in found if (place / name / RECORD).is_file()]
    if len(found) > MOST_ADAPTERS:
        raise InputError(f"{place}: holds {len(found)} adapters; at most {MOST_ADAPTERS} are read")
    return tuple(check_name(name) for name in found)


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write an adapter into a model folder. The record comes last: a folder without it is no adapter.

    Raises InputError where one of this name is there.
    """
    place = folder / ADAPTERS / check_name(adapter.name)
    if (place / RECORD).exists():
        raise InputError(f"{place}: an adapter of this name is there; remove it, or give --force")
    place.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    terms = []
    for module, term in adapter.terms.items():
        tensors |= {f"{module}.lora_a": term.a, f"{module}.lora_b": term.b}
        if term.scales is not None:
            tensors |= {f"{module}.lora_a.scale": term.scales[0], f"{module}.lora_b.scale": term.scales[1]}
        if term.biases is not None:
            tensors |= {f"{module}.lora_a.bias": term.biases[0], f"{module}.lora_b.bias": term.biases[1]}
        entry = {"module": module, "rank": term.rank, "rows": term.b.shape[1], "columns": term.a.shape[1]}
        terms.append(entry if term.biases is None else {**entry, "place": term.place})
    write_tensors(place / FACTORS, tensors)
    record = {"version": VERSION, "kind": adapter.kind, "bits": adapter.bits, "source": dict(adapter.source)}
    if adapter.kind == BOTTLENECK:
        record["activation"] = adapter.activation
    write_json(place / RECORD, {**record, "terms": terms})


def remove_adapter(folder: Path, name: str) -> None:
    """Raises InputError where there is none of this name."""
    if name not in adapter_names(folder):
        raise InputError(f"{folder}: {_there(folder, name)}")
    place = folder / ADAPTERS / name
    if place.is_symlink():
        raise InputError(f"{place}: is a link; only folders are removed")
    (place / RECORD).unlink()  # from now on it is none
    shutil.rmtree(place)
    if not any((folder / ADAPTERS).iterdir()):
        (folder / ADAPTERS).rmdir()


def read_adapter(folder: Path, name: str) -> Adapter:
    """An adapter of a model folder. Raises InputError where there is none, or one that is broken or hostile."""
    if name not in adapter_names(folder):
        raise InputError(f"{folder}: {_there(folder, name)}")
    place = folder / ADAPTERS / name
    path = place / RECORD
    record = read_json(path, folder)
    check(record, _FIELDS, f"{path}: ")
    if record["version"] != VERSION or record["kind"] not in (LORA, BOTTLENECK):
        raise InputError(f"{path}: version {record['version']} of kind {record['kind'][:40]!r} is not known here")
    biased = record["kind"] == BOTTLENECK
    activation = record.get("activation") if biased else NO_ACTIVATION
    if activation not in ACTIVATIONS:
        raise InputError(f"{path}: activation must be one of {', '.join(ACTIVATIONS)}")
    if record["bits"] not in BITS:
        raise InputError(f"{path}: bits must be one of {', '.join(map(str, BITS))}, not {record['bits']}")
    tensors = read_tensors(place / FACTORS, MAX_BYTES, folder)
    terms: dict[str, Factors] = {}
    for entry in record["terms"]:
        module = entry["module"]
        if module in terms:
            raise InputError(f"{path}: {module[:200]} is there twice")
        terms[module] = _factors(place, entry, record["bits"], tensors, biased)
    if not terms:
        raise InputError(f"{path}: has no terms")
    return Adapter(name, record["bits"], terms, record.get("source", {}), activation)


def _factors(
    place: Path, entry: Mapping[str, Any], bits: int, tensors: Mapping[str, np.ndarray], biased: bool
) -> Factors:
    module, rank = entry["module"], entry["rank"]
    where = f"{place / FACTORS}: {module[:200]}"
    if not 1 <= rank <= MOST_RANK:
        raise InputError(f"{where}: rank {rank} is not 1 to {MOST_RANK}")
    found = []
    for part, columns in (("lora_a", entry["columns"]), ("lora_b", entry["rows"])):
        found.append(_part(tensors, f"{module}.{part}", DTYPES[bits], (rank, columns), where))
    scales, biases = None, None
    float32 = np.dtype(np.float32)
    if bits == 8:
        scales = tuple(
            _part(tensors, f"{module}.{part}.scale", float32, (rank,), where) for part in ("lora_a", "lora_b")
        )
    if biased:
        sizes = (("lora_a", rank), ("lora_b", entry["rows"]))
        biases = tuple(_part(tensors, f"{module}.{part}.bias", float32, (size,), where) for part, size in sizes)
        if entry.get("place") not in PLACES:
            raise InputError(f"{where}: place must be one of {', '.join(PLACES)}")
    at = entry["place"] if biased else PRODUCT
    return Factors(found[0], found[1], scales, biases, at)  # type: ignore[arg-type]


def _part(
    tensors: Mapping[str, np.ndarray], name: str, dtype: np.dtype, shape: tuple[int, ...], where: str
) -> np.ndarray:
    array = tensors.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        told = "missing" if array is None else f"{array.dtype.name} {list(array.shape)}"
        raise InputError(f"{where}: {name.rsplit('.lora_')[-1]} is {told}, expected {dtype.name} {list(shape)}")
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{where}: holds numbers that are not finite")
    return array


def _there(folder: Path, name: str) -> str:
    known = ", ".join(adapter_names(folder)) or "none"
    return f"has no adapter {name[:100]!r}; there is {known}"


def check_fits(adapter: Adapter, sites: tuple[Site, ...], folder: Path) -> None:
    """Raises InputError where a term has no place in the graph, or another size."""
    shapes = {(site.place, site.module): (site.rows, site.columns) for site in sites}
    told = "product with" if adapter.kind == LORA else "norm behind the residual sum of"
    for module, term in adapter.terms.items():
        found = shapes.get((term.place, module))
        if found is None:
            raise InputError(f"{folder}: adapter {adapter.name}: the graph has no {told} {module[:200]}")
        if found != (term.b.shape[1], term.a.shape[1]):
            raise InputError(
                f"{folder}: adapter {adapter.name}: {module[:200]} is for {[term.b.shape[1], term.a.shape[1]]}, "
                f"the graph has {list(found)}"
            )
