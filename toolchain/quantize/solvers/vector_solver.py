"""Solves one matrix of vector codes under the full Hessian: clustering, sweep, then codebooks and codes in turn.

The objective is that of solver.py, tr(E H E^T) with E = W - W'. A code stands for d neighbouring weights, so

- clustering is k-means of all d-vectors, weighted by the Hessian's diagonal; several books take the residuals in turn;
- the sweep rounds d columns at once in the metric of the inverse Hessian, later columns absorb the error
  (Athena's block update, arXiv 2405.17470, with blocks of d);
- codebooks for fixed codes are a least-squares problem in 2^bits * d * books unknowns, solved by conjugate gradients
  because its matrix is only ever multiplied (AQLM, arXiv 2401.06118, takes Adam for it);
- codes for fixed codebooks are improved by coordinate descent, one vector of all rows at a time.

Codebook entries are int8 at every point where a loss is measured. Everything is a matrix product over all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.contract.formats.vectors import SUM_LIMIT
from toolchain.numerics.hessian import inverse_factor, layer_loss

_SAMPLE = 1 << 17  # vectors that k-means looks at
_ROUNDS = 20  # of k-means
_GRADIENT_STEPS = 25  # of conjugate gradients


@dataclass
class State:
    """One chunk of rows that share codebooks."""

    codes: np.ndarray  # intp [N, M, J]
    book: np.ndarray  # float64 [M, E, d], whole numbers once rounded
    scale: np.ndarray  # float64 [N]

    def copy(self) -> State:
        return State(self.codes.copy(), self.book.copy(), self.scale.copy())

    def levels(self) -> np.ndarray:
        """Sums of codebook entries, float64 [N, J * d]."""
        total = sum(self.book[m][self.codes[:, m]] for m in range(len(self.book)))
        return np.asarray(total).reshape(len(self.codes), -1)

    def weights(self) -> np.ndarray:
        return self.levels() * self.scale[:, None]


def padded(weights: np.ndarray, hessian: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and Hessian with columns added so that every vector is whole; the new ones are zero and hardly matter."""
    missing = -weights.shape[1] % dimension
    if not missing:
        return weights, hessian
    size = weights.shape[1] + missing
    wide = np.zeros((size, size))
    wide[: weights.shape[1], : weights.shape[1]] = hessian
    wide[range(size - missing, size), range(size - missing, size)] = 1e-6 * float(np.mean(np.diag(hessian)))
    return np.pad(weights, ((0, 0), (0, missing))), wide


def solve(
    w: np.ndarray, h: np.ndarray, dimension: int, bits: int, books: int, passes: int, rng: np.random.Generator
) -> tuple[State, dict[str, float]]:
    """Codes, int8 codebooks and scales for w float64 [N, K] and h [K, K], K divisible by dimension; losses by step."""
    state = _clustered(w, np.diag(h), dimension, bits, books, rng)
    losses = {"clustering": layer_loss(w - state.weights(), h)}
    swept = _swept(w, h, state)
    losses["sweep"] = layer_loss(w - swept.weights(), h)
    if losses["sweep"] > losses["clustering"]:  # a matrix that little is to be gained from
        swept, losses["sweep"] = state, losses["clustering"]
    state, losses["refinement"] = refined(w, h, swept, losses["sweep"], passes, fixed_scale=False)
    return state, losses


def refined(
    w: np.ndarray, h: np.ndarray, state: State, loss: float, passes: int, fixed_scale: bool
) -> tuple[State, float]:
    """Rounds of least-squares codebooks, codes and (unless fixed) scales; the best state of all."""
    best, best_loss = state, loss
    for _ in range(passes):
        state = state.copy()
        if fixed_scale:
            _fit_books(w, h, state)
            _round_books(state, fixed_scale)
        else:
            _fit_scales(w, h, state)
            _fit_books(w, h, state)
            _round_books(state, fixed_scale)
        _improve_codes(w, h, state)
        loss = layer_loss(w - state.weights(), h)
        if loss < best_loss:
            best, best_loss = state, loss
    return best, best_loss


def _clustered(
    w: np.ndarray, curvature: np.ndarray, dimension: int, bits: int, books: int, rng: np.random.Generator
) -> State:
    rows, columns = w.shape
    scale = np.sqrt(np.mean(w**2, axis=1))
    scale[scale == 0.0] = 1.0
    left = (w / scale[:, None]).reshape(-1, dimension)
    importance = (scale[:, None] ** 2 * curvature[None]).reshape(-1, dimension)
    importance = importance / max(float(importance.mean()), 1e-300)
    state = State(
        np.zeros((rows, books, columns // dimension), np.intp), np.zeros((books, 1 << bits, dimension)), scale
    )
    for m in range(books):
        state.book[m] = _kmeans(left, importance, 1 << bits, rng)
        codes = _nearest(left, importance, state.book[m])
        left = left - state.book[m][codes]
        state.codes[:, m] = codes.reshape(rows, -1)
    _round_books(state, fixed_scale=False)
    return state


def _kmeans(vectors: np.ndarray, importance: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Centroids [count, d] of vectors [n, d] under an importance for each of their numbers."""
    if len(vectors) > _SAMPLE:
        chosen = np.sort(rng.choice(len(vectors), _SAMPLE, replace=False))
        vectors, importance = vectors[chosen], importance[chosen]
    chance = importance.mean(axis=1)
    start = rng.choice(len(vectors), size=count, replace=len(vectors) < count, p=chance / chance.sum())
    centroids = vectors[start].copy()
    for _ in range(_ROUNDS):
        codes = _nearest(vectors, importance, centroids)
        mass, total = np.zeros_like(centroids), np.zeros_like(centroids)
        for i in range(vectors.shape[1]):
            mass[:, i] = np.bincount(codes, importance[:, i], count)
            total[:, i] = np.bincount(codes, importance[:, i] * vectors[:, i], count)
        used = mass[:, 0] > 0
        centroids[used] = total[used] / np.maximum(mass[used], 1e-300)
        unused = np.flatnonzero(~used)
        if unused.size:  # they move to the vectors that are served worst
            error = ((vectors - centroids[codes]) ** 2 * importance).sum(axis=1)
            worst = np.argsort(-error, kind="stable")[: unused.size]
            centroids[unused[: worst.size]] = vectors[worst]
    return centroids


def _nearest(vectors: np.ndarray, importance: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid of every vector, intp [n]."""
    out = np.empty(len(vectors), np.intp)
    step = max(1, (1 << 22) // len(centroids))
    for first in range(0, len(vectors), step):
        part = slice(first, first + step)
        distance = importance[part] @ (centroids**2).T - 2 * (importance[part] * vectors[part]) @ centroids.T
        out[part] = distance.argmin(axis=1)
    return out


def _round_books(state: State, fixed_scale: bool) -> None:
    """Entries to whole numbers whose sums over books stay within SUM_LIMIT; free scales take up the change of unit."""
    reach = float(np.abs(state.book).max(axis=(1, 2)).sum())
    if not fixed_scale and reach > 0:
        factor = (SUM_LIMIT - 0.5 * len(state.book)) / reach
        state.book *= factor
        state.scale /= factor
    state.book[:] = np.rint(state.book)
    while np.abs(state.book).max(axis=(1, 2)).sum() > SUM_LIMIT:  # with fixed scales a book may have grown
        m = int(np.abs(state.book).max(axis=(1, 2)).argmax())
        limit = np.abs(state.book[m]).max() - 1
        state.book[m] = np.clip(state.book[m], -limit, limit)


def _scores(state: State, m: int, metric: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Loss of every entry of book m for every row, up to a constant: entry' M entry s^2 - 2 s entry' target, [N, E]."""
    own = np.einsum("ei,ij,ej->e", state.book[m], metric, state.book[m])
    scale = state.scale[:, None]
    return (scale**2 * own[None] - 2 * scale * (target @ state.book[m].T)).astype(np.float32)


def _swept(w: np.ndarray, h: np.ndarray, start: State) -> State:
    """Columns in order, d at a time: the entries nearest in the inverse Hessian's metric, errors passed on."""
    state, d = start.copy(), start.book.shape[2]
    factor, left = inverse_factor(h), w.copy()
    for j in range(w.shape[1] // d):
        own = slice(j * d, (j + 1) * d)
        inverse = np.linalg.inv(factor[own, own])
        metric, chosen = inverse @ inverse.T, np.zeros((len(w), d))
        for m in range(len(state.book)):
            rest = left[:, own] - chosen * state.scale[:, None]
            state.codes[:, m, j] = _scores(state, m, metric, rest @ metric).argmin(axis=1)
            chosen += state.book[m][state.codes[:, m, j]]
        error = (left[:, own] - chosen * state.scale[:, None]) @ inverse
        left[:, j * d :] -= error @ factor[own, j * d :]
    return state


def _gathered(values: np.ndarray, state: State) -> np.ndarray:
    """Sum of values [N, J * d] over all places of every codebook entry: [M, E, d], the transpose of the look-up."""
    books, entries, d = state.book.shape
    parts = values.reshape(len(values), -1, d)
    out = np.empty_like(state.book)
    for m in range(books):
        at = state.codes[:, m].ravel()
        for i in range(d):
            out[m, :, i] = np.bincount(at, parts[:, :, i].ravel(), entries)
    return out


def _fit_books(w: np.ndarray, h: np.ndarray, state: State) -> None:
    """Least-squares codebooks for fixed codes and scales, by preconditioned conjugate gradients on the correction."""
    scale = state.scale[:, None]

    def applied(book: np.ndarray) -> np.ndarray:
        return _gathered((State(state.codes, book, state.scale).weights() @ h) * scale, state)

    diagonal = _gathered(np.broadcast_to(np.diag(h), w.shape) * scale**2, state)
    diagonal[diagonal <= 0] = 1.0
    residual = _gathered(((w - state.weights()) @ h) * scale, state)
    first = step = residual / diagonal
    length = float((residual * first).sum())
    goal = 1e-10 * length
    for _ in range(_GRADIENT_STEPS):
        if length <= goal:
            break
        image = applied(step)
        rate = length / max(float((step * image).sum()), 1e-300)
        state.book += rate * step
        residual = residual - rate * image
        again = residual / diagonal
        previous, length = length, float((residual * again).sum())
        step = again + length / previous * step


def _improve_codes(w: np.ndarray, h: np.ndarray, state: State) -> None:
    """One pass of coordinate descent over the codes; never raises the loss."""
    d, scale = state.book.shape[2], state.scale[:, None]
    pull = (w - state.weights()) @ h  # minus half the gradient
    for j in range(w.shape[1] // d):
        own = slice(j * d, (j + 1) * d)
        metric = h[own, own]
        for m in range(len(state.book)):
            now = state.book[m][state.codes[:, m, j]]
            scores = _scores(state, m, metric, pull[:, own] + (now * scale) @ metric)
            new = scores.argmin(axis=1)
            moved = (state.book[m][new] - now) * scale
            changed = np.flatnonzero(new != state.codes[:, m, j])
            state.codes[changed, m, j] = new[changed]
            pull[changed] -= moved[changed] @ h[own]


def _fit_scales(w: np.ndarray, h: np.ndarray, state: State) -> None:
    """Least-squares scale of every row for fixed codes and codebooks."""
    levels = state.levels()
    image = levels @ h
    size = (image * levels).sum(axis=1)
    best = (image * w).sum(axis=1) / np.where(size > 0, size, 1.0)
    state.scale = np.where((size > 0) & (best > 0), best, state.scale)
