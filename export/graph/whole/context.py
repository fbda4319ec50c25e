"""What a block is given beside the hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

TOTAL = "total_sequence_length"


@dataclass(frozen=True)
class Context:
    """What a block gets beside the hidden states: values of the graph."""

    mask: ir.Value | None  # bool, True where a query sees a key; None where nothing attends
    rotation: tuple[ir.Value, ir.Value] | None = None  # cos and sin [batch, sequence, rotated / 2]
    # Cached keys and values where the block attends, then its states; None: queries see the whole input.
    past: tuple[ir.Value, ...] | None = None
    earlier: tuple[ir.Value, ...] | None = None  # keys and values of an earlier layer, those of this call included
    query_rotation: tuple[ir.Value, ir.Value] | None = None  # of the queries, where it is another than that of the keys
    token_mask: ir.Value | None = None  # float32 [batch, sequence, 1], for what keeps a state
    per_layer: ir.Value | None = None  # the block's part of the embeddings for each layer
