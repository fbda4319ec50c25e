"""athena.json, checked: every reader of a manifest gets its fields with the types that they have, or one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from export.files.access import MANIFEST, read_json
from export.files.json_shape import COUNT, NUMBER, TEXT, Each, Maybe, check

TENSOR = {
    "name": TEXT,
    "scheme": TEXT,
    "shape": [COUNT],
    "bytes": COUNT,
    "bits?": Maybe(COUNT),
    "effective_bits": NUMBER,
    "losses": Each(NUMBER),
}
TOTALS = {
    "effective_bits": NUMBER,
    "effective_bits_all": NUMBER,
    "linear_weights": COUNT,
    "linear_bytes": COUNT,
    "parameters": COUNT,
    "bytes": COUNT,
}
SOURCE = {"name": TEXT}
SETTINGS = {"method": TEXT}
CALIBRATION = {"source": TEXT, "shape": [COUNT]}
_FIELDS = {
    "tool_version?": TEXT,
    "source?": SOURCE,
    "settings?": SETTINGS,
    "calibration?": CALIBRATION,
    "integers?": Maybe({}),
    "fingerprint?": TEXT,
    "shard_prefix?": TEXT,
    "totals?": TOTALS,
    "tensors?": [TENSOR],
    "lowering?": Maybe({"target?": TEXT, "runtime?": {}}),
}


def read_manifest(folder: Path, *required: str) -> dict[str, Any]:
    """athena.json of a model folder or a quantized checkpoint; what is there of the known fields has its type.

    required: names of fields that have to be there. Raises InputError naming the file and the field.
    """
    path = folder / MANIFEST
    manifest: dict[str, Any] = read_json(path)
    if "tensors" in required and "tensors" not in manifest:
        raise InputError(f"{path}: this quantization is not finished; run `athena-export quantize` again")
    check(manifest, _FIELDS, f"{path}: ")
    for name in required:
        if name not in manifest:
            raise InputError(f"{path}: {name} is missing")
    return manifest
