"""The weight that codes stand for, with gradients to levels, scales and a latent weight, in little memory.

Automatic differentiation would keep the codes in 64 bits and the levels they look up until a step's end: twelve bytes a
weight where one does.
"""

from __future__ import annotations

import torch


class _LookedUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, levels, scale, latent, codes, first):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(levels, scale, codes, first)
        return levels[codes.int() + first] * scale

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        levels, scale, codes, first = ctx.saved_tensors
        index = codes.int() + first
        of_scale = (gradient * levels[index]).sum(dim=1, keepdim=True) if ctx.needs_input_grad[1] else None
        of_levels = None
        if ctx.needs_input_grad[0]:
            of_levels = torch.bincount(index.flatten(), (gradient * scale).flatten(), len(levels)).to(levels.dtype)
        return of_levels, of_scale, gradient, None, None


def looked_up(
    levels: torch.Tensor, scale: torch.Tensor, latent: torch.Tensor, codes: torch.Tensor, rows_per_codebook: int
) -> torch.Tensor:
    """levels[codes] * scale, float32 [N, K]; the gradient goes to levels, scale and, as it is, to latent.

    levels: float32 [chunks, entries], those of `rows_per_codebook` rows each; scale: float32 [N, 1]; latent: float32
    [N, K]; codes: whole numbers [N, K], less than entries, of few bytes (narrow()).
    """
    rows = torch.arange(len(codes), dtype=torch.int32, device=levels.device)
    first = rows // rows_per_codebook * levels.shape[1]
    found: torch.Tensor = _LookedUp.apply(levels.reshape(-1), scale, latent, codes, first[:, None])
    return found


def narrow(entries: int) -> torch.dtype:
    """The smallest type for codes less than `entries`."""
    return torch.uint8 if entries <= 1 << 8 else torch.int16
