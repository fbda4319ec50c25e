"""Records of format version 1, which had one flat list of fields for all formats, as records of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.contract.formats import CodebookLayout, Layout, layout_of

_FIELDS = {  # of each format's layout
    "codebook": ("group_size", "rows_per_codebook", "rows_per_scale"),
    "trellis": ("state_bits", "rows_per_codebook", "rows_per_scale"),
    "vectors": ("dimension", "books", "rows_per_codebook", "rows_per_scale"),
    "razored": ("group_size", "rotation"),
}
_DEFAULTS: dict[str, Any] = {
    "bits": None, "group_size": 0, "rows_per_codebook": 1, "rows_per_scale": 1, "rank": 0, "scale_dtype": "float16",
    "scale_bits": None, "rotation": 1, "dimension": 1, "books": 1, "state_bits": 0, "standard_levels": False,
    "outliers": 0, "outlier_dtype": "float16", "losses": {},
}  # fmt: skip


def from_former(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same record with layout and parts. Raises KeyError, TypeError or ValueError when it is none of version 1."""
    known = {"name", "scheme", "shape", "bytes", "effective_bits", *_DEFAULTS}
    if data.keys() - known:
        raise ValueError(f"a record has an unknown field {min(data.keys() - known)!r}")
    old = {**_DEFAULTS, **data}
    common = {name: old[name] for name in ("name", "scheme", "shape", "bytes", "losses")}
    if old["scheme"] not in _FIELDS:
        return {**common, "layout": {}, "parts": {}}
    rows, columns = old["shape"]
    own = {name: old[name] for name in _FIELDS[old["scheme"]]}
    attributes = {"bits": old["bits"], "K": columns, "N": rows, **own}
    parts = _format_parts(layout_of(old["scheme"], attributes), old)
    if old["rank"]:
        parts["lowrank_a"] = {"dtype": "float16", "shape": [old["rank"], columns]}
        parts["lowrank_b"] = {"dtype": "float16", "shape": [rows, old["rank"]]}
    if old["outliers"]:
        parts["outlier_gaps"] = {"dtype": "uint16", "shape": [old["outliers"]]}
        parts["outlier_values"] = {"dtype": old["outlier_dtype"], "shape": [old["outliers"]]}
    return {**common, "layout": attributes, "parts": parts}


def _format_parts(layout: Layout, old: Mapping[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {
        name: {"dtype": part.dtypes[0], "shape": list(part.shape)} for name, part in layout.parts().items()
    }
    parts["scale"]["dtype"] = old["scale_dtype"]
    if old["standard_levels"]:
        parts["codebook"]["how"] = "standard"
    if old["scale_bits"] is not None:
        scales, groups = layout.parts()["scale"].shape
        coded = CodebookLayout(old["scale_bits"], scales, groups, 0, groups, groups)
        parts["scale"] |= {"how": "codes", "layout": coded.attributes()}
    return parts
