"""One declaration per step: what the planner sets is what compiled code and the verifier read; no import goes round."""

from __future__ import annotations

import ast
import inspect
import random
from dataclasses import replace
from pathlib import Path

import numba as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime_py.engine
from runtime_py.engine.kernels.reading import reader
from runtime_py.engine.plan.handlers import handler_of
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.stored_matrix import StoredMatrix
from runtime_py.engine.steps.table import ARGUMENTS, KINDS, STEP, Head
from runtime_py.engine.walk import plan_decoder
from tests.fuzz.compose import Composer

RECORDS = (*KINDS, StoredMatrix, Head)
ROOT = Path(runtime_py.engine.__file__).parent


def example(kind, numbers) -> dict:
    """A value for every field."""
    return {name: float(n % 1000) / 8 if name in kind.reals() else n for name, n in zip(kind.names(), numbers)}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_constructor_takes_every_field_once_and_by_name(kind):
    values = example(kind, range(STEP))
    assert dict(kind(**values).items()) == values
    assert list(kind.names()) == [
        name for base in reversed(kind.__mro__) for name, stated in inspect.get_annotations(base).items()
        if not stated.startswith("ClassVar")
    ]  # fmt: skip
    for left in kind.names():
        rest = {name: value for name, value in values.items() if name != left}
        if not hasattr(kind, left):
            with pytest.raises(TypeError, match=left):
                kind(**rest)
        else:
            assert getattr(kind(**rest), left) == 0
    with pytest.raises(TypeError, match="nobody"):
        kind(**values, nobody=1)
    with pytest.raises(TypeError, match="positional"):
        kind(*values.values())


@pytest.mark.parametrize("kind", RECORDS)
def test_compiled_code_and_verifier_read_what_was_written(kind):
    skip = ARGUMENTS if kind in KINDS else 0
    read = reader(kind, skip)

    @nb.njit
    def values(address):
        return read(address)

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=STEP, max_size=STEP))
    def check(numbers):
        row, expected = np.zeros(STEP, np.int64), example(kind, numbers)
        kind(**expected).write(row[skip:], lambda place, value: value)
        assert values(row.ctypes.data)._asdict() == expected
        found = dict(kind.of(row[skip:].tolist()).items())
        bits = {name: int(np.float32(expected[name]).view(np.int32)) for name in kind.reals()}
        assert found == {**expected, **bits}
        assert not row[skip + len(expected) :].any()

    check()


@pytest.mark.parametrize("kind", RECORDS)
def test_a_float_where_an_integer_belongs_is_an_error(kind):
    whole = [name for name in kind.names() if name not in kind.reals()]
    for name in whole:
        with pytest.raises(ValueError, match=f"{kind.__name__}.{name} is an integer"):
            values = {**example(kind, range(STEP)), name: 1.0}
            kind(**values).write(np.zeros(STEP, np.int64), lambda place, value: value)


def imports() -> dict[str, set[str]]:
    """Modules of the engine, and which others of it each imports, wherever the import stands."""
    place = ROOT.parents[1]
    names = {
        ".".join(p.relative_to(place).with_suffix("").parts).removesuffix(".__init__"): p for p in ROOT.rglob("*.py")
    }
    found = {}
    for name, path in names.items():
        nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
        # The module itself, or where that is a package, the module in it.
        used = {m if (m := f"{n.module}.{alias.name}") in names else n.module for n in nodes for alias in n.names}
        found[name] = {module for module in used if module in names}
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """What is left when everything that imports nothing else is taken away, again and again."""
    left = {name: set(used) for name, used in edges.items()}
    while True:
        done = {name for name, used in left.items() if not used & set(left)}
        if not done:
            return sorted(left)
        left = {name: used for name, used in left.items() if name not in done}


def test_no_import_of_the_engine_goes_round():
    assert circle({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]
    modules = imports()
    assert len(modules) > 35 and circle(modules) == []
    room = {name: ".".join(name.split(".")[:3]) for name in modules}
    rooms = {room[name]: set() for name in modules}
    for name, used in modules.items():
        rooms[room[name]] |= {room[other] for other in used} - {room[name]}
    assert circle(rooms) == []


def test_what_proves_a_table_shares_nothing_with_what_made_it():
    modules, waiting, seen = imports(), ["runtime_py.engine.verify.verifier"], set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += modules[name]
    assert "runtime_py.engine.steps.products" in seen
    assert not [name for name in seen if ".plan" in name or ".loop" in name]


def test_two_handlers_of_one_operator_are_an_error():
    with pytest.raises(ValueError, match="two handlers of ::Add"):
        handles("", "Add")(lambda context, node: None)


def test_an_operator_counts_in_its_own_domain_only():
    for seed in range(20):
        graph = Composer(random.Random(seed)).graph()
        for i, node in enumerate(graph.nodes):
            assert (handler_of(replace(node, domain="ai.onnx")) is None) == (
                handler_of(node) is None or node.domain != ""
            )
            assert handler_of(replace(node, domain="com.example")) is None
            if node.op_type != "Add":
                continue
            nodes = (*graph.nodes[:i], replace(node, domain="com.example"), *graph.nodes[i + 1 :])
            with pytest.raises(Unplannable):
                plan_decoder(replace(graph, nodes=nodes), 32)
