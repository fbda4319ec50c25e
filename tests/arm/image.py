"""Memory that another machine's kernel is called on: arrays at fixed addresses, in a file that call.c maps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

ADDRESS = 0x40_0000_0000
_NUMBERS = 9  # of a driver
_ALIGNED = 64


class Image:
    """Arrays are put behind one another; run() has a program change them."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._end = _ALIGNED * 2  # the first has the numbers of the call

    def put(self, array: np.ndarray) -> int:
        """The address of a copy."""
        at = ADDRESS + self._end
        self._parts.append(np.ascontiguousarray(array))
        self._end += -(-array.nbytes // _ALIGNED) * _ALIGNED
        return at

    def run(
        self, command: list[str], file: Path, numbers: list[int], result: int, shape: tuple[int, ...]
    ) -> np.ndarray:
        """float32 at the address `result` after `command FILE ADDRESS SIZE` has called the driver."""
        content = bytearray(self._end)
        content[: 8 * _NUMBERS] = np.array(numbers, np.int64).tobytes()
        at = _ALIGNED * 2
        for part in self._parts:
            content[at : at + part.nbytes] = part.tobytes()
            at += -(-part.nbytes // _ALIGNED) * _ALIGNED
        file.write_bytes(content)
        subprocess.run([*command, str(file), hex(ADDRESS), str(len(content))], check=True)
        count = int(np.prod(shape))
        return np.frombuffer(file.read_bytes(), np.float32, count, result - ADDRESS).reshape(shape)
