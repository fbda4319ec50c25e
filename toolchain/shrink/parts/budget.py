"""How small a model must become: weights, and what a token takes on a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.contract.errors import InputError
from export.graph.spec import ModelSpec
from toolchain.settings.shrinking.shrink import BudgetSettings
from toolchain.shrink.parts.cost import TokenCosts
from toolchain.shrink.parts.cut import Sizes
from toolchain.shrink.parts.family import Freedom
from toolchain.system.units import engineering


@dataclass(frozen=True)
class Budget:
    """Says of sizes whether they are small enough."""

    spec: ModelSpec
    settings: BudgetSettings
    costs: TokenCosts

    @property
    def most_weights(self) -> int | None:
        """Weights that may be left in the blocks' linear layers; None: any."""
        keep = self.settings.keep
        return None if keep is None else int(keep * Sizes.of(self.spec).weights(self.spec))

    def fits(self, sizes: Sizes, layers: Sequence[int] | None = None) -> bool:
        """Whether sizes keep within the budget; layers: the source's numbers of those that are left, else the first."""
        if self.most_weights is not None and sizes.weights(self.spec) > self.most_weights:
            return False
        limit = self.settings.limit
        return limit is None or self.costs.of(sizes, limit[1], layers) <= limit[0]

    def widest(self, heads: Sizes, layers: int, multiple: int, which: Sequence[int] | None = None) -> Sizes | None:
        """The widest feed-forward part that fits beside these heads in so many layers, None where none does.

        which: the layers, as in fits(). Widths are multiples of `multiple`, or the source's own; weights and costs rise
        with the width.
        """
        own = self.spec.feed_forward
        widths = [*range(multiple, own, multiple), own]
        low, high = 0, len(widths)  # of the widths before `low` all fit, of those from `high` none
        while low < high:
            middle = (low + high) // 2
            if self.fits(Sizes(layers, heads.heads, heads.kv_heads, widths[middle]), which):
                low = middle + 1
            else:
                high = middle
        return Sizes(layers, heads.heads, heads.kv_heads, widths[low - 1]) if low else None

    def even(self, freedom: Freedom, multiple: int) -> Sizes:
        """Sizes within the budget with all layers, heads and channels cut as nearly alike as there are numbers for.

        Raises InputError where nothing fits.
        """
        spec, own = self.spec, Sizes.of(self.spec)
        found = []
        for heads in freedom.heads:
            sizes = self.widest(heads, own.layers, multiple if freedom.channels else own.feed_forward)
            if sizes is not None:
                attention = sizes.attention(spec) / own.attention(spec)
                found.append((abs(attention - sizes.feed_forward / own.feed_forward), -sizes.weights(spec), sizes))
        if not found:
            raise InputError(f"{self.text()}: no number of heads and channels of all {own.layers} layers is as small")
        return min(found)[2]

    def text(self) -> str:
        """The budget as it was asked for."""
        s = self.settings
        parts = [] if s.keep is None else [f"--keep {s.keep:g}"]
        if s.limit is not None:
            parts.append(f"{engineering(*s.limit)} a token on {self.costs.target.name}")
        return ", ".join(parts)
