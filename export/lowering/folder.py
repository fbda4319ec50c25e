"""Lowers a model folder: its graph through the passes that a target names, and everything beside it carried over."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from export.artefacts.manifest import read_manifest
from export.artefacts.reader import own_names, read_graph
from export.contract.errors import InputError
from export.contract.formats.codebook import CODEBOOK_GATHER, CODEBOOK_MATMUL
from export.contract.formats.groups import GROUP_MATMUL
from export.contract.operators.integers import SDR_ATTENTION, SDR_MATMUL
from export.contract.operators.sink_attention import SINK_ATTENTION
from export.contract.operators.sparse_attention import SPARSE_ATTENTION
from export.files.access import MANIFEST, MAX_JSON, checked_path, copy_file, read_json, write_json
from export.files.foreign import foreign
from export.files.json_shape import check
from export.lowering import codebooks, group_query_attention, matmul_nbits
from export.lowering.check import EXACT, INT8, Check
from export.lowering.matmul_nbits import NBits
from export.model_folder import DATA_FILE, DISABLED_OPTIMIZERS, MODEL_FILE
from export.native.build import build_library, library_name, local_machine

_NATIVE = (CODEBOOK_MATMUL, CODEBOOK_GATHER)
_APPENDING = {
    "Attention",
    SDR_ATTENTION,
    SINK_ATTENTION,
    SPARSE_ATTENTION,
}  # operators that append to a copy of the past
PASSES = ("group_query_attention", "matmul_nbits")
# What the passes left without a reader goes; inputs of the graph stay, used or not: runtimes feed them by name.
_CLEANUP = (common.RemoveUnusedNodesPass, common.RemoveUnusedFunctionsPass, common.RemoveUnusedOpsetsPass)


@dataclass(frozen=True)
class Lowering:
    """What a target asks for."""

    name: str
    passes: tuple[str, ...] = ()
    nbits: NBits = field(default_factory=NBits)
    share_cache: bool = False  # onnxruntime-genai keeps one buffer for past and present
    threads: int | None = None  # hints to our runtime; an option given there wins
    mmap: bool | None = None
    machine: str | None = None  # native library to put beside the graph: a name of export/native/build.py's MACHINES
    check: bool = True  # onnxruntime runs the result once


def write_lowered_folder(
    source: Path, destination: Path, lowering: Lowering,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Write the lowered folder into the existing, empty folder `destination`; what was done, as athena.json says it.

    Raises InputError when the source is incomplete or hostile, was lowered before, or has what a pass cannot express,
    and when onnxruntime, where it is installed, cannot run the result or computes something else.
    """
    graph = read_graph(source)  # checks every external tensor before anything is read through another library
    manifest = read_manifest(source)
    if manifest.get("lowering"):
        raise InputError(f"{source}: was lowered to {manifest['lowering'].get('target')!r}; lower the original folder")
    with foreign(source, "its files cannot be copied"):
        carry(source, destination, graph.files)
    done: dict[str, Any] = {"target": lowering.name, "passes": list(lowering.passes)}
    if lowering.passes:
        with foreign(source / MODEL_FILE, "the graph is malformed"):
            done |= _lower_graph(source, destination, lowering, progress)
    else:
        for name in (MODEL_FILE, *graph.files):
            shutil.copyfile(checked_path(source / name, folder=source), destination / name)
    if lowering.machine:
        name = library_name(lowering.machine)
        build_library(lowering.machine, destination / name)
        nodes = read_graph(destination).nodes
        done["library"] = {"file": name, "operators": sum(n.op_type in _NATIVE for n in nodes)}
    hints = {"threads": lowering.threads, "mmap": lowering.mmap}
    done["runtime"] = {name: value for name, value in hints.items() if value is not None}
    if lowering.check:
        done["check"] = _check_of(source, destination, lowering, done).run()
    write_json(destination / MANIFEST, {**manifest, "lowering": done})
    _adjust_genai(destination, lowering, done)
    return done


def _check_of(source: Path, destination: Path, lowering: Lowering, done: dict[str, Any]) -> Check:
    matrices = done.get("matrices", [])
    int8 = lowering.machine or (matrices and lowering.nbits.accuracy_level not in (0, 1))
    tolerance = INT8 if int8 else EXACT
    if not all(matrix["exact"] for matrix in matrices):
        tolerance = math.inf
    if not lowering.machine:
        return Check(source, destination, changed=bool(lowering.passes), tolerance=tolerance)
    foreign = "" if lowering.machine == local_machine() else f"it is for {lowering.machine}"
    library = destination / library_name(lowering.machine)
    return Check(source, destination, library, foreign, tolerance=tolerance)


def _lower_graph(
    source: Path, destination: Path, lowering: Lowering, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    model = ir.load(source / MODEL_FILE)
    nodes = list(model.graph)
    for node, name in zip(nodes, own_names([node.name or "" for node in nodes])):
        node.name = name  # passes name new tensors after nodes
    encoded: list[matmul_nbits.Encoded] = []
    done: dict[str, Any] = {}
    expanded, kept = codebooks.run(model)
    if expanded:
        done["expanded"] = expanded
    for name in lowering.passes:
        if name == "group_query_attention":
            done["attention_nodes"], left = group_query_attention.run(model)
        elif name == "matmul_nbits":
            encoded, left = matmul_nbits.run(model, lowering.nbits)
        else:
            raise InputError(f"pass {name!r} is unknown; there are {', '.join(PASSES)}")
        kept += left
    for cleanup in _CLEANUP:
        cleanup()(model)
    model.metadata_props["athena.lowered_to"] = lowering.name
    ir.save(
        model, destination / MODEL_FILE, external_data=DATA_FILE,
        callback=lambda tensor, info: progress(str(tensor.name), info.index, info.total),
    )  # fmt: skip
    onnx.checker.check_model(str(destination / MODEL_FILE))
    if encoded:
        done["matrices"] = [asdict(matrix) for matrix in encoded]
    if kept:
        done["kept"] = [asdict(node) for node in kept]
    return done


def carry(source: Path, destination: Path, weights: Collection[str]) -> None:
    """Every small file of the folder but the report, which speaks of the graph as it was."""
    left = {MODEL_FILE, *weights, MANIFEST, "report.json", "report.html"}
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_symlink() or path.is_dir() or name.parts[0].startswith(".") or str(name) in left:
            continue
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(path, destination / name, MAX_JSON, source)


def _adjust_genai(folder: Path, lowering: Lowering, done: dict[str, Any]) -> None:
    """Only GroupQueryAttention writes into its past; standard attention and a razored cache append to a copy of it."""
    path = folder / "genai_config.json"
    if not path.exists():
        return
    config = read_json(path)
    check(config, {"search": {}, "model": {"decoder": {"session_options": {}}}}, f"{path}: ")
    kept = {node["operator"] for node in done.get("kept", ())}
    shared = lowering.share_cache and bool(done.get("attention_nodes")) and not kept & _APPENDING
    config["search"]["past_present_share_buffer"] = shared
    session = config["model"]["decoder"]["session_options"]
    unpacked = kept & {CODEBOOK_MATMUL, GROUP_MATMUL, SDR_MATMUL}
    if lowering.machine or ("matmul_nbits" in lowering.passes and not unpacked):  # nothing that folding would unpack
        session.pop(DISABLED_OPTIMIZERS, None)
    if lowering.machine:
        session["custom_ops_library"] = library_name(lowering.machine)
    write_json(path, config)
