"""Loops of a function, and the shortest way round each: what runs where nothing out of the ordinary happens.

Kernels test for rare things (high digits of a block, a tail) and jump over them, so the shortest way is the usual one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.arm.cycles.assembly import Function


@dataclass(frozen=True)
class Loop:
    """header: label of the block that is entered; blocks: labels of all."""

    header: str
    blocks: frozenset[str]


def loops(function: Function) -> list[Loop]:
    """Natural loops (Aho, Sethi, Ullman, section 10.4), those with one header as one."""
    order = _reached(function)
    over = _dominators(function, order)
    before: dict[str, list[str]] = {label: [] for label in order}
    for label in order:
        for after in function[label].next:
            before[after].append(label)
    found: dict[str, set[str]] = {}
    for label in order:
        for header in function[label].next:
            if header in over[label]:
                body = found.setdefault(header, {header})
                waiting = [label]
                while waiting:
                    block = waiting.pop()
                    if block not in body:
                        body.add(block)
                        waiting += before[block]
    return [Loop(header, frozenset(body)) for header, body in found.items()]


def _reached(function: Function) -> list[str]:
    """Labels of what the entry leads to, each behind one of those before it."""
    seen, waiting = {next(iter(function)): None}, [next(iter(function))]
    while waiting:
        for after in function[waiting.pop()].next:
            if after not in seen:
                seen[after] = None
                waiting.append(after)
    return list(seen)


def _dominators(function: Function, order: list[str]) -> dict[str, set[str]]:
    over = {label: set(order) for label in order}
    over[order[0]] = {order[0]}
    before: dict[str, list[str]] = {label: [] for label in order}
    for label in order:
        for after in function[label].next:
            before[after].append(label)
    changed = True
    while changed:
        changed = False
        for label in order[1:]:
            new = set.intersection(*(over[b] for b in before[label])) | {label}
            if new != over[label]:
                over[label], changed = new, True
    return over


def way(
    function: Function, start: str, ends: Callable[[str], bool], within: Iterable[str], ready: bool = False
) -> list[str]:
    """Labels of the blocks from `start` to a block that ends it, that one not with it, by the fewest instructions.

    Only blocks `within` are passed. ready: whether `start` itself may be the end. Raises ValueError where there is no
    way.
    """
    allowed = set(within)
    if ready and ends(start):
        return []
    waiting, done = [(len(function[start].code), [start])], set[str]()
    while waiting:
        length, path = heapq.heappop(waiting)
        if path[-1] in done:
            continue
        done.add(path[-1])
        for after in function[path[-1]].next or [""]:
            if ends(after):
                return path
            if after in allowed and after not in done:
                heapq.heappush(waiting, (length + len(function[after].code), [*path, after]))
    raise ValueError(f"no way on from {start}")


def once_round(function: Function, loop: Loop) -> list[str]:
    """Instructions of the shortest way round."""
    return code(function, way(function, loop.header, loop.header.__eq__, loop.blocks))


def around(function: Function, inner: Loop, outer: Loop | None) -> tuple[list[str], list[str]]:
    """What an outer loop (None: the function, from its entry to its return) does before and behind an inner one."""
    blocks = outer.blocks if outer else frozenset(function)
    head = outer.header if outer else next(iter(function))
    before = way(function, head, inner.header.__eq__, blocks - inner.blocks, ready=True)
    # Out of the inner loop from any of its blocks, by the shortest way back.
    ways = []
    for block in inner.blocks:
        for after in function[block].next:
            if after in inner.blocks or after not in blocks:
                continue
            try:
                ways.append(
                    way(function, after, head.__eq__ if outer else "".__eq__, blocks - inner.blocks, bool(outer))
                )
            except ValueError:
                continue  # where it goes out, it does not come back
    if not ways:
        raise ValueError(f"no way back from {inner.header}")
    return code(function, before), code(function, min(ways, key=lambda labels: len(code(function, labels))))


def code(function: Function, labels: list[str]) -> list[str]:
    return [line for label in labels for line in function[label].code]
