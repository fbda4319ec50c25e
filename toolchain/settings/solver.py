"""How values are found: the method and what it minimizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from export.contract.errors import InputError
from toolchain.settings.format import CODEBOOK, GROUPS, MIXED, NESTED, RAZORED, SPARSE_CODES, TRELLIS, VECTORS
from toolchain.settings.option import option

# Formats that have a solver of their own, toolchain/quantize/solvers/NAME.py, and the methods that it stands for.
FORMAT_SOLVERS: dict[str, tuple[str, ...]] = {"mxfp4": ("athena", "rtn", "gptq"), SPARSE_CODES: ("athena",)}
ABQ = "abq"  # calibrated block by block (toolchain/tune/calibration.py)
# The formats that each method can fill, its own first. A method is a file of this name in toolchain/quantize/methods.
_OWN_FORMATS: dict[str, tuple[str, ...]] = {
    "athena": (CODEBOOK, VECTORS, TRELLIS, MIXED, NESTED),
    "rtn": (CODEBOOK,),
    "gptq": (CODEBOOK,),
    "squeezellm": (CODEBOOK,),
    "aqlm": (VECTORS,),
    "qrazor": (RAZORED,),
    "tender": (CODEBOOK,),
    "slim": (SPARSE_CODES,),
    ABQ: (CODEBOOK,),
}
KEEP = "keep"  # stores what a source has quantized already (toolchain/pipeline/kept.py): nothing is solved
METHOD_FORMATS = {
    method: (*own, *(name for name, methods in FORMAT_SOLVERS.items() if method in methods))
    for method, own in _OWN_FORMATS.items()
}
METHODS = tuple(METHOD_FORMATS)  # those that solve
METHOD_FORMATS[KEEP] = (GROUPS,)
GRADIENT_METHODS = ("squeezellm",)  # their fourth argument: squared gradients of the weights [N, K]
PLANNED = -1  # gradients of the sequences that widths are planned by
OUTLIER_SELECTORS = ("sensitivity", "gradient", "magnitude")


@dataclass(frozen=True)
class SolverSettings:
    """What is minimized, and how long."""

    PANEL: ClassVar[str] = "Solver"

    method: str = option(
        "athena", "How values are found; keep: a quantized source stays as it is", choices=(*METHODS, KEEP), common=True
    )
    passes: int = option(4, "Rounds of least squares and coordinate descent after the sweep", low=0, high=100)
    damping: float = option(0.01, "Added to the Hessian's diagonal, in units of its mean", low=0.0, high=10.0)
    asymmetric: bool = option(  # toolchain/calibrate/drift.py
        False, "Aim at the source's outputs on its own inputs, layer after layer (GPTAQ, Qronos)"
    )
    guided: bool = option(
        False, "Half of a token's weight is its squared gradient of the end loss (GuidedQuant); in trellis codes rows "
        "weigh by theirs",
    )  # fmt: skip
    gradient_sequences: int = option(
        0, "Calibration sequences whose gradients are taken, evenly spread over all; 0: all, -1: those by which widths "
        "are planned", low=PLANNED, high=1 << 20,
    )  # fmt: skip
    guided_groups: int = option(1, "Runs of rows that have a guided Hessian of their own", low=1, high=1024)
    # toolchain/quantize/addons/columns.py
    columns_apart: bool = option(False, "Columns that dominate a layer's loss keep their weights in float16 (OWQ)")
    bit_balance: bool = option(False, "abq: five levels, -2 to 2, at --bits 2 (W2*); stored in 3 bits")
    outliers_by: str = option("sensitivity", "How --outliers are chosen", choices=OUTLIER_SELECTORS)

    def check_solver(self) -> None:
        """What the solver's settings ask of one another. Raises InputError naming the options."""
        if self.guided_groups > 1 and (not self.guided or self.method != "athena"):
            raise InputError("--guided-groups is for --method athena with --guided")
