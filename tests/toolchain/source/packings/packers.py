"""Packs codes as the formats' descriptions say, bit by bit: slow, and without a line of the code under test."""

from __future__ import annotations

import json

import numpy as np
import torch

AWQ_ROWS = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight neighbours, from the lowest bits of a word on


def stream(codes: np.ndarray, bits: int) -> torch.Tensor:
    """int32 [rows, ceil(columns * bits / 32)]: code i of a row begins at bit i * bits."""
    words = -(-codes.shape[1] * bits // 32)
    found = np.zeros((len(codes), words), np.int64)
    for row, line in enumerate(codes):
        number = sum(int(code) << (i * bits) for i, code in enumerate(line))
        found[row] = [(number >> (32 * word)) & 0xFFFFFFFF for word in range(words)]
    return torch.from_numpy(found.astype(np.uint32).view(np.int32))


def eights(codes: np.ndarray) -> torch.Tensor:
    """AWQ's order along the rows of the result, [columns, rows / 8] of codes [rows, columns]."""
    order = [start + place for start in range(0, len(codes), 8) for place in AWQ_ROWS]
    return stream(codes[order].T, 4)


def gptq(codes, zeros, scales, bits, offset, g_idx=None) -> dict[str, torch.Tensor]:
    """codes [N, K], zeros and scales [N, groups]."""
    parts = {
        "qweight": stream(codes, bits).T,
        "qzeros": stream((zeros - offset).T, bits),
        "scales": torch.from_numpy(scales.T.copy()).half(),
    }
    return parts if g_idx is None else {**parts, "g_idx": torch.from_numpy(g_idx.astype(np.int32))}


def awq_gemm(codes, zeros, scales) -> dict[str, torch.Tensor]:
    scales = torch.from_numpy(scales.T.copy()).half()
    return {"qweight": eights(codes), "qzeros": eights(zeros), "scales": scales}


def awq_gemv(codes, zeros, scales, width) -> dict[str, torch.Tensor]:
    """width: words a row of zero points."""
    padded, wide = np.zeros((len(codes), 8 * width), np.uint8), np.zeros((len(codes), 8 * width), np.float32)
    padded[:, : zeros.shape[1]], wide[:, : scales.shape[1]] = zeros, scales
    return {"qweight": stream(codes, 4), "qzeros": stream(padded, 4), "scales": torch.from_numpy(wide).half()}


def pack_quantized(codes, zeros, scales, bits) -> dict[str, torch.Tensor]:
    parts = {
        "weight_packed": stream(codes, bits),
        "weight_scale": torch.from_numpy(scales).bfloat16(),
        "weight_shape": torch.tensor(codes.shape),
    }
    return parts if zeros is None else {**parts, "weight_zero_point": stream(zeros.T, bits).T}


def bitsandbytes(codes, magnitudes, kind, table, size, nested=None) -> dict[str, torch.Tensor]:
    """codes [N, K]; magnitudes: float32, or uint8 with nested = (table, magnitudes, size, offset)."""
    flat = codes.reshape(-1)
    state = {"quant_type": kind, "blocksize": size, "dtype": "float32", "shape": list(codes.shape)}
    parts = {
        "weight": torch.from_numpy((flat[0::2] << 4 | flat[1::2]).astype(np.uint8))[:, None],
        "weight.absmax": torch.from_numpy(magnitudes),
        "weight.quant_map": torch.from_numpy(table),
    }
    if nested is not None:
        outer_table, outer, outer_size, offset = nested
        state |= {"nested_blocksize": outer_size, "nested_dtype": "float32", "nested_offset": offset}
        parts |= {
            "weight.nested_absmax": torch.from_numpy(outer),
            "weight.nested_quant_map": torch.from_numpy(outer_table),
        }
    blob = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
    return {**parts, f"weight.quant_state.bitsandbytes__{kind}": torch.from_numpy(blob)}
