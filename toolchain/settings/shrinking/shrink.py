"""What `shrink` is asked for: how much is kept, by which method, for which machine, and what mends the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Optional

from export.contract.errors import InputError
from targets.quantities import quantity
from toolchain.settings.option import check_limits, option

MAGNITUDE, SEARCH, LORAPRUNE, JOINT_RANK = "magnitude", "search", "loraprune", "joint-rank"
METHODS = (MAGNITUDE, SEARCH, LORAPRUNE, JOINT_RANK)


@dataclass(frozen=True)
class BudgetSettings:
    """How small the model becomes."""

    PANEL: ClassVar[str] = "Budget"

    keep: Optional[float] = option(
        None, "Share of the weights in the blocks' linear layers that is kept, such as 0.8", low=0.05, high=0.999,
        common=True, unset="as the target allows",
    )  # fmt: skip
    target: str = option("rpi5", "Machine that a token is priced on, by name or .toml file", common=True)
    latency: Optional[str] = option(
        None, "Most time of a decoded token on the target, such as 20ms", common=True, unset="any"
    )
    energy: Optional[str] = option(
        None, "Most energy of a decoded token on the target, such as 12mJ", common=True, unset="any"
    )
    priced_bits: int = option(4, "Width of the codes that the target is priced with", low=1, high=8)
    priced_context: int = option(1024, "Tokens before the one that is priced", low=1, high=2**20)

    @property
    def limit(self) -> tuple[float, str] | None:
        """Most seconds or joules a token, and the unit. Raises InputError on what is neither."""
        for value, unit, flag in ((self.latency, "s", "--latency"), (self.energy, "J", "--energy")):
            if value is None:
                continue
            try:
                found = quantity(value, unit)
            except ValueError as error:
                raise InputError(f"{flag}: {error}") from None
            if not 0 < found < 1e6:
                raise InputError(f"{flag} must be more than 0 and less than a million {unit}, not {value!r}")
            return found, unit
        return None


@dataclass(frozen=True)
class SearchSettings:
    """How long architectures are searched (--by search)."""

    PANEL: ClassVar[str] = "Search"

    generations: int = option(12, "Rounds of the search", low=0, high=10**5)
    population: int = option(12, "Architectures that live from one round to the next", low=2, high=10**5)
    children: int = option(24, "Architectures that are tried in a round", low=1, high=10**6)
    scored_sequences: int = option(8, "Calibration sequences that an architecture is scored on", low=1, high=2**20)


@dataclass(frozen=True)
class AdapterSettings:
    """How adapters find what matters (--by loraprune)."""

    PANEL: ClassVar[str] = "Loraprune"

    prune_steps: int = option(120, "Steps of training while heads and channels go", low=10, high=10**6)
    prune_rank: int = option(8, "Rank of the adapters", low=1, high=1024)
    prune_rate: float = option(1e-3, "Learning rate of the adapters", low=0.0, high=1.0)
    prune_batch: int = option(4, "Sequences a step", low=1, high=4096)


@dataclass(frozen=True)
class HealSettings:
    """What mends the model after the cut."""

    PANEL: ClassVar[str] = "Mending"

    reconstruct: Optional[bool] = option(
        None,
        "Fit what is kept to the source's outputs on the calibration text",
        unset="with --by search and joint-rank",
        common=True,
    )
    damping: float = option(0.01, "Of the mean diagonal of a layer's Hessian, in that fit", low=1e-8, high=100.0)
    heal_steps: int = option(
        0, "Steps of training all weights on the KL to the source model", low=0, high=10**6, common=True
    )
    heal_rate: Optional[float] = option(
        None,
        "Learning rate, relative to each tensor's root mean square",
        unset="0.001 to 0.005, by the tokens for each weight",
        low=1e-7,
        high=1.0,
    )
    heal_batch: int = option(8, "Windows a step", low=1, high=4096)
    heal_length: int = option(256, "Tokens a window", low=2, high=2**20)


@dataclass(frozen=True)
class ShrinkSettings:
    """Everything that decides what comes out. All of it is part of a run's fingerprint."""

    PANEL: ClassVar[str] = "Shrinking"

    by: str = option(MAGNITUDE, "What chooses", choices=METHODS, common=True)
    multiple: int = option(32, "Channels of the feed-forward parts are kept in multiples of this", low=1, high=4096)
    dense: bool = option(False, "joint-rank: write products of the factors, which transformers loads", common=True)
    sequences: int = option(64, "Calibration sequences", low=1, high=2**20, common=True)
    sequence_length: int = option(256, "Tokens of each, as far as the model's context goes", low=2, high=2**20)
    seed: int = option(0, "Picks sequences, architectures and batches", low=0, high=2**63 - 1)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    adapters: AdapterSettings = field(default_factory=AdapterSettings)
    healing: HealSettings = field(default_factory=HealSettings)

    def __post_init__(self) -> None:
        """Raises InputError naming the setting that is out of range or does not go with another."""
        for part in (self, self.budget, self.search, self.adapters, self.healing):
            check_limits(part)
        b = self.budget
        if b.latency is not None and b.energy is not None:
            raise InputError("--latency and --energy are two budgets; give one of them")
        if b.keep is None and b.limit is None:
            raise InputError("give --keep, or --latency or --energy of a token on --target")
        if self.by == JOINT_RANK and (b.keep is None or b.limit is not None):
            raise InputError(f"--by {JOINT_RANK} takes --keep, and neither --latency nor --energy")
        if self.dense and self.by != JOINT_RANK:
            raise InputError(f"--dense goes with --by {JOINT_RANK}")

    @property
    def reconstructs(self) -> bool:
        """Whether kept weights are fitted to the source's outputs."""
        return self.fits(self.by, self.healing.reconstruct)

    @staticmethod
    def fits(by: str, asked: bool | None) -> bool:
        """The same by a method and what --reconstruct says, None for nothing."""
        return by in (SEARCH, JOINT_RANK) if asked is None else asked

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
