"""How weights are stored: width, format, and what a codebook or a scale is shared by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Optional, Union

from export.contract.errors import InputError
from export.contract.registry import FORMAT_CLASSES
from targets.quantities import quantity
from toolchain.settings.option import option

CODEBOOK, VECTORS, TRELLIS, MIXED, RAZORED, GROUPS = "codebook", "vectors", "trellis", "mixed", "razored", "groups"
NESTED, SPARSE_CODES = "nested", "sparse_codes"
ANY_LEVELS, SUM_LEVELS = "any", "sums"
CHOICES = (*FORMAT_CLASSES, MIXED)  # what --format takes
OVERHEAD_TARGET = 0.1  # bits per weight that codebooks and scales may cost when rows_per_codebook is automatic
DEFAULT_BITS = 3
_LONGEST_RUN = 256  # of --sparsity N:M
SPREAD_ROOM = 0.1  # what codebooks, scales and --spread may add to whole bits


@dataclass(frozen=True)
class FormatSettings:
    """What the linear layers inside the blocks, and the embedding, are stored as."""

    PANEL: ClassVar[str] = "Format"

    # One width for all linear layers; after construction None only where a budget is given.
    bits: Optional[int] = option(
        None, "Code width of the linear layers, 1 to 8", low=1, high=8, common=True, unset=str(DEFAULT_BITS)
    )
    # Every layer gets its own width (toolchain/pipeline/allocation.py). After construction a number, of effective bits,
    # or a text, of what a token may cost on the target.
    budget: Union[float, str, None] = option(
        None, "Instead of --bits: effective bits, everything stored included, such as 3.25; or with --target what "
        "decoding a token may take, 45ms or 12mJ; every layer gets its own width", common=True, unset="none",
        metavar="budget",
    )  # fmt: skip
    budget_target: Optional[str] = option(
        None, "Target that a --budget of time or energy is modelled on", flag="--target", unset="none", common=True
    )
    budget_context: int = option(
        1024, "--budget of time or energy: position of the token that is decoded", flag="--context", low=1, high=2**24
    )
    spread: bool = option(
        False, "Wider codes for layers that the loss depends on, narrower ones for others; on average "
        f"{SPREAD_ROOM} effective bits above --bits (decoders only)",
    )  # fmt: skip
    # codebook: a code for every weight. vectors, trellis: better at equal bits, but runtimes expand such codes to 8
    # bits in memory. mixed: trellis where a matrix is large and has 4 bits or fewer, else vectors or codebook, as
    # --format vectors. After construction always a name in CHOICES.
    format: Optional[str] = option(
        None,
        "How weights are stored (trellis up to 4 bits, else codebook)",
        choices=CHOICES,
        common=True,
        unset="the method's own",
    )
    # 0: at 1 and 2 bits the most whose codebooks a matrix has room for (quantize/solvers/vectors.py).
    dimension: int = option(
        0, "vectors, mixed: weights that one code stands for; 0: at 1 and 2 bits as many as a matrix has room for",
        choices=(0, 1, 2, 4, 8),
    )  # fmt: skip
    state_bits: int = option(0, "trellis: bits that pick a level, up to 12; 0: 8", low=0, high=12)
    levels: str = option(
        ANY_LEVELS, "trellis: sums of two tables of 16 are read as stored on every processor, and lose a little more",
        choices=(ANY_LEVELS, SUM_LEVELS),
    )  # fmt: skip
    # Every width from this one to --bits has codebooks of its own; `--bits` of run, chat, serve, eval, bench and cost.
    nested: int = option(
        0, "One file for several widths: codes that can also be read at any width from this one to --bits; 0: no",
        low=0, high=7,
    )  # fmt: skip
    sparsity: Optional[str] = option(  # toolchain/quantize/solvers/sparse_codes.py
        None, "Weights are dropped: 2:4 keeps two of every four in a row, 0.5 half of a row; these have codes",
        unset="none", metavar="N:M|share",
    )  # fmt: skip
    group_size: int = option(0, "Columns that share a codebook or scale; 0: the whole row", low=0, high=2**24)
    rows_per_codebook: int = option(
        0, f"Rows that share a codebook; 0: as few as {OVERHEAD_TARGET} bit per weight allows", low=0, high=2**24
    )
    # 0: coded in 4 bits for rows under 1024, 6 for a trellis of 128 columns and more; float16 for longer rows.
    scale_bits: int = option(
        0, "Bits of a row's scale: 2 to 8 coded, 16 float16; 0: by the row's length", choices=(0, *range(2, 9), 16)
    )
    rank: int = option(0, "Rank of a low-rank term for what is left; 0: none", low=0, high=4096)
    outliers: float = option(  # 32 bits each (quantize/addons/outliers.py)
        0.0, "Share of the weights stored apart in float16, such as 0.0045", low=0.0, high=0.1
    )
    embedding_bits: int = option(
        8, "Embedding and head: 2 to 8, or 16 for float16", choices=(*range(2, 9), 16), common=True
    )
    per_layer_bits: int = option(
        8, "Embeddings for each layer (Gemma 3n and 4): 2 to 8, or 16 for float16", choices=(*range(2, 9), 16)
    )

    @property
    def width(self) -> int:
        """The code width where one is needed; a budget is turned into widths before any matrix is quantized."""
        return int(self.effective_budget) if self.bits is None else self.bits

    @property
    def is_budget(self) -> bool:
        return self.budget is not None

    @property
    def cost_budget(self) -> tuple[float, str] | None:
        """What a token may cost: (seconds, "s") or (joules, "J"); None for a budget of bits and without one."""
        return _cost(self.budget) if isinstance(self.budget, str) else None

    @property
    def plans_widths(self) -> bool:
        """Whether every layer gets a width of its own."""
        return self.is_budget or self.spread

    @property
    def effective_budget(self) -> float:
        """Effective bits that widths are planned for; where they follow from a cost, DEFAULT_BITS."""
        if isinstance(self.budget, str):
            return DEFAULT_BITS
        if self.budget is not None:
            return self.budget
        return (self.bits or 0) + SPREAD_ROOM

    @property
    def uses_trellis(self) -> bool:
        """Whether trellis codes are used where a matrix admits them."""
        return self.format in (TRELLIS, MIXED)

    def kept_of(self, columns: int) -> tuple[int, int]:
        """What --sparsity keeps in a matrix of so many columns: so many weights of every run of so many columns.

        Raises InputError where --sparsity is neither N:M nor a share.
        """
        kept, colon, run = (self.sparsity or "").partition(":")
        try:
            if colon and 1 <= int(kept) < int(run) <= _LONGEST_RUN:
                return int(kept), int(run)
            if not colon and 0.0 < float(kept) < 1.0:
                return max(columns - round(float(kept) * columns), 1), columns
        except ValueError:
            pass
        raise InputError(f"--sparsity {self.sparsity!r:.50}: 2:4 keeps two of every four weights, 0.5 drops half")

    @property
    def fixed_bits(self) -> int | None:
        """The width of a format that has only one."""
        from export.contract.formats import FORMATS  # numpy

        kind = FORMATS.get(self.format or "")
        return kind.LIMITS["bits"] if kind and kind.LIMITS.get("bits") == kind.LEAST.get("bits", 1) else None

    def check_format(self) -> None:
        """What a format asks of the other fields. Raises InputError naming the options."""
        if self.bits is not None and self.budget is not None:
            raise InputError("--bits and --budget exclude each other")
        self._check_budget()
        if self.fixed_bits and (self.is_budget or self.width != self.fixed_bits):
            raise InputError(f"--format {self.format} takes --bits {self.fixed_bits}")
        self._check_dimension()
        self._check_nested()
        self._check_sparsity()
        if self.levels == SUM_LEVELS and (not self.uses_trellis or self.state_bits not in (0, 8)):
            raise InputError(f"--levels {SUM_LEVELS} is for --format {TRELLIS} and {MIXED} with 8 state bits")
        if not self.state_bits:
            return
        if not self.uses_trellis:
            raise InputError(f"--state-bits is for --format {TRELLIS} and {MIXED}")
        if self.is_budget:
            raise InputError("--state-bits takes --bits: a budget gives layers different widths")
        low, high = self.width + 1, min(12, 8 * self.width)
        if not low <= self.state_bits <= high:
            raise InputError(f"--state-bits must be {low} to {high} at {self.width} bits, not {self.state_bits}")

    @staticmethod
    def read_budget(budget: float | str | None) -> float | str | None:
        """A budget as it is kept: bits are a number. Raises InputError for what is neither bits nor a cost."""
        if not isinstance(budget, str) or _cost(budget) is not None:
            return budget
        try:
            return float(budget)
        except ValueError:
            raise InputError(f"--budget {budget!r:.50}: effective bits such as 3.25, or 45ms or 12mJ") from None

    def _check_budget(self) -> None:
        if isinstance(self.budget, int | float) and not 1 <= self.budget <= 8:  # NaN is outside, too
            raise InputError(f"--budget must be 1 to 8, not {self.budget}")
        if (self.cost_budget is not None) != (self.budget_target is not None):
            raise InputError("--target goes with a --budget of time or energy, such as 45ms or 12mJ, and that with it")
        if self.cost_budget and (self.rank or self.outliers):
            raise InputError("--budget of time or energy goes with neither --rank nor --outliers")

    def _check_nested(self) -> None:
        if bool(self.nested) != (self.format == NESTED):
            raise InputError(f"--nested LOWEST goes with --format {NESTED}, and that with it")
        if not self.nested:
            return
        if self.is_budget:
            raise InputError("--nested takes --bits, no --budget")
        if self.nested >= self.width:
            raise InputError(f"--nested must be below --bits {self.width}, not {self.nested}")
        for name in ("group_size", "rank", "outliers"):
            if getattr(self, name):
                raise InputError(f"--{name.replace('_', '-')} does not go with --nested")

    def _check_sparsity(self) -> None:
        if (self.sparsity is not None) != (self.format == SPARSE_CODES):
            raise InputError(f"--sparsity goes with --format {SPARSE_CODES}, and that with it")
        if self.sparsity is None:
            return
        self.kept_of(1)
        if self.is_budget or self.width > 7:
            raise InputError("--sparsity takes --bits 1 to 7")

    def _check_dimension(self) -> None:
        if self.dimension and self.format not in (VECTORS, MIXED):
            raise InputError(f"--dimension is for --format {VECTORS} and {MIXED}")
        if self.dimension == 1 and self.format == VECTORS:
            raise InputError(f"--format {VECTORS} with --dimension 1 is --format {CODEBOOK}")
        if self.dimension > 1 and self.format == MIXED:
            raise InputError(f"--format {MIXED} takes --dimension 0 (automatic) or 1 (no vectors)")
        if self.dimension > 1 and (self.is_budget or self.width * self.dimension > 8):
            raise InputError("--dimension takes codes of 8 bits at most: whole --bits times --dimension")


def _cost(text: str) -> tuple[float, str] | None:
    """Seconds or joules as they are typed, "45ms" or "12 mJ": (value, "s" or "J"). None for anything else."""
    for unit in ("s", "J"):
        if text.strip().endswith(unit):
            try:
                value = quantity(text, unit)
            except ValueError:
                return None
            return (value, unit) if 0 < value < math.inf else None
    return None
