"""The runtime on real exported models: parity with onnxruntime, token by token, and refusal of bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest

from export.contract.errors import InputError
from runtime_py.reference.session import Session
from runtime_py.text.generator import TextGenerator
from runtime_py.text.sampling import Sampler, SamplingSettings
from tests.runtime_py.text.generating import greedy_tokens


class OnnxRuntime:
    """Stock onnxruntime on the folder's model.onnx, no plugin."""

    def __init__(self, folder):
        self.session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self.cache = [i for i in self.session.get_inputs() if i.name.startswith("past_")]

    def empty(self, batch=1):
        """No keys and values, razored or not; states of zeros."""
        shapes = [[batch, *(n if isinstance(n, int) else 0 for n in i.shape[1:])] for i in self.cache]
        types = [np.uint8 if i.type == "tensor(uint8)" else np.float32 for i in self.cache]
        return [np.zeros(shape, dtype) for shape, dtype in zip(shapes, types)]

    def run(self, ids, mask, positions, past):
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feed |= {i.name: p for i, p in zip(self.cache, past)}
        out = self.session.run(None, feed)
        return out[0], out[1:]

    def greedy(self, prompt, count):
        ids, past, produced = np.array([prompt]), self.empty(), []
        position = np.arange(len(prompt))[None]
        for _ in range(count):
            logits, past = self.run(ids, np.ones((1, position[0, -1] + 1), np.int64), position, past)
            produced.append(int(logits[0, -1].argmax()))
            ids, position = np.array([[produced[-1]]]), np.array([[position[0, -1] + 1]])
        return produced


@pytest.mark.parametrize("fixture, prompt", [("demo_folder", "Once upon a time"), ("wide_folder", "The proposal")])
def test_200_greedy_tokens_equal_onnxruntime(fixture, prompt, request):
    folder = request.getfixturevalue(fixture)
    generator = TextGenerator(folder, "float32")
    ids = generator.encode(prompt)
    state = generator.session.new_state()
    ours = greedy_tokens(generator.session, state, ids, 200)
    assert ours == OnnxRuntime(folder).greedy(ids, 200)


def test_prefill_in_pieces_equals_prefill_at_once(demo_folder):
    session = Session(demo_folder)
    tokens = np.random.default_rng(0).integers(3, session.vocab_size, 300)
    whole = session.forward(session.new_state(), tokens)
    state = session.new_state()
    pieces = np.concatenate([session.forward(state, tokens[a:b]) for a, b in ((0, 1), (1, 130), (130, 300))])
    np.testing.assert_allclose(pieces, whole, atol=2e-4)  # float32 sums in another order
    last = session.forward(session.new_state(), tokens, last_only=True)
    np.testing.assert_allclose(last, whole[-1:], atol=2e-4)


def test_runtime_imports_neither_torch_nor_transformers_nor_onnx_ir(demo_folder):
    code = (
        "import sys; from runtime_py.text.generator import TextGenerator\n"
        "from runtime_py.text.sampling import SamplingSettings\n"
        f"g = TextGenerator({str(demo_folder)!r})\n"
        "print(len(list(g.stream('Once', SamplingSettings(), 5))))\n"
        "print(sorted({'torch', 'transformers', 'onnx_ir', 'safetensors'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert out[0] == "5" and out[1] == "[]"


def test_wrong_tokens_and_empty_prompts_are_refused(demo_folder):
    session = Session(demo_folder)
    with pytest.raises(InputError, match="outside the vocabulary"):
        session.forward(session.new_state(), [session.vocab_size])
    with pytest.raises(InputError, match="empty"):
        session.forward(session.new_state(), [])
    with pytest.raises(InputError, match="context is 512"):
        TextGenerator(demo_folder).encode("word " * 600)


def test_streamed_text_is_the_decoded_text(demo_folder):
    generator = TextGenerator(demo_folder)
    prompt = "One day, a dog"
    pairs = list(generator.stream(prompt, SamplingSettings(temperature=1.0, seed=3), 60))
    ids = generator.encode(prompt)
    whole = generator.tokenizer.decode(ids + [token for token, _ in pairs])
    assert generator.tokenizer.decode(ids) + "".join(text for _, text in pairs) == whole
    again = list(generator.stream(prompt, SamplingSettings(temperature=1.0, seed=3), 60))
    assert again == pairs
    assert list(generator.stream(prompt, SamplingSettings(temperature=1.0, seed=4), 60)) != pairs


def test_sampling_settings():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    assert Sampler(SamplingSettings()).next(logits) == 0

    def draws(**kw):
        return [s.next(logits) for s in [Sampler(SamplingSettings(temperature=1.0, **kw))] for _ in range(4000)]

    share = np.bincount(draws(), minlength=4) / 4000
    np.testing.assert_allclose(share, [0.5, 0.3, 0.15, 0.05], atol=0.03)  # about four standard deviations
    assert set(draws(top_k=2)) == {0, 1}
    assert set(draws(top_p=0.79)) == {0, 1}
    assert set(draws(top_p=0.81)) == {0, 1, 2}
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"seed": -1}):
        with pytest.raises(InputError):
            SamplingSettings(**bad)
