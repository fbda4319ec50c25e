"""`inspect`: what is stored, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from toolchain.cli.common import guarded, print_json, print_table
from toolchain.system.units import size_text


@guarded
def inspect(
    folder: Annotated[Path, typer.Argument(help="Model folder or quantized checkpoint.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Every stored tensor with scheme, bits, effective bits and bytes, and the totals."""
    from export.artefacts.manifest import read_manifest
    from export.files.json_shape import COUNT, Maybe, check

    manifest = read_manifest(folder, "tensors", "totals", "settings")
    totals, tensors, sparse = manifest["totals"], manifest["tensors"], manifest.get("sparse_attention")
    check(sparse, Maybe({"keys": COUNT, "layers": COUNT}), f"{folder / 'athena.json'}: sparse_attention")
    files = {
        name: (folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data") if (folder / name).exists()
    }
    summary: dict[str, Any] = {
        "method": manifest["settings"]["method"],
        "effective_bits": totals["effective_bits"],
        "bytes": totals["bytes"],
        "linear_bytes": totals["linear_bytes"],
        "shared_bytes": totals["bytes"] - sum(t["bytes"] for t in tensors),
        "linear_weights": totals["linear_weights"],
        "effective_bits_all": totals["effective_bits_all"],
        "parameters": totals["parameters"],
        "files": files,
    }
    if sparse is not None:
        summary["sparse_attention"] = sparse
    if json:
        print_json({**summary, "tensors": tensors})
        return
    rows = [
        [
            t["name"].removeprefix("model.").removeprefix("transformer."),
            "x".join(map(str, t["shape"])),
            t["scheme"] if t.get("bits") is None else str(t["bits"]),
            f"{t['effective_bits']:.3f}",
            f"{t['bytes']:,}",
            _last_loss(t),
        ]
        for t in tensors
        if len(t["shape"]) > 1
    ]
    vectors = [t for t in tensors if len(t["shape"]) == 1]
    if vectors:
        label, size = f"{len(vectors)} norms and biases", sum(t["bytes"] for t in vectors)
        rows.append([label, "", "float32", "32.000", f"{size:,}", "-"])
    if summary["shared_bytes"]:
        rows.append(["standard levels, shared", "", "", "", f"{summary['shared_bytes']:,}", "-"])
    print_table("", ["matrix", "shape", "bits", "eff. bits", "bytes", "layer loss"], rows)
    print(f"linear layers: {totals['effective_bits']:.4f} effective bits, {size_text(totals['linear_bytes'])}")
    print(f"everything:    {totals['effective_bits_all']:.4f} bits per parameter, {size_text(totals['bytes'])}")
    for name, size in files.items():
        print(f"{name}: {size:,} bytes")
    if sparse is not None:
        print(f"attention: a query reads at most {sparse['keys']:,} keys in {sparse['layers']} layers")


def _last_loss(tensor: dict[str, Any]) -> str:
    from export.artefacts.records import final_loss

    loss = final_loss(tensor["losses"])
    return "-" if loss is None else f"{loss:.2e}"
