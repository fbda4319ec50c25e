"""Opens a model folder for quantization; which matrix is its vocabulary head is settled here, as in transformers.

With `tie_word_embeddings` transformers looks at what the checkpoint stores: of embedding and head, one that is missing
is the other; two that are equal are one; two that differ stay two.
"""

from __future__ import annotations

from pathlib import Path

import torch

from export.contract.errors import InputError
from export.graph.archs import model_spec
from export.graph.spec import ModelSpec
from toolchain.source.checkpoint import SourceModel

_COMMON_HEAD = "lm_head"  # what transformers calls every head, whatever the family's checkpoints call it


def open_model(folder: Path) -> tuple[SourceModel, ModelSpec]:
    """The checkpoint of a folder and what it describes; the source's config says whether the head is tied in truth.

    Raises InputError on a bad folder, an unsupported family, and an embedding or head that is missing or misshapen.
    """
    source = SourceModel(folder)
    spec = model_spec(source.config)
    if spec.head:
        source.config["tie_word_embeddings"] = _is_tied(source, spec, spec.head)
    return source, model_spec(source.config)


def _is_tied(source: SourceModel, spec: ModelSpec, head_module: str) -> bool:
    embedding, head = f"{spec.embedding}.weight", f"{head_module}.weight"
    if not source.has(head) and source.has(f"{_COMMON_HEAD}.weight"):
        source.aliases[head] = f"{_COMMON_HEAD}.weight"
    shape = (spec.vocab_size, spec.hidden_size)
    if not spec.tied_head:
        if not source.has(head):
            raise InputError(
                f"{source.folder}: the checkpoint has no tensor {head}, and tie_word_embeddings in config.json is false"
            )
        return False
    if not source.has(embedding):
        source.aliases[embedding] = source.aliases.get(head, head)
        return True
    return not source.has(head) or torch.equal(source.tensor(embedding, shape), source.tensor(head, shape))
