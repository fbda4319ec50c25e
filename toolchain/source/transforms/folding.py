"""A checkpoint whose tensors are changed as they are read, so that the model computes the same with other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from toolchain.source.checkpoint import SourceModel
from toolchain.source.group_codes import GroupCodes
from toolchain.source.packings.base import Microscaled

Change = Callable[[torch.Tensor], torch.Tensor]


class FoldedSource(SourceModel):
    """Another source's tensors, with changes; nothing is read before it is asked for."""

    def __init__(self, inner: SourceModel) -> None:
        super().__init__(inner.folder)
        self.config, self.aliases = inner.config, inner.aliases
        self.inner = inner
        self._changes: dict[str, list[Change]] = {}

    def change(self, name: str, change: Change) -> None:
        """Let a tensor (shape kept, float32) come out changed, after the changes it already has."""
        self._changes.setdefault(name, []).append(change)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        value = self.inner.tensor(name, shape)
        for change in self._changes.get(name, ()):
            value = change(value)
        return value.contiguous()

    def row_pieces(self, name: str, shape: tuple[int, int]) -> Iterator[tuple[int, torch.Tensor]]:
        if name in self.folded():
            yield 0, self.tensor(name, shape)
        else:
            yield from self.inner.row_pieces(name, shape)

    def group_codes(self, name: str) -> GroupCodes | None:
        return None if name in self.folded() else self.inner.group_codes(name)

    def mxfp4_blocks(self, name: str) -> Microscaled | None:
        return None if name in self.folded() else self.inner.mxfp4_blocks(name)

    def folded(self) -> set[str]:
        """Names of all tensors that come out changed; a model need not have every one (biases, for example)."""
        inner = self.inner.folded() if isinstance(self.inner, FoldedSource) else set()
        return inner | set(self._changes)
