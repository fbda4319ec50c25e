"""What is read of a model.onnx: every text is one, and nothing else is checked yet."""

from __future__ import annotations

from typing import Any, NamedTuple


class NodeRecord(NamedTuple):
    """One operator call."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]  # as onnx.helper.get_attribute_value has them


class TensorRecord(NamedTuple):
    """A stored tensor."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    external: dict[str, str] | None  # where it lies, None: in the model.onnx itself
    raw: Any  # its bytes, None where its numbers are kept in another way or are not here
    source: Any  # for by_onnx.array_of


class ValueRecord(NamedTuple):
    """A value whose type is stated."""

    name: str
    element_type: int  # 0: not stated
    shape: tuple[int | str, ...] | None  # symbolic dimensions by name


class ModelRecord(NamedTuple):
    """A file."""

    nodes: list[NodeRecord]
    tensors: list[TensorRecord]
    inputs: list[ValueRecord]
    outputs: list[ValueRecord]
    values: list[ValueRecord]
    metadata: dict[str, str]
    opsets: dict[str, int]
