"""Runs a graph by the engine and by the interpreter, and compares every value that the engine has in memory.

Two float32 implementations add up in another order. One difference in the last bit can bring a number to the other side
of a half, where int8 activations, razored codes or a float16 cache turn it into a whole step; a layer later the results
differ by percents, and a limit that lets this pass lets faults pass, too. So the interpreter follows: what a node makes
is compared with what the engine has in its memory for the same value, and then replaced by it. Each node is compared on
the very inputs that the engine had, integers and caches are equal to the bit, and what is left is the rounding of one
node. Under ATHENA_CHECK=1 every buffer has memory of its own, which still holds its value after the call.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from export.artefacts.graph import Graph, Node
from export.contract.errors import InputError, NotFiniteError
from export.contract.formats.codebook import CODEBOOK_MATMUL
from export.files.foreign import foreign
from runtime_py.engine import walk
from runtime_py.engine.engine import Engine
from runtime_py.engine.plan.context import Context, Value
from runtime_py.engine.plan.placement import Argument, Buffer
from runtime_py.engine.plan.values import Pending, Tokens
from runtime_py.engine.state import chunk_size
from runtime_py.engine.steps.attention import KvAppend, RazorKvAppend
from runtime_py.engine.steps.step import Step
from runtime_py.load import Runner, _runner
from runtime_py.reference.session import Session, State
from runtime_py.system.guard_pages import checking
from tests.fuzz.compose import through_a_file
from tests.runtime_py.engine import activation_reference

TOLERANCE = 1e-5  # of the largest number of a value: sums in float32, added in another order
_BIT, _NOISES = 2.0**-22, 8  # a sum that cancels is as far as some bits in its inputs move it
_CURVES, _ACTIVATION = ("Tanh", "Gelu", "Mul"), 4e-7  # what engine/elementwise.py says of them, near zero, and of gates


class Traced(Context):
    """A plan that notes which names stand for what its buffers hold after each step."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._held: dict[Buffer, list[tuple[int, str, Tokens]]] = {}  # steps before, name, value
        self._op_type = ""

    def enter(self, node: Node) -> None:
        self._op_type = node.op_type
        super().enter(node)

    def give(self, name: str, value: Value) -> None:
        super().give(name, value)
        if isinstance(value, Tokens):
            held, now = self._held.setdefault(value.buffer, []), len(self.steps)
            scales = self._op_type == "Mul" and value.buffer in self.unscaled
            if self._op_type == "Add" or scales:  # put into the last step: what that step made before is nowhere
                held[:] = [entry for entry in held if entry[0] < now]
            held.append((now, name, value))

    def emit(self, step: Step[Argument], reads: list[Buffer], writes: list[Buffer]) -> None:
        super().emit(step, reads, writes)
        if isinstance(step, KvAppend | RazorKvAppend) and step.half:
            for buffer in {b for b in reads + writes if b in self._held}:  # rotated where they lie
                turned = [(n, v) for _, n, v in self._held[buffer] if v.rotation is not None]
                self._held[buffer] += [(len(self.steps), name, replace(v, rotation=None)) for name, v in turned]

    def activate(self, pending: Pending, gated: Tokens | None) -> Tokens:
        made = super().activate(pending, gated)
        if made is pending.source:  # made where its input is made: that is nowhere
            held, now = self._held.get(made.buffer, []), len(self.steps)
            held[:] = [entry for entry in held if entry[0] < now]
        return made

    def views(self, base: int) -> dict[int, list[View]]:
        """What can be looked at after so many steps of the finished plan. base: where buffers in the arena begin."""
        found: dict[int, list[View]] = {}
        for buffer, names in self._held.items():
            if buffer.offset < 0:
                continue  # no step was left that needs it
            memory = np.frombuffer((ctypes.c_float * (buffer.size // 4)).from_address(base + buffer.offset), np.float32)
            for now, name, value in names:
                writer = next((s for s in reversed(self.steps[:now]) if buffer in s.writes), None)
                if writer is not None and value.rotation is None and (checking() or writer is self.steps[now - 1]):
                    rows = memory.reshape(-1, value.stride)
                    part = rows[:, value.column : value.column + value.width]
                    found.setdefault(now, []).append(View(name, part, writer.last))
        return found


@dataclass(frozen=True)
class View:
    """A named value in the engine's memory: float32 [chunk, width]."""

    name: str
    memory: np.ndarray
    last: bool  # made for the last token only, where only its logits are asked for


@dataclass
class Recorder:
    """Repeats each call of the engine step by step, and copies what the buffers hold in between."""

    engine: Engine
    planner: Traced
    views: dict[int, list[View]] = field(init=False)
    calls: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # values by name, by the tokens before

    def __post_init__(self) -> None:
        program = self.engine._program
        views = self.views = self.planner.views(0 if checking() else program.table.memory[0].ctypes.data)
        run, table = program.run, program.table.steps

        def recorded(tokens: int, past: int, last_only: bool) -> None:
            run(tokens, past, last_only)
            values: dict[str, np.ndarray] = {}
            for number in range(len(table) + 1):
                for view in views.get(number, ()):
                    values[view.name] = view.memory[: 1 if view.last and last_only else tokens].copy()
                if number < len(table):
                    program.run_step(number, tokens, past, last_only)
            self.calls[past] = values

        program.run = recorded  # type: ignore[method-assign]


class Follower(Session):
    """The interpreter with int8 activations and a float16 cache, on the engine's own values."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.engine_values: dict[str, np.ndarray] = {}
        self.compared = 0  # values that were
        self._state = self.new_state()

    def forward(self, state: State, tokens: Any, last_only: bool = False) -> np.ndarray:
        self._state = state
        return super().forward(state, tokens, last_only)

    def _take_over(self, node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
        if node.op_type == CODEBOOK_MATMUL and node.layout().groups == 1:
            inputs[0] = rounded(inputs[0])
        outputs = list(self._outputs(node, inputs))
        for i, name in enumerate(node.outputs):
            found = self.engine_values.get(name)
            if found is not None:
                outputs[i] = self._compared(node, inputs, i, outputs[i], found)
        return tuple(outputs)

    def _outputs(self, node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
        return self._interpreter._run_checked(node, inputs, lambda n, given: self._attend(n, given, self._state))

    def _compared(self, node: Node, inputs: list[Any], output: int, made: np.ndarray, found: np.ndarray) -> np.ndarray:
        """The value as the engine has it. Raises AssertionError where it is another one."""
        rows = made.reshape(made.shape[1], -1)[-len(found) :]
        if np.isfinite(rows).all() and not close(found, rows, TOLERANCE):
            worst, noise = np.abs(found - rows).max(), self._noise(node, inputs, output, made)
            exact = (
                _ACTIVATION * max([1, *(np.abs(i).max(initial=0) for i in inputs)]) if node.op_type in _CURVES else 0
            )
            allowed = max(_NOISES * noise, exact)
            assert worst <= allowed, f"{node.op_type} {node.name}: {worst:.3g} apart, {allowed:.3g} is its rounding"
        self.compared += 1
        value = made.copy()
        value.reshape(made.shape[1], -1)[-len(found) :] = found
        return value

    def _noise(self, node: Node, inputs: list[Any], output: int, made: np.ndarray) -> float:
        """How far the output moves when the last bits of the inputs do."""
        numbers, worst = np.random.default_rng(0), 0.0
        for _ in range(8):
            moved = [
                i * (1 + numbers.choice((-_BIT, _BIT), i.shape)).astype(np.float32)
                if isinstance(i, np.ndarray) and i.dtype == np.float32
                else i
                for i in inputs
            ]
            worst = max(worst, float(np.abs(self._outputs(node, moved)[output] - made).max()))
        self._outputs(node, inputs)  # a cache holds what it held
        return worst

    def _attend(self, node: Node, inputs: list[Any], state: State) -> np.ndarray:
        if node.op_type == "Attention":
            inputs = list(inputs)
            for i in (1, 2):
                if inputs[i] is not None:
                    with np.errstate(over="ignore"):
                        half = inputs[i].astype(np.float16).astype(np.float32)
                    inputs[i] = np.where(np.abs(inputs[i]) > 65504, inputs[i], half)
        return super()._attend(node, inputs, state)


def rounded(x: np.ndarray) -> np.ndarray:
    """x as the engine's integers with a scale for each token and 256 columns, to the bit."""
    codes, scales = activation_reference.rounded(x.reshape(-1, x.shape[-1]))
    return (codes * np.repeat(scales, 256, axis=1)[:, : x.shape[-1]]).reshape(x.shape)


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> bool:
    """Whether no number is further away than this part of the largest one."""
    return bool(np.abs(ours - theirs).max(initial=0) <= tolerance * max(np.abs(theirs).max(initial=0), 1e-30))


_CALLS = (
    ((1, True), (1, True)), ((5, True), (1, True), (3, False)), ((17, False), (2, True)), ((33, True), (1, False)),
    ((2, False), (16, True)), ((300, True), (1, True)),
)  # fmt: skip


def opened(graph: Graph) -> tuple[Runner, str, Recorder | None]:
    """What load.py opens, why it is the interpreter, and the recorder of an engine. Raises InputError."""
    planners: list[Traced] = []

    def plan(*arguments: Any, **named: Any) -> Traced:
        planners.append(Traced(*arguments, **named))
        return planners[-1]

    with mock.patch.object(walk, "Context", plan), foreign(Path("model.onnx"), "the graph is malformed"):
        runner, why = _runner(graph, "int8", 1, ())
    return runner, why, Recorder(runner, planners[-1]) if isinstance(runner, Engine) else None


def follow(
    follower: Follower, recorder: Recorder, state: State, ids: list[int], last_only: bool, ours: Any
) -> np.ndarray:
    """The interpreter's logits, chunk by chunk as the engine has computed them. ours: those of the engine, or none."""
    logits, start = [], 0
    while start < len(ids):
        part = ids[start : start + chunk_size(len(ids) - start)]
        follower.engine_values = dict(recorder.calls.get(state.length, {}))
        ends = start + len(part) == len(ids)
        if isinstance(ours, np.ndarray) and (ends or not last_only):
            follower.engine_values["logits"] = ours if last_only else ours[start : start + len(part)]
        logits.append(follower.forward(state, part, last_only))
        start += len(part)
    return logits[-1] if last_only else np.concatenate(logits)


@dataclass
class Outcome:
    """What became of a graph, why it was not compiled, and which kinds of things were in it."""

    result: str
    why: str = ""
    kinds: set[str] = field(default_factory=set)
    compared: int = 0


def attempt(run: Callable[[], np.ndarray]) -> np.ndarray | str:
    """The result, or how it was refused."""
    try:
        return run()
    except NotFiniteError:
        return "not finite"
    except InputError as error:
        assert one_line(error)
        return "refused"


def one_line(error: Exception) -> bool:
    return str(error).isprintable()


def without_names(message: str) -> str:
    """A reason without the words that are only this graph's."""
    return " ".join(word for word in message.split() if word.replace("-", "").rstrip(":,;").isalpha())[:80]


def kinds_of(planned: Context) -> set[str]:
    """Steps with what is fused into them, and the kinds of widths."""
    kinds = set()
    for step in planned.steps:
        name, a = type(step.step).__name__, vars(step.step)
        kinds |= {name} | {f"{name} with {field}" for field in ("bias", "accumulate", "quant") if a.get(field)}
        columns, stride = a.get("columns"), a.get("stride")
        if isinstance(columns, int) and isinstance(stride, int):
            kinds |= {f"width {name_of(columns, (1, 15, 64, 256))}", f"width {multiple(columns)}"}
            kinds |= {f"{name} of a part"} if stride > columns else set()
        kinds |= {f"{name} for the last token"} if step.last else set()
        kinds |= {f"cache window {'some' if a['window'] else 'none'}"} if "window" in a else set()
    return kinds


def name_of(number: int, limits: Sequence[int]) -> str:
    """Between which limits a number lies."""
    low = max((limit + 1 for limit in limits if number > limit), default=0)
    high = min((limit for limit in limits if number <= limit), default=None)
    return f"{low} or more" if high is None else str(high) if low in (high, 0) else f"{low} to {high}"


def multiple(width: int) -> str:
    return next((f"a multiple of {n}" for n in (64, 16, 8, 2) if width % n == 0), "odd")


def agree(graph: Graph, random_: random.Random, folder: Path | None = None) -> Outcome:
    """Run it both ways. Raises AssertionError on different results, and on errors of several lines.

    folder: the graph is written there, and read as the product reads it.
    """
    try:
        graph = graph if folder is None else through_a_file(graph, folder)
        runner, why, recorder = opened(graph)
        follower = Follower(graph)
    except InputError as error:
        assert one_line(error)
        return Outcome("refused when opened", without_names(str(error)))
    vocabulary = follower.vocab_size
    if recorder is None:
        found = attempt(lambda: runner.forward(runner.new_state(), [0, random_.randrange(min(vocabulary, 50))]))
        return Outcome(f"interpreted: {found if isinstance(found, str) else 'a result'}", without_names(why))
    states, known = (runner.new_state(), follower.new_state()), min(vocabulary, recorder.engine._lookup_rows)
    outcome = Outcome("compiled: equal", kinds=kinds_of(recorder.planner))
    for number, (tokens, last_only) in enumerate(random_.choice(_CALLS)):
        bound = min(vocabulary, 50) if random_.random() < 0.03 else min(known, 3 if random_.random() < 0.3 else known)
        ids = [random_.randrange(bound) for _ in range(tokens)]
        recorder.calls.clear()
        ours = attempt(partial(runner.forward, states[0], ids, last_only))
        theirs = attempt(partial(follow, follower, recorder, states[1], ids, last_only, ours))
        if isinstance(ours, str) or isinstance(theirs, str):
            names = [side if isinstance(side, str) else "a result" for side in (ours, theirs)]
            assert names[0] == names[1], f"engine: {names[0]}, interpreter: {names[1]}"
            outcome.result = outcome.result if number else f"compiled: {ours} on both sides"
            break
        assert ours.shape == theirs.shape == (1 if last_only else tokens, vocabulary), (ours.shape, theirs.shape)
        outcome.kinds |= {f"call of {name_of(tokens, (1, 16, 32, 256))} tokens", "last only" if last_only else "all"}
        assert np.array_equal(ours, theirs)  # the last of the values that were compared
    outcome.compared = follower.compared
    return outcome
