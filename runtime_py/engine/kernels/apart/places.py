"""Where the integers of tokens lie that pass one by one (loop/apart.py): block by block.

As for one token (kernels/quantize.py), but a block's tokens are neighbours, and the next block's lie behind them: few
tokens are read from few places, which the first-level cache holds.
"""

from __future__ import annotations

import numba as nb


@nb.njit(cache=True, inline="always")
def place(token, block, tokens):
    """Where a token's part of a block lies, counted in such parts: whole blocks of 256, also where columns end.

    tokens: that pass together.
    """
    return tokens * block + token
