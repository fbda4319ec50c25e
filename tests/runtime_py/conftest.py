"""An export of the bundled model for the tests of the server: 8 bits, so that it behaves as its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import DEMO


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.model_folder import install_folder
    from toolchain.pipeline.packaging import package_checkpoint
    from toolchain.pipeline.run import CalibrationChoice, quantize_model
    from toolchain.settings.quantize import QuantizeSettings

    root = tmp_path_factory.mktemp("served")
    settings = QuantizeSettings(bits=8, method="rtn", sequences=2, sequence_length=16)
    checkpoint = quantize_model(
        str(DEMO), root / "quantized", settings, CalibrationChoice("built-in", None), quiet=True
    )
    install_folder(package_checkpoint(checkpoint, root / "model", quiet=True), root / "model", force=False)
    return root / "model"
