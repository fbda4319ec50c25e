"""Codebooks whose int8 entries are razored: each codebook is one SDR group, its entries short codes with one flag.

Such an entry times a razored activation is a product of two short codes and one shift, as in QRazor (arXiv 2501.13331,
export/contract/sdr.py), although the weights are chosen by Athena. The entries stay int8 in the file; their low bits
are zero.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from export.contract.sdr import SdrFormat, razor, restore
from toolchain.quantize.solvers.scalar import LEVEL_LIMIT, _descend, _errors, _refit, _rescale


def razor_entries(book: np.ndarray, scale: np.ndarray, shared: int, form: SdrFormat) -> np.ndarray:
    """Razor codebooks float64 [chunks, G, levels] of int8 values in place, a codebook a group of `form`.

    Before that each is stretched so that its largest entry is a code (7 << 4 and not 127 with four bits, where rounding
    127 down would cost an eighth of the largest weights); scale float64 [N, G] of its `shared` rows takes it back.
    Returns the step of each codebook, float64 [chunks, G]: a power of two, its entries are codes times it.
    """
    largest = np.abs(book).max(axis=2, keepdims=True)
    # dropped bits of a codebook whose largest entry is `largest`, and the largest value that has that many
    dropped = np.maximum(np.floor(np.log2(np.maximum(largest, 1))) + 2 - form.width, 0)
    stretch = np.where(largest > 0, form.code_limit * 2.0**dropped / np.maximum(largest, 1), 1.0)
    stretched = np.rint(np.clip(book * stretch, -LEVEL_LIMIT, LEVEL_LIMIT)).astype(np.int64)
    codes, flags = razor(stretched, form)
    book[:] = restore(codes, flags, form.group_size)
    scale /= np.repeat(stretch[:, :, 0], shared, axis=0)[: scale.shape[0]]
    return 2.0 ** flags[:, :, 0]


@nb.njit(cache=True)
def _refine_chunk(w, hessian, group_of, step, limit, fixed_scale, half_scale, passes, codes, book, scale):  # type: ignore[no-untyped-def]
    """As solver._refine_chunk; entries are rounded to codes times the group's step."""
    error, gradient = np.empty(w.shape), np.empty(w.shape)
    best_loss = np.inf
    best = (codes.copy(), book.copy(), scale.copy())
    for number in range(passes + 1):
        _errors(w, codes, book, scale, group_of, hessian, error, gradient)
        for g in range(book.shape[0]):
            if number > 0:  # the first round only moves codes and scales: that never loses against plain razoring
                real = _refit(codes, book, scale, group_of, g, hessian, gradient)
                book[g] = step[g] * np.clip(np.round(real / step[g]), -limit, limit)
                _errors(w, codes, book, scale, group_of, hessian, error, gradient)
            if not fixed_scale:
                _rescale(w, codes, book, group_of, g, hessian, gradient, scale, half_scale)
                _errors(w, codes, book, scale, group_of, hessian, error, gradient)
        for _cycle in range(3):
            if _descend(codes, book, scale, group_of, hessian, error, gradient) * 1000 < codes.size:
                break
        loss = _errors(w, codes, book, scale, group_of, hessian, error, gradient)
        if loss < best_loss:
            best, best_loss = (codes.copy(), book.copy(), scale.copy()), loss
    codes[:], book[:], scale[:] = best
    return best_loss


@nb.njit(cache=True, parallel=True)
def refine(  # type: ignore[no-untyped-def]
    w, hessian, group_of, shared, step, limit, fixed_scale, half_scale, passes, codes, book, scale, losses
):
    """Least-squares entries and scales and coordinate descent over the codes, entries staying razored.

    step [chunks, G] and limit: entries are -limit to limit times step; the rest as in solver.refine.
    """
    for chunk in nb.prange(book.shape[0]):
        a, b = chunk * shared, min((chunk + 1) * shared, w.shape[0])
        losses[chunk] = _refine_chunk(
            w[a:b], hessian, group_of, step[chunk], limit, fixed_scale, half_scale, passes, codes[a:b], book[chunk],
            scale[a:b],
        )  # fmt: skip
