"""Graphs of every family and weight format, for the tests of what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.artefacts.graph import Graph
from export.artefacts.reader import read_graph
from export.model_folder import write_model_folder
from hw_model.graph_work.workload import Phase
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import TINY, TINY_ENCODERS, FloatCheckpoint, random_text, tiny_model
from tests.toolchain.source.gguf_models import write_gguf
from toolchain.pipeline.packaging import package_checkpoint
from toolchain.pipeline.run import quantize_model
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings

SCHEMES = {
    "codebooks": {"bits": 3, "scale_bits": 4},
    "groups, float16 embeddings": {"bits": 2, "group_size": 16, "method": "rtn", "embedding_bits": 16},
    "outliers and low rank": {"bits": 3, "outliers": 0.02, "rank": 2},
    "vectors": {"bits": 2, "format": "vectors", "dimension": 2},
    "microscaling": {"bits": 4, "format": "mxfp4", "method": "gptq"},
    "nested": {"bits": 4, "format": "nested", "nested": 2},
    "two of four": {"bits": 4, "format": "sparse_codes", "sparsity": "2:4"},
    "trellis": {"bits": 3, "format": "trellis", "outliers": 0.01},
    "channel groups": {
        "method": "tender", "bits": 4, "razor": RazorSettings(activation_bits=4, activation_groups=14)
    },
    "razored": {"method": "qrazor", "bits": 4, "razor": RazorSettings(activation_bits=8, kv=8, kv_unit="head")},
}  # fmt: skip


KEPT = "group scales of a GGUF file"  # --method keep
QUICK = (KEPT, "outliers and low rank", "razored", "channel groups", "llama", "gemma2", "gpt_neox", "gpt2", "bert",
         "olmoe", "lfm2", "albert", "modernbert", "mistral", "gpt_oss")  # fmt: skip
CASES = [
    case if case in QUICK else pytest.param(case, marks=pytest.mark.long)
    for case in (KEPT, *SCHEMES, *TINY, *TINY_ENCODERS)
]


@pytest.fixture(scope="session", params=CASES)
def graph(request, tmp_path_factory) -> Graph:
    """The graph of one family with float weights, or of one scheme."""
    work = tmp_path_factory.mktemp("graph")
    if request.param == KEPT:
        return kept(work)
    variant = request.param if request.param not in SCHEMES else "llama"
    tiny_model(variant, work / "source")
    if variant is request.param:
        (work / "model").mkdir()
        write_model_folder(FloatCheckpoint(work / "source"), work / "model")
        return read_graph(work / "model")
    chosen = {"sequences": 2, "sequence_length": 16, "passes": 1, **SCHEMES[request.param]}
    text = random_text(work / "text.txt")
    return read_graph(_package(_checkpoint(work / "source", str(text), None, work / "q", **chosen), work / "model"))


def kept(work: Path) -> Graph:
    """A tiny Llama whose source has groups of 32 codes with a scale, some with an offset, and layers in 16 bits."""
    titles = {"ffn_down": "Q8_0", "attn_q": "F16", "ffn_up": "Q5_1"}
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    source = write_gguf(
        work / "m.gguf", type_of=lambda n: next((t for part, t in titles.items() if part in n), "Q4_0"), **sizes
    )
    settings = QuantizeSettings(method="keep", embedding_bits=16)
    checkpoint = quantize_model(str(source), work / "q", settings, CalibrationChoice(), quiet=True)
    return read_graph(package_checkpoint(checkpoint, work / "model", quiet=True))


def phases(graph: Graph) -> list[Phase]:
    decoder = any(info.name.startswith("past_") for info in graph.inputs)
    return [Phase.of("prefill", 5), *([Phase.of("decode", 20)] if decoder else [])]
