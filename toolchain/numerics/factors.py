"""A layer Hessian made ready for a solver: damped, in the order of the sweep, with its inverse factor.

On a device the factorizations run there in float64; one that has none leaves them to the processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from toolchain.numerics.hessian import damped, inverse_factor

if TYPE_CHECKING:
    import torch


class ReadyHessian(NamedTuple):
    """What a sweep needs of a Hessian [K, K]; float64."""

    h: np.ndarray  # damped
    damping: float  # that was used
    order: np.ndarray  # of the columns in the sweep
    factor: np.ndarray  # inverse_factor of h in that order


def ready_hessian(
    hessian: np.ndarray, damping: float, by_curvature: bool = True, device: torch.device | None = None
) -> ReadyHessian:
    """by_curvature: columns of large diagonal entries come first; else they keep their order."""
    known: list[tuple[np.ndarray, np.ndarray]] = []  # order and factor: to have them is to know that it is positive

    def positive(matrix: np.ndarray) -> bool:
        order = np.argsort(-np.diag(matrix), kind="stable") if by_curvature else np.arange(len(matrix))
        try:
            if device is None or device.type in ("cpu", "mps"):  # mps has no float64
                factor = inverse_factor(matrix, order)
            else:
                factor = _inverse_factor_on(matrix[np.ix_(order, order)], device)
        except np.linalg.LinAlgError:
            return False
        known[:] = [(order, factor)]
        return True

    h, used = damped(hessian, damping, positive)
    order, factor = known[0] if known else (np.arange(len(h)), np.eye(len(h)))  # an empty Hessian is the identity
    return ReadyHessian(h, used, order, factor)


def _inverse_factor_on(hessian: np.ndarray, device: torch.device) -> np.ndarray:
    """hessian.inverse_factor on a device. Raises LinAlgError, numpy's, for what is not positive definite."""
    import torch

    flipped, failed = torch.linalg.cholesky_ex(torch.from_numpy(hessian).to(device).flip(0, 1))
    if bool(failed.cpu()):
        raise np.linalg.LinAlgError
    unit = torch.eye(len(hessian), dtype=flipped.dtype, device=device)
    inverse = torch.linalg.solve_triangular(flipped, unit, upper=False)
    return np.ascontiguousarray(inverse.flip(0, 1).cpu().numpy())
