"""Lowered folders compute what the portable ones do: GroupQueryAttention, MatMulNBits, hints; refusals and kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from export.contract.formats.codebook import CodebookLayout
from export.contract.packing import pack
from export.lowering.folder import Lowering, write_lowered_folder
from export.lowering.matmul_nbits import Encoded, NBits, _Encoding, _even
from runtime_py.load import open_model
from targets.lowering import names, open_lowering
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import FloatCheckpoint, tiny_model
from tests.runtime_py.reference.test_session import OnnxRuntime
from tests.toolchain.pipeline.test_faults import contents
from toolchain.settings.razor import RazorSettings

FLOAT = NBits(accuracy_level=1)  # float32 activations: differences are those of summation order


def lowered(folder, out, **more):
    out.mkdir()
    settings = {"name": "test", "passes": ("group_query_attention", "matmul_nbits"), "nbits": FLOAT, **more}
    return write_lowered_folder(folder, out, Lowering(**settings))


def same_logits(a, b, vocabulary, tolerance):
    """Prefill, decode with the cache, and a batch padded on the right."""
    first, second = OnnxRuntime(a), OnnxRuntime(b)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocabulary, (1, 20))
    found = []
    for model in (first, second):
        prefill, past = model.run(ids[:, :17], np.ones((1, 17), np.int64), np.arange(17)[None], model.empty())
        decode, _ = model.run(ids[:, 17:18], np.ones((1, 18), np.int64), np.array([[17]]), past)
        batch, mask = rng.integers(0, vocabulary, (2, 9)) * 0 + ids[:, :9], np.ones((2, 9), np.int64)
        mask[1, 6:] = 0
        padded, _ = model.run(batch, mask, np.arange(9)[None].repeat(2, 0), model.empty(2))
        found.append(np.concatenate([prefill[0], decode[0], padded[0], padded[1, :6]]))
    scale = np.abs(found[0]).max()
    assert np.abs(found[0] - found[1]).max() < tolerance * scale


@pytest.mark.parametrize("variant", ["llama", "mistral", "gemma2", "gemma3_text", "phi3 longrope", "gpt_neox", "opt"])
def test_attention_of_every_kind(variant, tmp_path):
    """Windows, soft caps, two rotations, partial rotation, none: float weights, so only attention changes."""
    tiny_model(variant, tmp_path / "source")
    (tmp_path / "float").mkdir()
    from export.model_folder import write_model_folder

    write_model_folder(FloatCheckpoint(tmp_path / "source"), tmp_path / "float")
    done = lowered(tmp_path / "float", tmp_path / "out", passes=("group_query_attention",))
    assert done["attention_nodes"] == 2
    same_logits(tmp_path / "float", tmp_path / "out", 96, 2e-5)
    operators = {
        n.op_type for n in onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False).graph.node
    }
    assert "GroupQueryAttention" in operators and not operators & {"Attention", "LessOrEqual", "And"}


def test_real_model_exactly_in_eight_bits(demo_folder, tmp_path):
    done = lowered(demo_folder, tmp_path / "out")
    assert {(m["bits"], m["exact"], m["error"]) for m in done["matrices"]} == {(8, True, 0.0)}
    same_logits(demo_folder, tmp_path / "out", 1536, 2e-5)
    kept = json.loads((tmp_path / "out" / "athena.json").read_text())
    assert kept["lowering"]["target"] == "test" and kept["fingerprint"]


def test_a_razored_cache_is_not_shared(demo_model, demo_text, tmp_path):
    """onnxruntime-genai may keep past and present in one buffer only where GroupQueryAttention writes it."""
    checkpoint = _checkpoint(
        demo_model, str(demo_text), "0:0.1", tmp_path / "q", method="qrazor", bits=4,
        razor=RazorSettings(activation_bits=8, kv=8, kv_unit="head"),
    )  # fmt: skip
    folder = _package(checkpoint, tmp_path / "model")
    done = lowered(folder, tmp_path / "out", share_cache=True)
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert done["attention_nodes"] == 0 and config["search"]["past_present_share_buffer"] is False
    same_logits(folder, tmp_path / "out", 1536, 2e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_even_codebooks_become_four_bits_exactly(bits, demo_model, demo_text, tmp_path):
    checkpoint = _checkpoint(demo_model, str(demo_text), "0:0.1", tmp_path / "q", method="rtn", bits=bits)
    folder = _package(checkpoint, tmp_path / "model")
    done = lowered(folder, tmp_path / "out")
    kinds = {m["bits"] for m in done["matrices"] if "lm_head" not in m["name"]}
    assert kinds <= {4, 8} and all(m["exact"] for m in done["matrices"])
    same_logits(folder, tmp_path / "out", 1536, 2e-5)


def test_encoding_again_says_how_far_off(demo_folder, tmp_path):
    done = lowered(demo_folder, tmp_path / "out", nbits=NBits(accuracy_level=1, reencode=True))
    errors = [m["error"] for m in done["matrices"]]
    assert all(0.01 < e < 0.15 for e in errors) and {m["bits"] for m in done["matrices"]} == {4}
    reference, found = OnnxRuntime(demo_folder), OnnxRuntime(tmp_path / "out")
    ids, ones, places = np.arange(3, 23)[None], np.ones((1, 20), np.int64), np.arange(20)[None]
    a, b = (m.run(ids, ones, places, m.empty())[0] for m in (reference, found))
    assert 0 < np.sqrt(np.mean((a - b) ** 2)) < 0.5 * a.std()


def unpacked(packed, scales, zero_points, bits, columns):
    """Reference of MatMulNBits' weights: (q - zero point) * scale, low bits first."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1)
    values = (packed.astype(np.float64) - zero_points[..., None]) * scales[..., None].astype(np.float64)
    return values.reshape(len(packed), -1)[:, :columns]


@settings(max_examples=60)
@given(
    st.integers(1, 8), st.integers(1, 70), st.integers(1, 9), st.sampled_from([0, 16, 32]), st.integers(1, 4),
    st.booleans(), st.sampled_from([16, 32, 128]), st.integers(0, 2**31),
)  # fmt: skip
def test_encoded_weights_are_the_codebook_weights(bits, columns, rows, group, shared, even, block, seed):
    layout = CodebookLayout(bits, columns, rows, group, shared, shared)
    rng = np.random.default_rng(seed)
    codes = pack(rng.integers(0, 1 << bits, (rows, columns)), bits)
    book = rng.integers(-128, 128, layout.codebook_shape).astype(np.int8)
    if even:  # falling levels and zero points at either end, too
        step, zero = int(rng.choice([-1, 1])), int(rng.integers(0, min(1 << bits, 16)))
        step *= int(rng.integers(1, max(127 >> bits, 1) + 1))
        book[:] = np.clip(step * (np.arange(1 << bits) - zero), -128, 127)
    scale = rng.random(layout.scale_shape).astype(np.float16)
    found = _even(book) if bits <= 4 else None
    assert found is not None or not even or bits > 4
    block = min(block, group or block)
    width = 8 if found is None else 4
    work = _Encoding(layout, codes, book, scale, found, width, block, Encoded("", width, True))
    points = np.full(work.scales().shape, 128.0)
    if found is not None:
        halves = work.zero_points()
        points = np.stack([halves & 15, halves >> 4], -1).reshape(len(halves), -1)[:, : points.shape[1]].astype(float)
    weights = unpacked(work.packed(), work.scales(), points, width, columns)
    expected = layout.dequantized(codes, book, scale)
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "toolchain", "lower", *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.parametrize("target", names())
def test_every_target_on_the_command_line(target, demo_folder, tmp_path):
    done = run(demo_folder, "--target", target, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["target"] == target and not list(tmp_path.glob(".*"))
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] == (target in ("genai", "native"))
    if not told["passes"]:  # the same graph: our runtime takes the hints
        engine, why = open_model(tmp_path / "out")
        assert why == "" and engine.threads == min(told["runtime"].get("threads", 64), os.cpu_count() or 1)
        for name in ("model.onnx", "model.onnx.data"):
            assert (tmp_path / "out" / name).read_bytes() == (demo_folder / name).read_bytes()


def test_what_is_refused(demo_folder, tmp_path):
    (tmp_path / "odd.toml").write_text('summary = "x"\npasses = ["fuse"]\n')
    (tmp_path / "wrong.toml").write_text('summary = "x"\nspeed = 3\n')
    assert run(demo_folder, "--target", "genai", "-o", tmp_path / "once").returncode == 0
    for arguments, message in (
        ((demo_folder, "--target", "gpu"), "'gpu' is unknown; there are genai, laptop, native, onnxruntime"),
        ((demo_folder, "--target", tmp_path / "odd.toml"), "pass 'fuse' is unknown; there are group_query"),
        ((demo_folder, "--target", tmp_path / "wrong.toml"), "speed is unknown; known are summary"),
        ((demo_folder, "--target", "rpi5", "--reencode"), "--reencode has no meaning for --target rpi5"),
        ((tmp_path / "once", "--target", "onnxruntime"), "was lowered to 'genai'; lower the original folder"),
        ((tmp_path / "none", "--target", "genai"), "this file is missing"),
    ):
        failed = run(*arguments, "-o", tmp_path / "out")
        assert failed.returncode == 2 and message in failed.stderr, failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    with pytest.raises(InputError, match="block_size must be a power of two"):
        NBits(block_size=24)
    with pytest.raises(ValueError, match="is unknown"):
        open_lowering("nothing")
    from runtime_py.text.generator import TextGenerator

    with pytest.raises(InputError, match="com.microsoft::"):
        TextGenerator(tmp_path / "once")


@pytest.mark.long
def test_killed_while_lowering(wide_folder, tmp_path):
    """kill -9 at 50 random moments: either no folder or a whole one; the next run gives the same bytes."""
    assert run(wide_folder, "--target", "genai", "-o", tmp_path / "whole").returncode == 0
    expected, random_, out, completed = contents(tmp_path / "whole"), random.Random(3), tmp_path / "out", 0
    start = time.perf_counter()
    run(wide_folder, "--target", "genai", "-o", out, "--force")
    length = time.perf_counter() - start
    subprocess.run(["rm", "-rf", str(out)], check=True)
    for _ in range(50):
        process = subprocess.Popen(
            [sys.executable, "-m", "toolchain", "lower", str(wide_folder), "--target", "genai", "-o", str(out),
             "--force"], stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(random_.uniform(0.3, 1.1) * length)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if out.exists():
            completed += 1
            assert contents(out) == expected
    assert run(wide_folder, "--target", "genai", "-o", out, "--force").returncode == 0
    assert contents(out) == expected and not list(tmp_path.glob(".out*"))
    print(f"50 kills over a run of {length:.1f} s, {completed} times a finished folder was there, all whole")
