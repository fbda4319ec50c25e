"""Settings of a quantization run. Everything here is part of the fingerprint: a changed setting refuses a resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from export.contract.errors import InputError
from toolchain.settings.razor import RazorSettings

# What a method sets; an option given beside it wins.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {"qrazor": {"bits": 4, "activation_bits": 4}}
# What --preset sets; an option given beside it wins.
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"passes": 1},
    "balanced": {},
    "best": {
        "passes": 8,
        "guided": True,
        "tune_steps": 1000,
        "own_text": 0.5,
        "trellis": "large",
        "vector": 0,
        "equalize": True,
    },
}
TRELLIS = ("no", "large", "all")
INCOHERENCE = ("none", "values", "residual", "all")
OUTLIER_SELECTORS = ("sensitivity", "gradient", "magnitude")
OVERHEAD_TARGET = 0.1  # bits per weight that codebooks and scales may cost when rows_per_codebook is automatic


@dataclass(frozen=True)
class QuantizeSettings:
    """How the linear layers inside the blocks, and the embedding, are quantized."""

    method: str = "athena"  # a name in toolchain.quantize.METHODS
    # Code width of the linear layers, 1 to 8; a fraction is a budget of effective bits, everything stored included,
    # and every layer gets its own width (toolchain/pipeline/allocation.py).
    bits: float = 3
    group_size: int = 0  # columns that share a codebook or a scale; 0: the whole row
    rows_per_codebook: int = 0  # rows that share a codebook; 0: as few as OVERHEAD_TARGET allows
    scale_bits: int = 0  # one scale per row: 16 as float16, 2 to 8 as codes; 0: coded in 4 bits for rows under 1024
    # Neighbouring weights that one code stands for: 1, 2, 4 or 8; 0: at 1 and 2 bits the most whose codebooks a
    # matrix has room for (vectors.py). Better at equal bits, but runtimes expand such codes to 8 bits in memory, hence
    # not the default.
    vector: int = 1
    # Levels picked by the codes of several rows together (export/contract/formats/trellis.py), up to 4 bits: the
    # best quality at equal bits, expanded to 8 bits in memory as well.
    trellis: str = "no"  # a name in TRELLIS: no matrix, those of 32,768 weights and more, or all
    state_bits: int = 0  # bits that pick a level, up to 12; 0: 8
    passes: int = 4  # rounds of codebook least squares and coordinate descent after the sweep
    damping: float = 0.01  # added to the Hessian's diagonal, in units of its mean
    rank: int = 0  # rank of the residual low-rank term; 0: none
    outliers: float = 0.0  # share of the weights that are stored apart, 32 bits each (outliers.py)
    outliers_by: str = "sensitivity"  # how they are chosen: a name in OUTLIER_SELECTORS
    incoherence: str = "none"  # what is rotated first: none, values, residual or all (toolchain/source/rotation.py)
    equalize: bool = False  # columns are made equally large first (toolchain/source/equalization.py)
    embedding_bits: int = 8  # 8 or less: uniform codes with a scale per row; 16: float16
    sequences: int = 128  # calibration sequences
    sequence_length: int = 512  # tokens per calibration sequence; capped by the model's context
    seed: int = 0  # picks the calibration sequences and the batches of the tuning
    guided: bool = False  # weight tokens by their squared output gradient in the Hessian (GuidedQuant)
    guided_groups: int = 1  # runs of output rows that have a guided Hessian of their own
    block_steps: int = 0  # steps of tuning every block on its own output error, once it is quantized; 0: none
    tune_steps: int = 0  # steps of end-to-end tuning on the KL to the source model; 0: none
    tune_rate: float = 0.0  # learning rate, relative to the root mean square of each tensor; 0: by the layer's width
    tune_batch: int = 8  # windows a step
    tune_length: int = 256  # tokens a window
    own_text: float = (
        0.0  # share of calibration and tuning that the model writes itself (toolchain/calibrate/own_text.py)
    )
    razor: RazorSettings = field(default_factory=RazorSettings)  # integer activations and cache

    def __post_init__(self) -> None:
        """Raises InputError naming the setting that is out of range."""
        limits: dict[str, tuple[float, float]] = {
            "bits": (1, 8),
            "group_size": (0, 2**24),
            "rows_per_codebook": (0, 2**24),
            "passes": (0, 100),
            "damping": (0.0, 10.0),
            "rank": (0, 4096),
            "outliers": (0.0, 0.1),
            "sequences": (1, 2**20),
            "sequence_length": (2, 2**20),
            "seed": (0, 2**63 - 1),
            "guided_groups": (1, 1024),
            "block_steps": (0, 10**7),
            "tune_steps": (0, 10**7),
            "tune_rate": (0.0, 1.0),
            "tune_batch": (1, 4096),
            "tune_length": (2, 2**20),
            "own_text": (0.0, 1.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"--{name.replace('_', '-')} must be {low} to {high}, not {value}")
        if self.scale_bits not in (0, 2, 3, 4, 5, 6, 7, 8, 16):
            raise InputError(f"--scale-bits must be 2 to 8, 16 for float16, or 0 for automatic, not {self.scale_bits}")
        if self.embedding_bits not in (2, 3, 4, 5, 6, 7, 8, 16):
            raise InputError(f"--embedding-bits must be 2 to 8, or 16 for float16, not {self.embedding_bits}")

        if self.incoherence not in INCOHERENCE:
            raise InputError(f"--incoherence must be {', '.join(INCOHERENCE)}, not {self.incoherence}")
        if self.outliers_by not in OUTLIER_SELECTORS:
            raise InputError(f"--outliers-by must be {', '.join(OUTLIER_SELECTORS)}, not {self.outliers_by}")
        if self.outliers and (self.guided_groups > 1 or self.method == "qrazor" or self.razor.activation_bits):
            raise InputError("--outliers does not go with integer activations or --guided-groups")
        if self.guided_groups > 1 and (not self.guided or self.method != "athena" or self.rank):
            raise InputError("--guided-groups is for --method athena with --guided and without --rank")
        self._check_vectors()
        self._check_razor()

    def _check_vectors(self) -> None:
        """What codes of several weights ask of the other settings."""
        if self.vector not in (0, 1, 2, 4, 8):
            raise InputError(f"--vector must be 0 (automatic), 1, 2, 4 or 8, not {self.vector}")
        if self.vector > 1 and (self.method != "athena" or self.is_budget or self.bits * self.vector > 8):
            raise InputError("--vector is for --method athena and codes of 8 bits at most: whole --bits times --vector")
        if self.trellis not in TRELLIS:
            raise InputError(f"--trellis must be {', '.join(TRELLIS)}, not {self.trellis}")
        if self.uses_trellis:
            self._check_trellis()
        if not self.uses_vectors and not self.uses_trellis:
            return
        for name in ("group_size", "rank"):
            if getattr(self, name):
                raise InputError(f"--{name.replace('_', '-')} does not go with codes of several weights")
        if self.uses_vectors and self.is_budget:
            raise InputError("vector codes take whole --bits")
        if self.razor.activation_bits:
            raise InputError("codes of several weights take float activations")

    def _check_trellis(self) -> None:
        if self.method != "athena" or self.vector > 1:
            raise InputError("--trellis is for --method athena without --vector")
        if self.state_bits and self.is_budget:
            raise InputError("--state-bits takes whole --bits: a budget gives layers different widths")
        if self.state_bits and not self.bits < self.state_bits <= min(12, 8 * self.bits):
            low, high = int(self.bits) + 1, int(min(12, 8 * self.bits))
            raise InputError(f"--state-bits must be {low} to {high} at {self.bits:g} bits, not {self.state_bits}")

    def _check_razor(self) -> None:
        """What integer arithmetic asks of the other settings."""
        if self.method == "qrazor":
            if self.is_budget or self.bits < 2:
                raise InputError(f"--method qrazor takes --bits 2 to 8, not {self.bits}")
            if not self.razor.activation_bits:
                raise InputError("--method qrazor computes on integers: --activation-bits must be 2 to 8, or 16")
            for name in ("group_size", "rank", "block_steps", "tune_steps"):
                if getattr(self, name):
                    hint = "; its groups are set by --razor-group" if name == "group_size" else ""
                    raise InputError(f"--{name.replace('_', '-')} is not for --method qrazor{hint}")
        elif self.razor.rotate or self.razor.refit:
            raise InputError("--rotate and --refit are for --method qrazor")
        if self.razor.razor_codebook:
            if self.method != "athena":
                raise InputError("--razor-codebook is for --method athena")
            if self.tune_steps or self.block_steps:
                raise InputError("--razor-codebook does not go with tuning, which would move the entries")
        if self.razor.activation_bits and self.group_size and self.method != "qrazor":
            raise InputError("integer activations need one codebook along a row: no --group-size")

    @property
    def width(self) -> int:
        """The code width where one is needed; a budget is turned into widths before any matrix is quantized."""
        return int(self.bits)

    @property
    def uses_vectors(self) -> bool:
        """Whether one code stands for several weights."""
        return self.vector > 1 or self.method == "aqlm"

    @property
    def uses_trellis(self) -> bool:
        return self.trellis != "no"

    @property
    def needs_weight_gradients(self) -> bool:
        """Whether outliers are chosen by the gradients of the weights."""
        return self.outliers > 0 and self.outliers_by == "gradient"

    @property
    def is_budget(self) -> bool:
        return not float(self.bits).is_integer()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
