"""What a checkpoint that is quantized already stores for a matrix: codes, and scales that groups of columns share.

This is what a lossless export keeps. `SourceModel.group_codes(name)` gives it in the rows and columns of the model's
own weight, whatever order the file has, and `weight()` is to the bit what `SourceModel.tensor(name)` gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class GroupCodes:
    """A matrix [N, K] as codes and scales, one scale for `group_size` neighbouring columns of a row.

    The last group is shorter where K is no multiple. In float32, in this order, each step rounded (nothing is fused):

    - with `zero`: weight = scale * float32(code - zero), the difference is exact
    - else:        weight = (scale * float32(code)) + minimum, `minimum` as 0 where it is None
    """

    codes: np.ndarray  # uint8 [N, K], 0 to 2 ** bits - 1
    bits: int  # 2 to 8
    group_size: int
    scale: np.ndarray  # float32 [N, ceil(K / group_size)]
    minimum: np.ndarray | None = None  # float32, as scale
    zero: np.ndarray | int | None = None  # uint8, as scale, or one for all; from 0 to 2 ** bits (GPTQ's may be that)

    def weight(self) -> np.ndarray:
        """The matrix that this stands for, float32 [N, K]."""
        columns = np.arange(self.codes.shape[1]) // self.group_size
        scale = self.scale[:, columns]
        if self.zero is None:
            product = scale * self.codes.astype(np.float32)
            return product if self.minimum is None else product + self.minimum[:, columns]
        zero = np.asarray(self.zero, np.int16)
        return scale * (self.codes - (zero[:, columns] if zero.ndim else zero)).astype(np.float32)

    def rows(self, order: np.ndarray) -> GroupCodes:
        """The rows in another order, or some of them."""
        zero = self.zero[order] if isinstance(self.zero, np.ndarray) else self.zero
        minimum = None if self.minimum is None else self.minimum[order]
        return replace(self, codes=self.codes[order], scale=self.scale[order], minimum=minimum, zero=zero)
