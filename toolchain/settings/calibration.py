"""What text the quantizer measures a model with, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from toolchain.settings.option import check_limits, option

BUILT_IN = "built-in"
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class CalibrationChoice:
    """Where the text comes from. Its tokens are part of a run's fingerprint, its name is not."""

    PANEL: ClassVar[str] = "Calibration"

    source: str = option(
        BUILT_IN, f"Text file, hub dataset name, or {BUILT_IN}", flag="--calibration", common=True, metavar="text"
    )
    part: Optional[str] = option(
        None, "Fraction of the text, such as 0:0.5", flag="--calibration-part", common=True, unset="all",
        metavar="start:stop",
    )  # fmt: skip


@dataclass(frozen=True)
class CalibrationSettings:
    """What of the text is taken."""

    PANEL: ClassVar[str] = "Calibration"

    sequences: int = option(128, "Calibration sequences", low=1, high=2**20, common=True)
    sequence_length: int = option(
        512, "Tokens of each, as far as the model's context goes", low=2, high=2**20, common=True
    )
    seed: int = option(0, "Picks the sequences and the batches of the tuning", low=0, high=2**63 - 1)
    own_text: float = option(  # toolchain/calibrate/own_text.py
        0.0, "Share of the text of calibration and tuning that the model writes itself", low=0.0, high=1.0
    )


@dataclass(frozen=True)
class Workers:
    """How many layers are solved at once, where, and how fast products are computed.

    Not part of the fingerprint: a run goes on with others. Precision and device change a result within rounding, so the
    manifest records them.
    """

    PANEL: ClassVar[str] = "Machine"

    count: int = option(1, "Layers solved at once, in processes", low=1, high=4096, flag="--workers")
    scheduler: Optional[str] = option(
        None, "Dask scheduler that solves the layers", metavar="tcp://host:port", unset="processes of this machine"
    )
    precision: str = option(  # toolchain/numerics/products.py
        "auto", "Products of calibration and tuning; auto: bfloat16 where the processor multiplies it faster",
        choices=("auto", "float32", "bfloat16"),
    )  # fmt: skip
    device: str = option(  # toolchain/system/device.py; not auto by default: no other was ever tried on hardware
        "cpu", "Where calibration, solvers and tuning compute; auto: CUDA, MPS or else the processor", choices=DEVICES
    )

    def __post_init__(self) -> None:
        """Raises InputError on a count that makes no sense."""
        check_limits(self)
