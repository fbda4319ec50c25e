"""Second moments of the tokens that a layer reads, and what each token weighs in them."""

from __future__ import annotations

import numpy as np
import torch


def token_shares(weights: np.ndarray, sequences: slice, device: torch.device) -> torch.Tensor:
    """What the tokens of some sequences weigh, mean one over all: float32 [T], or [groups, T], on the device.

    weights: float32 [sequences, length], or [groups, sequences, length].
    """
    mean = max(float(weights.mean(dtype=np.float64)), 1e-30)
    own = weights[..., sequences, :] / mean
    return torch.from_numpy(own.reshape(*own.shape[:-2], -1).astype(np.float32)).to(device)


def gram(rows: torch.Tensor, shares: torch.Tensor | None) -> torch.Tensor:
    """rows^T rows of tokens [T, K], each weighted by its share [T]: float32 [K, K]; [groups, K, K] of [groups, T].

    On the processor numpy computes it: a product with its own transpose is half the work there (BLAS's syrk).
    """
    if shares is not None:
        if shares.ndim == 2:
            return torch.stack([gram(rows, own) for own in shares])
        rows = rows * shares.sqrt()[:, None]
    if rows.device.type != "cpu":
        return rows.T @ rows
    own = rows.contiguous().numpy()
    return torch.from_numpy(own.T @ own)
