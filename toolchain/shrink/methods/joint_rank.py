"""Joint rank-k (arXiv 2402.16319): matrices that read the same input share one factor.

Query and key, and gate and up, are stacked to M [m1 + m2, n]; its best approximation of rank k is M V V^T, V being the
first k right singular vectors. V^T is stored once, M V in two parts: k (n + m1 + m2) weights instead of n (m1 + m2).
That reads no text (--no-reconstruct). By default outputs on the calibration text are approximated: M C V V^T C^-1,
C C^T being the inputs' second moments and V the singular vectors of G M C (SVD-LLM, arXiv 2403.07378, section 3.1), G
being the root mean square of the loss's gradients at runs of each matrix' outputs: energy left out is then what it
costs, to second order in the empirical Fisher matrix with a number for each run. SmolLM2-135M at --keep 0.9, KL with no
G and shares of each pair's energy 0.80, with a number for a matrix 0.37, in 32 runs 0.33.
Ranks of all pairs are chosen together: weights go where they bring most energy, of a pair's own without a text, until
the budget is spent; a pair that would need as many weights as it has stays whole. --dense multiplies the factors, for
transformers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from export.contract.errors import InputError
from export.graph.low_rank import PAIRS, RECORD, with_low_rank
from export.graph.spec import BlockNames
from toolchain.calibrate.blocks import BlockRunner
from toolchain.calibrate.gradients import measure_gradients, with_gradients
from toolchain.numerics.hessian import damped
from toolchain.settings.shrinking.shrink import ShrinkSettings
from toolchain.settings.solver import PLANNED
from toolchain.shrink.parts.budget import Budget
from toolchain.shrink.parts.cut import Sizes
from toolchain.shrink.parts.family import Freedom
from toolchain.shrink.parts.work import Choice, Work
from toolchain.source.checkpoint import SourceModel
from toolchain.system.progress import Reporter

_RUNS = 32  # of a matrix' rows, that have a gradient of their own
_LEAST_SIZE = 1e-6  # of a column beside the largest: nothing less is divided by


@dataclass(frozen=True)
class Pair:
    """Two matrices over the same input: full names, singular vectors and what each carries."""

    kind: str  # one of PAIRS
    layer: int
    names: tuple[str, str]
    rows: int  # of both
    into: np.ndarray  # V or C V, balanced, float64 [n, n], most energy first: what a matrix times it is stored
    shared: np.ndarray  # V^T or V^T C^-1, balanced, float64 [n, n], whose first rows are stored
    energy: np.ndarray  # squared singular values, float64 [n]

    @property
    def columns(self) -> int:
        return len(self.energy)

    def weights(self, rank: int) -> int:
        """Weights that are stored at a rank; 0: of the matrices as they are."""
        return rank * (self.columns + self.rows) if rank else self.columns * self.rows


def break_even(rows: int, columns: int) -> float:
    """The rank from which factors have as many weights as both matrices of `rows` together."""
    return rows * columns / (rows + columns)


def decomposed(stacked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right singular vectors, float64 [n, n] in columns, and squared singular values [n], of M [m, n]; falling.

    By the eigenvectors of M^T M, which is as small as the input is wide.
    """
    m = stacked.astype(np.float64)
    values, vectors = np.linalg.eigh(m.T @ m)
    return vectors[:, ::-1], np.maximum(values[::-1], 0.0)


def factors(stacked: np.ndarray, hessian: np.ndarray | None, damping: float) -> tuple[np.ndarray, ...]:
    """`into`, `shared` and `energy` of a Pair, for M [m, n] and the Hessian [n, n] of its inputs, None: all alike.

    damping: of the Hessian's mean diagonal.
    """
    if hessian is None:
        vectors, energy = decomposed(stacked)
        return vectors, vectors.T, energy
    root = np.linalg.cholesky(damped(hessian, damping)[0])
    vectors, energy = decomposed(stacked.astype(np.float64) @ root)
    return root @ vectors, np.linalg.solve(root.T, vectors).T, energy


def balanced(stacked: np.ndarray, into: np.ndarray, shared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`into` and `shared` so scaled that the columns of M into, M [m, n], which are stored, have one size.

    A row of codes has one scale, so columns that fall with the singular values would be lost in its steps; the rows of
    `shared` have scales of their own. scribe-6M at --keep 0.8, 4 bits: KL 0.0164 without, 0.0097.
    """
    size = np.linalg.norm(stacked.astype(np.float64) @ into, axis=0)
    size = np.maximum(size / max(size.max(), 1e-300), _LEAST_SIZE)
    return into / size, shared * size[:, None]


def _input_hessians(work: Work, kinds: Sequence[str]) -> Iterator[dict[str, np.ndarray] | None]:
    """Of every layer, by kind of pair, on the source's own states; None where the weights alone count."""
    spec = work.spec
    if not work.settings.reconstructs:
        yield from itertools.repeat(None, spec.layers)
        return
    runner = BlockRunner(work.source, spec)
    hidden = runner.embed(work.tokens())
    names = {kind: _names(spec.block, kind)[0] for kind in kinds}
    for layer in range(spec.layers):
        found, hidden = runner.hessians(runner.load_block(layer), tuple(names.values()), hidden)
        yield {kind: found[name] for kind, name in names.items()}


def _output_weights(work: Work) -> dict[str, np.ndarray]:
    """Root mean square of the gradients at runs of outputs of each linear layer, by full name; empty without a text."""
    if not work.settings.reconstructs:
        return {}
    tokens = work.tokens()
    tokens = tokens[with_gradients(PLANNED, len(tokens))]
    found = measure_gradients(work.source, work.spec, tokens, work.quiet, False, _RUNS, precision=work.precision)
    return {name: np.sqrt(squares.mean(axis=(1, 2), dtype=np.float64)) for name, squares in found.outputs.items()}


def chosen_ranks(pairs: list[Pair], most: int, multiple: int, comparable: bool = False) -> list[int]:
    """A rank for each pair, multiples of `multiple`, 0 for whole matrices, of `most` weights together at most.

    From the least rank on, whatever step brings the most energy for its weights is taken first. Energy counts as a
    share of the pair's, unless energies of different pairs are `comparable`. Raises InputError where the least ranks
    take more.
    """
    ranks = [min(multiple, pair.columns) for pair in pairs]
    totals = [1.0 if comparable else max(pair.energy.sum(), 1e-300) for pair in pairs]
    shares = [np.concatenate([[0.0], np.cumsum(pair.energy) / total]) for pair, total in zip(pairs, totals)]
    left = most - sum(pair.weights(rank) for pair, rank in zip(pairs, ranks))
    if left < 0:
        raise InputError("--keep: these matrices have no lower ranks; the other methods cut further")

    def step(i: int) -> tuple[float, int, int]:
        """Energy for a weight, the weights, and the next rank of a pair."""
        pair, after = pairs[i], ranks[i] + multiple
        rank = 0 if pair.weights(after) >= pair.weights(0) else after
        cost = pair.weights(rank) - pair.weights(ranks[i])
        gain = shares[i][rank or -1] - shares[i][ranks[i]]
        return gain / max(cost, 1), cost, rank

    open_pairs = [i for i, pair in enumerate(pairs) if pair.weights(ranks[i]) < pair.weights(0)]
    for i in set(range(len(pairs))) - set(open_pairs):
        left += pairs[i].weights(ranks[i]) - pairs[i].weights(0)
        ranks[i] = 0
    while open_pairs and left >= 0:
        steps = {i: step(i) for i in open_pairs}
        open_pairs = [i for i in open_pairs if steps[i][1] <= left]
        if not open_pairs:
            break
        best = max(open_pairs, key=lambda i: (steps[i][0], -i))
        _, cost, ranks[best] = steps[best]
        left -= cost
        if ranks[best] == 0:
            open_pairs.remove(best)
    return ranks


def _names(names: BlockNames, kind: str) -> tuple[str, str]:
    both = (names.query, names.key) if kind == "query_key" else (names.gate, names.up)
    if both[0] is None or both[1] is None:
        raise InputError(f"--by joint-rank: this family has no {' and '.join(kind.split('_'))} layers of their own")
    return both[0], both[1]


def check(freedom: Freedom, budget: Budget, settings: ShrinkSettings) -> None:
    """Raises InputError for a family without such pairs, and a budget that the least ranks do not meet."""
    spec, config = freedom.spec, freedom.source.config
    with_low_rank(spec, {**config, RECORD: {kind: [0] * spec.layers for kind in PAIRS}})  # or a refusal
    n, rank = spec.hidden_size, min(settings.multiple, spec.hidden_size)
    rows = ((spec.heads + spec.kv_heads) * spec.head_dim, 2 * spec.feed_forward)
    saved = sum(max(n * m - rank * (n + m), 0) for m in rows)
    everything = Sizes.of(spec).weights(spec)
    if budget.most_weights is None or everything - spec.layers * saved > budget.most_weights:
        raise InputError(f"{budget.text()}: these matrices have no lower ranks; the other methods cut further")


def choose(work: Work) -> Choice:
    """Both pairs of every layer, at the ranks that the budget admits."""
    source, spec, settings = work.source, work.spec, work.settings
    most = work.budget.most_weights
    assert most is not None
    weights = _output_weights(work)
    pairs = []
    with Reporter("Decomposing", spec.layers, work.quiet) as report:
        for layer, hessians in enumerate(_input_hessians(work, PAIRS)):
            for kind in PAIRS:
                names = _names(spec.block, kind)
                full = (spec.block_name(layer) + names[0], spec.block_name(layer) + names[1])
                stacked = np.concatenate([_weighed(source, name, weights.get(name)) for name in full])
                hessian = None if hessians is None else hessians[kind]
                into, shared, energy = factors(stacked, hessian, settings.healing.damping)
                plain = np.concatenate([source.tensor(f"{name}.weight").numpy() for name in full])
                pairs.append(Pair(kind, layer, full, len(plain), *balanced(plain, into, shared), energy))
            report.step(f"layer {layer}")
    everything = Sizes.of(spec).weights(spec)
    others = everything - sum(pair.weights(0) for pair in pairs)
    ranks = chosen_ranks(pairs, most - others, settings.multiple, comparable=bool(weights))
    record: dict[str, Any] = {kind: [r for p, r in zip(pairs, ranks) if p.kind == kind] for kind in PAIRS}
    lost = {kind: [_lost(p, r) for p, r in zip(pairs, ranks) if p.kind == kind] for kind in PAIRS}
    config = dict(source.config)
    if not settings.dense:
        config[RECORD] = {"model_type": spec.model_type, **record}
    factored = [(pair, rank) for pair, rank in zip(pairs, ranks) if rank]

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        return factored_tensors(source, factored, settings.dense)

    return Choice(config, tensors, about={"ranks": record, "energy_lost": lost})


def _weighed(source: SourceModel, name: str, runs: np.ndarray | None) -> np.ndarray:
    """A matrix [m, n], each run of its rows times a number."""
    matrix = source.tensor(f"{name}.weight").numpy()
    if runs is None:
        return matrix
    factors = np.concatenate([np.full(len(part), f) for part, f in zip(np.array_split(matrix, len(runs)), runs)])
    return matrix * factors[:, None]


def _lost(pair: Pair, rank: int) -> float:
    """The share of a pair's energy that a rank leaves out."""
    return float(pair.energy[rank:].sum() / max(pair.energy.sum(), 1e-300)) if rank else 0.0


def factored_tensors(
    source: SourceModel, pairs: list[tuple[Pair, int]], dense: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of the model, with factors NAME.a.weight and NAME.b.weight (dense: products) of the pairs."""
    by_name = {name: (pair, rank) for pair, rank in pairs for name in pair.names}
    for parameter in source.parameters():
        module, _, kind = parameter.rpartition(".")
        value = source.tensor(parameter)
        if module not in by_name:
            yield parameter, value
            continue
        if kind != "weight":
            yield parameter if dense else f"{module}.b.{kind}", value
            continue
        pair, rank = by_name[module]
        shared = torch.from_numpy(np.ascontiguousarray(pair.shared[:rank]))  # [rank, n], float64
        own = value.double() @ torch.from_numpy(np.ascontiguousarray(pair.into[:, :rank]))
        if dense:
            yield parameter, (own @ shared).float()
            continue
        if module == pair.names[0]:
            yield f"{module}.a.weight", shared.float()
        yield f"{module}.b.weight", own.float()
