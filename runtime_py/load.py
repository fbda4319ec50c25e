"""Opens a model folder for generation: the compiled engine where it can plan the graph, else the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from export.artefacts.graph import Graph
from export.artefacts.reader import read_graph
from export.artefacts.widths import at_width, full_width, in_memory, shape_at, widths_of
from export.contract.errors import InputError
from export.files.access import MANIFEST, read_json
from export.files.foreign import foreign
from runtime_py.reference.expansion import expand_products
from runtime_py.reference.stepping import Stepped
from runtime_py.system.memory import free_memory
from runtime_py.system.paging import in_small_pages, let_go
from runtime_py.widths.learned import LEARNED, read_switch
from runtime_py.widths.schedule import Schedule

if TYPE_CHECKING:
    from export.adapters.sites import Site
    from export.adapters.store import Adapter

ACTIVATIONS = ("int8", "float32")
CACHE_BITS = (16, 8, 4)


class Runner(Protocol):
    """What Engine and Session have in common; a state belongs to the runner that made it."""

    vocab_size: int
    adapters: tuple[str, ...]  # those that a state can have

    def held_bytes(self) -> int:
        """What it takes without any state: weights (mapped ones, too), tables and buffers."""

    def state_bytes(self, tokens: int) -> int:
        """Most that a state of so many tokens takes."""

    @property
    def most_together(self) -> int:
        """Tokens that one call of advance() computes for the price of fewer; 1: it goes token by token."""

    def new_state(self) -> Any:
        """An empty key-value cache; its `length` counts the tokens seen."""

    def rewind(self, state: Any, length: int) -> int:
        """Forget all but the first `length` tokens; how many are left, which recurrent states may make fewer."""

    def adapt(self, state: Any, adapter: str) -> None:
        """Give the tokens to come this adapter's terms ("": none). A state with others has to be empty."""

    def forward(self, state: Any, tokens: Any, last_only: bool = False) -> np.ndarray:
        """Append tokens to the state; their logits, float32 [T or 1, vocabulary]. Raises NotFiniteError."""

    def step(self, states: Sequence[Any], tokens: Sequence[int]) -> list[Stepped]:
        """Append one token to each of several states: what forward() gives each alone, or why it gives nothing."""

    def advance(self, states: Sequence[Any], runs: Sequence[Sequence[int]]) -> list[list[Stepped]]:
        """The same for a run of tokens of each state: logits of each, to the bit as token by token.

        A run ends at the first token that has none, with why; the state is then as long as before that token.
        """


def open_model(
    folder: str | Path,
    activations: str = "int8",
    threads: int | None = None,
    mapped: bool | None = None,
    processors: Sequence[int] = (),
    adapters: Sequence[str] | None = (),
    cache_bits: int = 16,
    bits: int | Schedule | str | None = None,
) -> tuple[Runner, str]:
    """A runner, and why it is the interpreter ("" when it is the engine).

    activations: "int8" (per token and 256 columns; float16 key-value cache) or "float32" (the interpreter). mapped:
    weights stay in the mapped file; False: they are read into memory, which decodes up to 25 % faster where only memory
    has huge pages; None: what the folder was lowered for, else read where there are huge pages and memory enough.
    processors: numbers of those that keep one thread each. adapters: names of those of the folder that a state can
    have; None: all of them. A few percent of speed go where there are any. cache_bits: of each cached key and value, 16
    (float16 or float32), 8 or 4 (integers). bits: the width at which nested codes are read; None: the full one. A
    schedule: widths that change while an answer grows, in memory or mapped all at once; "learned": the folder's own.
    Raises InputError when the folder is incomplete, hostile, or uses an operator this runtime lacks, or has no cache of
    such bits, or no nested codes of that width.
    """
    if activations not in ACTIVATIONS:
        raise InputError(f"--activations {activations!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
    if threads is not None and not 1 <= threads <= 1024:
        raise InputError(f"--threads must be 1 to 1024, not {threads}")
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(processors)
    if processors and (len(set(processors)) < len(processors) or not allowed.issuperset(processors)):
        raise InputError(f"--cpus must name different processors of {sorted(allowed)}, not {list(processors)}")
    if cache_bits not in CACHE_BITS:
        raise InputError(f"--cache-bits must be one of {', '.join(map(str, CACHE_BITS))}, not {cache_bits}")
    if cache_bits != 16 and activations != "int8":
        raise InputError(f"--cache-bits {cache_bits} goes with --activations int8")
    if isinstance(bits, str):
        if bits != LEARNED:
            raise InputError(f"bits must be a width, a schedule or {LEARNED!r}, not {bits!r}")
        bits = Schedule.of(read_switch(Path(folder)))
    hints = _hints(Path(folder))
    threads = threads if threads is not None or processors else hints.get("threads")
    stays = partial(_stays_mapped, mapped, hints.get("mmap"))
    whole = read_graph(Path(folder), mapped=stays)
    below = bits if bits != full_width(whole) else None  # the width, where it is not all there is
    widths = list(bits.widths) if isinstance(bits, Schedule) else [bits]
    graph, *others = _at_widths(whole, widths, stays)
    del whole  # and with it what nobody reads of the mapped file
    free = free_memory()  # where weights were read there was room for them before
    graph = replace(graph, larger_than_memory=free is not None and sum(graph.files.values()) > free)
    if graph.larger_than_memory:
        in_small_pages(graph.weights.values())
    with foreign(Path(folder) / "model.onnx", "the graph is malformed"):
        found = _adapters(graph, adapters)
        if isinstance(below, Schedule):
            if found or activations != "int8":
                raise InputError("--schedule goes with neither adapters nor --activations float32")
            graphs = dict(zip(below.widths, [graph, *others]))
            return _scheduled(graphs, below, threads, processors, cache_bits)
        return _runner(graph, activations, threads, processors, found, cache_bits, below)


def _at_widths(graph: Graph, widths: Sequence[int | None], stays: Callable[[int], bool]) -> list[Graph]:
    """The graph with nested codes at each of these widths, in memory unless they stay mapped; else it as it is.

    Raises InputError for a width that it does not have.
    """
    if widths_of(graph) is None:
        return [at_width(graph, bits) for bits in widths]
    wanted = {name: a.nbytes for bits in widths for name, a in at_width(graph, bits, shape_at).weights.items()}
    if not stays(sum(wanted.values())):
        return in_memory(graph, widths)
    found = [at_width(graph, bits) for bits in widths]
    kept = {id(array) for one in found for array in one.weights.values()}
    for array in graph.weights.values():
        if id(array) not in kept:  # read to be joined
            let_go(array)
    return found


def _adapters(graph: Graph, names: Sequence[str] | None) -> tuple[Adapter, ...]:
    """Those of the folder; what reads them knows all families, so it is not imported for none."""
    if names is not None and not names:
        return ()
    from export.adapters.folder import folder_adapters

    return folder_adapters(graph, names)


def _runner(
    graph: Graph,
    activations: str,
    threads: int | None,
    processors: Sequence[int],
    adapters: Sequence[Adapter] = (),
    cache_bits: int = 16,
    bits: int | None = None,
) -> tuple[Runner, str]:
    sites: tuple[Site, ...] = ()
    if adapters:
        from export.adapters.folder import adapted_graph

        graph, sites = adapted_graph(graph, adapters)
    if activations == "float32":
        return _interpreter(graph, adapters, sites), "float32 activations were asked for"
    from runtime_py.engine.engine import Engine
    from runtime_py.engine.records.errors import Unplannable
    from runtime_py.engine.records.stored_matrix import runs_directly
    from runtime_py.engine.terms import Terms

    try:
        expanded = expand_products(graph, keep=runs_directly)
        return Engine(expanded, threads, processors, Terms(adapters, sites), cache_bits, bits), ""
    except Unplannable as error:
        if cache_bits != 16:
            raise InputError(f"--cache-bits {cache_bits} cannot be had: {error}") from None
        return _interpreter(graph, adapters, sites), f"not planned: {error}"


def _interpreter(graph: Graph, adapters: Sequence[Adapter], sites: Sequence[Site]) -> Runner:
    from runtime_py.reference.adapters import ReferenceTerms
    from runtime_py.reference.session import Session

    return Session(graph, ReferenceTerms(adapters, sites))


def _scheduled(
    graphs: Mapping[int, Graph], schedule: Schedule, threads: int | None, processors: Sequence[int], cache_bits: int
) -> tuple[Runner, str]:
    from runtime_py.engine.engine import Engine
    from runtime_py.widths.runner import Scheduled

    engines = {}
    for width, graph in graphs.items():
        runner, why = _runner(graph, "int8", threads, processors, (), cache_bits)
        if not isinstance(runner, Engine):
            raise InputError(f"--schedule needs the compiled engine, which does not run this model here: {why}")
        engines[width] = runner
    return Scheduled(engines, schedule), ""


def _hints(folder: Path) -> dict[str, Any]:
    """What `lower` wrote for this kind of machine: threads (at most those there are) and mmap; {} without any."""
    try:
        found = read_json(folder / MANIFEST).get("lowering", {}).get("runtime", {})
        threads, mapped = found.get("threads"), found.get("mmap")
    except (InputError, AttributeError):
        return {}
    hints: dict[str, Any] = {"mmap": mapped} if isinstance(mapped, bool) else {}
    if type(threads) is int and threads > 0:
        hints["threads"] = min(threads, os.cpu_count() or 1)
    return hints


def _stays_mapped(asked: bool | None, hint: bool | None, weights: int) -> bool:
    """Whether weights of so many bytes should stay in the mapped file, by the user's option and the folder's hint.

    Without either: where there are no huge pages, or they would fill half of what is free. Raises InputError when the
    user asks for more memory than there is; the folder's hint does not count then.
    """
    free = free_memory()
    fits = free is None or weights <= free
    if asked is not None:
        if not asked and not fits:
            raise InputError(f"--no-mmap: the weights have {weights / 1e9:.1f} GB, {(free or 0) / 1e9:.1f} GB are free")
        return asked
    if hint is not None:
        return hint or not fits
    try:
        huge = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except (OSError, ValueError):
        return True
    return "[never]" in huge or free is None or 2 * weights > free
