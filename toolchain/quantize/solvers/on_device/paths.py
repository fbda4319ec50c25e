"""Best paths through a trellis in torch, on whatever device: the Viterbi algorithm for many columns at once.

The same paths as viterbi/column.py finds, up to ties and rounding. A row is one step of all columns: an addition and a
minimum over the predecessors, which are noted; the way back looks them up.
"""

from __future__ import annotations

import torch

from toolchain.system.threads import pieces

_FAR = 3e38
_ROOM = 1 << 25  # costs held at a time


def best_paths(bits: int, targets: torch.Tensor, weights: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """States int64 [C, M, R] of least sum over r of weight (target - level[s])^2, for M columns under each of C levels.

    targets float32 [C, M, R], weights float32 [C, R], levels float32 [C, 2**state_bits].
    """
    columns, rows = targets.shape[1:]
    step = max(1, _ROOM // (len(levels) * rows * levels.shape[1]))
    found = [_paths(bits, targets[:, part], weights, levels) for part in pieces(columns, step)]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _paths(bits: int, targets: torch.Tensor, weights: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    books, columns, rows = targets.shape
    count, ways = levels.shape[1], 1 << bits
    low, device = count >> bits, targets.device
    off = targets.permute(2, 0, 1)[..., None] - levels[:, None, :]
    costs = off.square_().mul_(weights.T[:, :, None, None])  # [R, C, M, states]
    best = torch.full((books, columns, low), _FAR, device=device)  # of the cheapest state by its newest bits
    best[..., 0] = 0.0
    before = torch.empty((rows, books, columns, low), dtype=torch.int64, device=device)
    for r in range(rows):
        row = costs[r].view(books, columns, low, ways)
        row += best[..., None]
        torch.min(row.view(books, columns, ways, low), dim=2, out=(best, before[r]))
    last = costs[-1].argmin(dim=-1, keepdim=True)
    before = before.mul_(low).add_(torch.arange(low, device=device))  # the cheapest predecessor by its newest bits
    newest = before >> bits
    rest = torch.empty((rows, books, columns, 1), dtype=torch.int64, device=device)
    rest[-1] = last >> bits
    for r in range(rows - 1, 0, -1):
        rest[r - 1] = newest[r - 1].gather(-1, rest[r])
    states = torch.cat([before[:-1].gather(-1, rest[1:]), last[None]])
    return states[..., 0].permute(1, 2, 0).contiguous()


def row_weights(scale: torch.Tensor) -> torch.Tensor:
    """What an error of the levels weighs in every row [C, R], relative to the mean of the codebook's rows."""
    squares = scale.float().square()
    return squares / squares.mean(dim=1, keepdim=True)
