"""Fits what is kept of each layer to what the source's layer computes: least squares against the layer's Hessian.

When columns of a matrix go, those that stay can make up for what they carried, as far as inputs depend on each other:
min over W' of tr((W - W' S) H (W - W' S)^T), S choosing the kept columns, has the solution W' = W H S^T (S H S^T)^-1.
This is where the ADMM of arXiv 2409.17372 converges to with a fixed mask (tests/toolchain/shrink/test_reconstruct.py
runs that beside it); one solve takes the place of its iterations. Rows that stay are not touched by rows that go.

Blocks are taken in their order, on states that have passed through the fitted blocks before. In each, the attention's
output matrix is fitted first, then, on what the block computes with that, the feed-forward part's. The source's block
on the same states is the aim. Needs one block in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.graph.spec import ModelSpec
from toolchain.calibrate.blocks import BlockRunner, get_weight, set_weight
from toolchain.numerics.hessian import damped
from toolchain.shrink.parts.cut import Cut
from toolchain.shrink.parts.slicing import slices
from toolchain.source.checkpoint import SourceModel
from toolchain.system.progress import Reporter


def fitted_columns(weights: np.ndarray, hessian: np.ndarray, kept: np.ndarray, damping: float) -> np.ndarray:
    """The best weights for the kept columns alone: float32 [N, kept] from [N, K], H [K, K] and int64 [kept].

    damping: of the mean diagonal, added to the kept columns' Hessian only: it draws the fit to the weights as they are.
    """
    inner = hessian[np.ix_(kept, kept)]
    ridge, _ = damped(inner, damping)
    own = weights[:, kept].astype(np.float64)
    aim = weights.astype(np.float64) @ hessian[:, kept] - own @ inner  # what the weights as they are miss
    moved: np.ndarray = own + np.linalg.solve(ridge, aim.T).T
    return moved.astype(np.float32)


@dataclass(frozen=True)
class Reconstruction:
    """How much of each fitted layer's output was lost by the cut alone, and is after the fit."""

    fitted: dict[str, np.ndarray]  # by the source's name of the layer: float32 [N, kept]
    losses: list[tuple[float, float]]  # of all fitted layers in their order, relative to the output


def reconstruct(
    source: SourceModel, spec: ModelSpec, cut: Cut, tokens: np.ndarray, damping: float, quiet: bool
) -> Reconstruction:
    """Fit the output and down matrices of every layer that is left; tokens: int64 [sequences, length]."""
    runner = BlockRunner(source, spec)
    hidden = runner.embed(tokens)
    fitted: dict[str, np.ndarray] = {}
    losses: list[tuple[float, float]] = []
    with Reporter("Reconstructing", len(cut.layers), quiet) as report:
        for layer, part in zip(cut.layers, cut.parts):
            block, kept = runner.load_block(layer), slices(spec, part)
            for name in (spec.block.attention_output, spec.block.down):
                assert name is not None
                columns = kept[name].columns
                assert columns is not None
                module = block.get_submodule(name)
                weights = get_weight(module)
                hessians, _ = runner.hessians(block, (name,), hidden)
                best = fitted_columns(weights, hessians[name], columns, damping)
                fitted[spec.block_name(layer) + name] = best
                losses.append(_losses(weights, best, columns, hessians[name]))
                spread = np.zeros_like(weights)
                spread[:, columns] = best
                set_weight(module, spread)  # columns of zeros are columns that are not there
            hidden = runner.run(block, hidden)
            report.step(f"layer {layer}, error {losses[-1][0]:.3f} to {losses[-1][1]:.3f}")
    return Reconstruction(fitted, losses)


def _losses(weights: np.ndarray, best: np.ndarray, kept: np.ndarray, hessian: np.ndarray) -> tuple[float, float]:
    """Squared error of the layer's output, relative, with the kept columns as they were and as they are fitted."""
    whole = float(np.einsum("nk,nk->", weights @ hessian, weights)) or 1.0
    found = []
    for columns in (weights[:, kept], best):
        off = weights.astype(np.float64)
        off[:, kept] -= columns
        found.append(float(np.einsum("nk,nk->", off @ hessian, off)) / whole)
    return found[0], found[1]
