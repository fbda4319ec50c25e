"""One exported folder for each family and for the real models, built once into a working folder."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import DEMO, SHARED, _checkpoint, _package
from tests.export.graph.families import TINY, TINY_ENCODERS, random_text, tiny_model
from tests.export.graph.test_embedding_models import embedding_folder

REAL = {"stories260K": "models/stories260K", "scribe-6M": "models/scribe-6M"}
BUNDLED = "athena-demo-2M"  # for single tests: there on every machine
FAMILIES = [variant for variant in (*TINY, *TINY_ENCODERS) if " " not in variant]
EMBEDDING = {"Qwen3-Embedding": "qwen3", "EmbeddingGemma": "gemma3_text"}  # decoders that make vectors
ENCODERS = [*(family for family in FAMILIES if family in TINY_ENCODERS), *EMBEDDING]
PLAIN = {  # as many key-value heads as queries, head_dim = hidden_size / heads
    "qwen3 plain": {"head_dim": 8},
    "olmo2 plain": {"num_key_value_heads": 4},
    "gemma2 plain": {"num_key_value_heads": 4, "head_dim": 8},
    "phi plain": {"num_key_value_heads": 4},
    "phi3 plain": {"num_key_value_heads": 4},
    "starcoder2 plain": {"num_key_value_heads": 4},
    "cohere2 plain": {"num_key_value_heads": 4},
    "ernie4_5 plain": {"num_key_value_heads": 4, "head_dim": 8},
    "exaone4 plain": {"num_key_value_heads": 4},
    "glm4 plain": {"num_key_value_heads": 4, "head_dim": 8},
    "hunyuan_v1_dense plain": {"num_key_value_heads": 4, "head_dim": 8},
    "olmo3 plain": {"num_key_value_heads": 4},
    "mixtral plain": {"num_key_value_heads": 4},
    "olmoe plain": {"num_key_value_heads": 4},
    "gemma3n_text plain": {"num_key_value_heads": 4},
    "qwen3_moe plain": {"num_key_value_heads": 4, "head_dim": 8},
}


def names() -> list[str]:
    """Everything the suite runs on; real models only where they are on this machine."""
    return [
        *FAMILIES,
        *EMBEDDING,
        *PLAIN,
        *(name for name, path in REAL.items() if (SHARED / path).exists()),
    ]


def build(name: str, work: Path) -> Path:
    """The model folder of a family or a real model, 4 bits, made when it is not there yet."""
    folder = work / "folders" / name
    if folder.exists():
        return folder
    scratch = work / "sources" / name
    scratch.mkdir(parents=True, exist_ok=True)
    if name in REAL or name == BUNDLED:
        source = DEMO if name == BUNDLED else SHARED / REAL[name]
        checkpoint = _checkpoint(source, "built-in", None, scratch / "quantized", bits=4, sequences=16, passes=1)
    else:
        _source(name, scratch / "source")
        text = random_text(scratch / "text.txt")
        options = {"bits": 4, "sequence_length": 32, "rank": 2}
        checkpoint = _checkpoint(scratch / "source", str(text), None, scratch / "quantized", **options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return _package(checkpoint, folder)


def _source(name: str, folder: Path) -> None:
    """A tiny random model of the family, or of what it is made into."""
    if name in EMBEDDING:
        embedding_folder(EMBEDDING[name], folder)
    else:
        tiny_model(name.removesuffix(" plain"), folder, **PLAIN.get(name, {}))
