"""What a config.json says of a source whose weights are quantized already, and which of that can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.contract.errors import InputError

DEFAULT_BLOCK = (128, 128)  # of FP8 where nothing says another (FineGrainedFP8Config)
FIELDS = ("quantization_config", "compression_config", "quantization")  # of today, of compressed-tensors before, of MLX
_ADVICE = "give the model that it was quantized from"
_READABLE = (
    "fp8", "mxfp8", "fbgemm_fp8", "compressed-tensors", "bitsandbytes 8-bit", "bitsandbytes 4-bit", "modelopt", "gptq",
    "awq", "auto-round", "mxfp4",
)  # fmt: skip
_TITLES = {
    "hqq": "HQQ",
    "nvfp4": "NVFP4", "aqlm": "AQLM", "quark": "Quark", "torchao": "torchao", "vptq": "VPTQ", "higgs": "HIGGS",
    "spqr": "SpQR", "eetq": "EETQ", "quanto": "quanto", "bitnet": "BitNet", "sinq": "SINQ",
    "mlx": "MLX", "exl2": "EXL2", "exl3": "EXL3", "fp_quant": "FP-Quant", "gguf": "GGUF",
}  # fmt: skip
_COMPRESSED = (
    "dense", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "mxfp8-quantized",
    "pack-quantized", "mxfp4-pack-quantized",
)  # fmt: skip


@dataclass(frozen=True)
class SourceQuantization:
    """A quantization that can be undone exactly."""

    method: str  # one of _READABLE
    block: tuple[int, int] | None  # rows and columns that share a scale, where the config says it
    raw: dict[str, Any]  # the config's object


def unreadable(title: str, where: str) -> InputError:
    """The error for a format that is named but not read."""
    return InputError(f"{where}: the weights are quantized already ({title}), which cannot be read; {_ADVICE}")


def source_quantization(config: dict[str, Any]) -> SourceQuantization | None:
    """What config.json says; None where it says nothing. Raises InputError on a format that cannot be undone."""
    field = next((name for name in FIELDS if config.get(name) is not None), None)
    if field is None:
        return None
    where, raw = f"config.json: {field}", config[field]
    if not isinstance(raw, dict):
        raise InputError(f"{where} must be an object, not {raw!r}")
    method = _method(where, field, raw)
    if method not in _READABLE:
        title = _TITLES.get(method, f"quant_method {method!r}")
        raise InputError(f"{unreadable(title, where)}, or delete {field} if the weights are not quantized any more")
    if method == "compressed-tensors":
        _check_compressed(where, raw)
    if method == "modelopt":
        _check_modelopt(where, raw)
    silent = method == "fp8" and "weight_block_size" not in raw
    return SourceQuantization(method, DEFAULT_BLOCK if silent else _block(where, raw), raw)


def _method(where: str, field: str, raw: dict[str, Any]) -> str:
    method = raw.get("quant_method")
    if field == "quantization" and method is None:
        return "mlx"
    if field == "compression_config" and method is None:
        return "compressed-tensors"
    if raw.get("load_in_4bit") or raw.get("load_in_8bit") or method == "bitsandbytes":
        return "bitsandbytes 8-bit" if raw.get("load_in_8bit") and not raw.get("load_in_4bit") else "bitsandbytes 4-bit"
    if not isinstance(method, str):
        raise InputError(f"{where} has no quant_method: the format of the weights is not known; {_ADVICE}")
    return {"compressed_tensors": "compressed-tensors", "intel/auto-round": "auto-round"}.get(method, method)


def _check_compressed(where: str, raw: dict[str, Any]) -> None:
    """Formats that store each weight as it is, as 8-bit codes or in a packing; no sparsity, no rotation of it."""
    groups = raw.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, dict) else []
    formats = [raw.get("format"), *(group.get("format") for group in groups if isinstance(group, dict))]
    for found in formats:
        if found is not None and found not in _COMPRESSED:
            raise unreadable(f"compressed-tensors {found}", where)
    sparsity = raw.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") not in (None, "dense"):
        raise unreadable(f"compressed-tensors {sparsity.get('format')}", where)
    if raw.get("transform_config"):
        raise unreadable("compressed-tensors with transform_config", where)


def _check_modelopt(where: str, raw: dict[str, Any]) -> None:
    algorithm = raw.get("quant_algo")
    if algorithm is not None and not (isinstance(algorithm, str) and algorithm.startswith("FP8")):
        raise unreadable(f"ModelOpt {algorithm}", where)


def _block(where: str, raw: dict[str, Any]) -> tuple[int, int] | None:
    """`weight_block_size`, or the `block_structure` that all groups of compressed-tensors share."""
    sizes = [raw.get("weight_block_size")]
    groups = raw.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            sizes.append(weights.get("block_structure"))
    found = [size for size in sizes if size is not None]
    for size in found:
        valid = isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
        if not valid:
            raise InputError(f"{where}: the size of a block must be two whole numbers, not {size!r}")
    if len({tuple(size) for size in found}) != 1:
        return None
    return (found[0][0], found[0][1])
