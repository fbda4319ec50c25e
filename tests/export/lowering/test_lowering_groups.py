"""Products with group scales in MatMulNBits: exactly where there are zero points, said where there are minima."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.lowering.folder import Lowering, write_lowered_folder
from tests.toolchain.source.gguf_models import write_gguf
from toolchain.pipeline.packaging import package_checkpoint
from toolchain.pipeline.run import quantize_model
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.quantize import QuantizeSettings


def folder_of(root: Path, title: str) -> Path:
    """A kept model folder whose matrices are all of one type."""
    path = write_gguf(root / "m.gguf", type_of=lambda name: title)
    settings = QuantizeSettings(method="keep", embedding_bits=16)
    checkpoint = quantize_model(str(path), root / "quantized", settings, CalibrationChoice(), quiet=True)
    return package_checkpoint(checkpoint, root / "folder", quiet=True)


def lowered(root: Path, title: str) -> dict:
    """What was done; onnxruntime has run the result and compared it with the folder's own function bodies."""
    (root / "lowered").mkdir()
    return write_lowered_folder(
        folder_of(root, title), root / "lowered", Lowering("test", passes=("group_query_attention", "matmul_nbits"))
    )


@pytest.mark.parametrize("title, bits", [("Q4_0", 4), ("Q8_0", 8), ("Q5_0", 8)])
def test_zero_points_become_those_of_the_operator(tmp_path, title, bits):
    done = lowered(tmp_path, title)
    assert done["expanded"] == 15 and len(done["matrices"]) == 15
    assert all(matrix["exact"] and matrix["bits"] == bits for matrix in done["matrices"])
    assert not [kept for kept in done.get("kept", ()) if kept["operator"] == "GroupMatMul"]
    assert done["check"]["run"]


def test_minima_stay_and_are_named(tmp_path):
    done = lowered(tmp_path, "Q4_1")
    kept = [node for node in done["kept"] if node["operator"] == "GroupMatMul"]
    assert len(kept) == 15 and all("minima" in node["reason"] for node in kept)
    assert done["check"]["run"] and "expanded" not in done
