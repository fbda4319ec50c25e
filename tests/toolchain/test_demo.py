"""The bundled demo model: small enough, and it predicts English that it has not been trained on."""

from __future__ import annotations

from tests.conftest import DEMO
from toolchain.calibrate.corpus import standard_library_text
from toolchain.calibrate.text import load_tokenizer
from toolchain.evaluate.perplexity import evaluate, open_scorer, windows_of


def test_demo_model_is_small_and_knows_english():
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 4_000_000
    windows = windows_of(standard_library_text("held-out"), load_tokenizer(DEMO), 256, 30, "held-out")
    # 22.2 on all held-out strings of Python 3.11; a uniform guess would be 1,536
    assert evaluate(open_scorer(str(DEMO)), windows, quiet=True).perplexity < 40
