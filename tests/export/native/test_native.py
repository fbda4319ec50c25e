"""The native library in stock onnxruntime against references, the engine's kernels and the function bodies."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN, IR_VERSION, OPSET
from export.contract.formats.codebook import (
    CODEBOOK_GATHER,
    CODEBOOK_MATMUL,
    CodebookLayout,
    codebook_gather,
    codebook_matmul,
)
from export.native import build
from runtime_py.machine.isa import available
from tests.runtime_py.engine.activation_reference import values, with_outliers
from tests.runtime_py.engine.test_products import AMX, LAYOUTS, product, random_parts
from tests.runtime_py.reference.test_session import OnnxRuntime

BEST = available()[0]


def wrong_bodies() -> list[onnx.FunctionProto]:
    """The operators' functions with a body that only makes zeros of the right shape."""
    bodies = []
    for body in CodebookLayout.function_bodies():
        fresh = onnx.FunctionProto()
        fresh.CopyFrom(body)
        del fresh.node[:]
        nodes = onnx.parser.parse_graph(
            "g (float[n] A) => (float[n] Y) {"
            "  kept = Shape <start = 0, end = -1> (A)"
            "  wide = Constant <value_ints = [1]> ()"
            "  shape = Concat <axis = 0> (kept, wide)"
            "  Y = ConstantOfShape (shape)"
            "}"
        ).node
        for node in nodes:
            node.input[:] = [body.input[0] if name == "A" else name for name in node.input]
        fresh.node.extend(nodes)
        bodies.append(fresh)
    return bodies


def one_node(layout, parts, gather=False, bodies=None, **attributes) -> bytes:
    """A model of one operator with constant weights."""
    names = ("codes", "codebook", "scale")
    weights = [onnx.numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in zip(names, parts)]
    kind, op = (TensorProto.INT64, CODEBOOK_GATHER) if gather else (TensorProto.FLOAT, CODEBOOK_MATMUL)
    shape = ["tokens"] if gather else ["tokens", None]
    node = helper.make_node(op, ["x", *names], ["y"], domain=DOMAIN, **{**layout.attributes(), **attributes})
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], weights,
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=list(CodebookLayout.function_bodies()) if bodies is None else bodies,
    )  # fmt: skip
    model.ir_version = IR_VERSION
    return model.SerializeToString()


def session(model: bytes | str, library: str | None, activations: str | None = None, threads: int = 2):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if activations:
        options.add_session_config_entry("ai.athena.activations", activations)
    if library:
        options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: bytes, x: np.ndarray, library: str | None, activations: str | None = None) -> np.ndarray:
    return session(model, library, activations).run(["y"], {"x": x})[0]


@pytest.mark.parametrize("isa", [*available(), *(["amx"] if AMX else [])])
@settings(max_examples=25)
@given(LAYOUTS, st.integers(1, 40), st.booleans(), st.integers(0, 2**31))
@example(CodebookLayout(4, 7, 1), 1, False, 0)  # one row, less than one vector
@example(CodebookLayout(3, 64, 33), 33, True, 1)  # one row more than a tile, one token more than two groups
@example(CodebookLayout(8, 512, 31), 3, True, 2)
@example(CodebookLayout(3, 2048, 150), 1, False, 3)  # more rows than one work item
def test_product(native_library, isa, layout, tokens, raw, seed):
    """Quantized activations: the plain reference on every instruction set; the engine's bits on the best one."""
    rng = np.random.default_rng(seed)
    codes, book, scale = random_parts(layout, rng)
    if raw and layout.bits == 8:
        book[:] = np.arange(-128, 128)  # the width without lookup
    half = scale.astype(np.float16)
    parts = (codes, book, half.astype(np.float32))
    x = (rng.standard_normal((tokens, layout.K)) * np.exp(rng.standard_normal((tokens, 1)))).astype(np.float32)
    x = with_outliers(x, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATHENA_ISA", isa)
        found = run(one_node(layout, (codes, book, half)), x, native_library)
    given = values(x)
    weights = layout.dequantized(*parts).astype(np.float64)
    # Integers are exact; what remains are float32 roundings of one sum per block and of the scale.
    assert np.all(np.abs(found - given @ weights.T) <= 1e-6 * (np.abs(given) @ np.abs(weights).T + 1))
    if isa in (BEST, "amx") and isa != "portable":  # the C fallback has no fused multiply-add
        np.testing.assert_array_equal(found, product(BEST, False, layout, parts, x))


GROUPED = st.builds(
    CodebookLayout,
    bits=st.integers(1, 8),
    K=st.integers(1, 600),
    N=st.integers(1, 50),
    group_size=st.integers(0, 300),
    rows_per_codebook=st.integers(1, 5),
    rows_per_scale=st.integers(1, 5),
)


@settings(max_examples=60)
@given(GROUPED, st.integers(1, 20), st.booleans(), st.integers(0, 2**31))
def test_float_product_and_gather(native_library, layout, tokens, half, seed):
    rng = np.random.default_rng(seed)
    parts = random_parts(layout, rng)
    if half:  # subnormals, zero and large numbers, both signs
        size = rng.uniform(-26, 15, parts[2].shape)
        parts = (*parts[:2], (np.exp2(size) * rng.choice([-1, 1], size.shape)).astype(np.float16))
    x = rng.standard_normal((tokens, layout.K)).astype(np.float32)
    found = run(one_node(layout, parts), x, native_library, "float32")
    weights = layout.dequantized(*parts)
    bound = np.abs(x).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    # float32 sums in another order: at most K roundings of 6e-8 of the magnitude, in practice far fewer.
    assert np.all(np.abs(found - codebook_matmul(x, layout, *parts)) <= 2e-6 * bound + 1e-30)
    ids = rng.integers(0, layout.N, tokens)
    rows = run(one_node(layout, parts, gather=True), ids, native_library)
    np.testing.assert_array_equal(rows, codebook_gather(ids, layout, *parts))


def test_registered_kernels_win_over_the_function_bodies(native_library):
    rng = np.random.default_rng(0)
    layout = CodebookLayout(4, 300, 20)
    parts = random_parts(layout, rng)
    x, ids = rng.standard_normal((3, 300)).astype(np.float32), np.array([7, 0, 19])
    model = one_node(layout, parts, bodies=wrong_bodies())
    assert not run(model, x, None).any()  # the body that the file carries makes zeros
    np.testing.assert_allclose(run(model, x, native_library, "float32"), codebook_matmul(x, layout, *parts), atol=1e-2)
    table = one_node(layout, parts, gather=True, bodies=wrong_bodies())
    np.testing.assert_array_equal(run(table, ids, native_library), codebook_gather(ids, layout, *parts))


def test_activations_of_every_shape_and_undefined_ones(native_library):
    rng = np.random.default_rng(1)
    layout = CodebookLayout(3, 320, 40)
    parts = random_parts(layout, rng)
    model = onnx.load_from_string(one_node(layout, parts))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    model = model.SerializeToString()
    x = rng.standard_normal((2, 3, 320)).astype(np.float32)
    flat = run(model, x.reshape(6, 320), native_library)
    np.testing.assert_array_equal(run(model, x, native_library), flat.reshape(2, 3, 40))
    assert run(model, x[:, :0], native_library).shape == (2, 0, 40) and run(model, x[0, 0], native_library).shape == (
        40,
    )
    for value in (np.nan, np.inf, -np.inf):
        bad = x.reshape(6, 320).copy()
        bad[2, 300] = value
        found = run(model, bad, native_library)
        assert np.isnan(found[2]).all() and np.isfinite(np.delete(found, 2, 0)).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"K": 321}, "codes do not have the shape"),
        ({"bits": 4}, "codes do not have the shape"),
        ({"bits": 9}, "attribute bits is out of range"),
        ({"N": 0}, "attribute N is out of range"),
        ({"group_size": -1}, "attribute group_size is out of range"),
        ({"rows_per_codebook": 20}, "codebook does not have the shape"),
        ({"rows_per_scale": 0}, "attribute rows_per_scale is out of range"),
        ({"rows_per_scale": 7}, "scale does not have"),
        ({"group_size": 160}, "codebook does not have the shape"),
    ],
)
@pytest.mark.parametrize("gather", [False, True])
def test_sizes_that_kernels_would_trust_are_checked(native_library, change, message, gather):
    layout = CodebookLayout(3, 320, 40)
    parts = random_parts(layout, np.random.default_rng(2))
    with pytest.raises(Exception, match=message):
        session(one_node(layout, parts, gather, **change), native_library)


def test_wrong_inputs_end_in_one_line(native_library):
    layout = CodebookLayout(3, 320, 40)
    parts = random_parts(layout, np.random.default_rng(3))
    with pytest.raises(Exception, match="the last dimension of X is not K"):
        run(one_node(layout, parts), np.zeros((2, 319), np.float32), native_library)
    for ids in ([40], [0, -1], [2**62]):
        with pytest.raises(Exception, match="an id is outside the rows"):
            run(one_node(layout, parts, gather=True), np.array(ids), native_library)
    with pytest.raises(Exception, match="must be int8 or float32"):
        session(one_node(layout, parts), native_library, "float16")


@pytest.mark.parametrize("name", ["demo_folder", "wide_folder"])
def test_real_models(native_library, name, request):
    """float32 activations: the function bodies' logits; int8 ones: as near as the engine's, which rounds alike."""
    folder = request.getfixturevalue(name)
    ids, ones, places = np.arange(3, 43)[None], np.ones((1, 40), np.int64), np.arange(40)[None]
    stock = OnnxRuntime(folder)
    expected = stock.run(ids, ones, places, stock.empty())[0]
    found = {}
    for activations in ("float32", "int8"):
        stock.session = session(str(folder / "model.onnx"), native_library, activations)
        found[activations] = stock.run(ids, ones, places, stock.empty())[0]
    # 2e-5 of the largest logit: float32 sums in another order.
    assert np.abs(found["float32"] - expected).max() <= 2e-5 * np.abs(expected).max()
    error = np.sqrt(np.mean((found["int8"] - expected) ** 2))
    assert 0 < error < 0.05 * expected.std()


def test_a_folder_for_genai_names_its_library(native_library, demo_folder, tmp_path):
    done = cli("lower", demo_folder, "--target", "native", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    options = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    name = options["custom_ops_library"]
    assert (tmp_path / "out" / name).is_file() and told["library"] == {"file": name, "operators": 58}
    assert told["attention_nodes"] == 4


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "toolchain", *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("machine", build.MACHINES)
def test_libraries_for_every_machine(native_library, machine, tmp_path):
    done = cli("native", "-o", tmp_path, "--machine", machine)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / build.library_name(machine)).read_bytes()
    assert made[:4] == b"\x7fELF" and b"RegisterCustomOps" in made
    assert int.from_bytes(made[18:20], "little") == {"x86_64": 62, "aarch64": 183}[machine]
    assert [path.name for path in tmp_path.iterdir()] == [build.library_name(machine)]


def test_what_is_refused(demo_folder, tmp_path, monkeypatch):
    for arguments, message in [
        (("native", "-o", tmp_path / "a", "--machine", "z80"), "--machine 'z80' is unknown"),
        (("lower", demo_folder, "--target", "genai", "--machine", "aarch64", "-o", tmp_path / "b"), "no meaning"),
    ]:
        done = cli(*arguments)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="athena-export\\[native\\]"):
        build.build_library("x86_64", tmp_path / "x.so")


def test_a_compiler_error_is_one_line(native_library, tmp_path: Path, monkeypatch):
    (tmp_path / "sources").mkdir()
    for name in ("operators.c", "dispatch.c", "kernels.c"):
        (tmp_path / "sources" / name).write_text("int broken(void) { return }\n")
    monkeypatch.setattr(build, "_SOURCES", tmp_path / "sources")
    with pytest.raises(InputError, match="the compiler failed: .*error"):
        build.build_library("x86_64", tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()
