"""Runs on the ARM side (under qemu): recomputes the cases and compares them bit by bit with what x86 wrote.

python -m tests.arm.check EXPECTED.npz WIDTHS WIDTHS_OF_TRELLIS_CODES

Kernels are compiled here, one by one; a whole model runs from what x86 has compiled (objects.py), because its drivers
are compiled by another process, which an emulated one cannot start.
"""

from __future__ import annotations

import re
import sys

import numpy as np

from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.machine.isa import pick
from tests.arm.cases import group_products, products


def main() -> None:
    """Exit status 1 names the first case that differs."""
    expected = np.load(sys.argv[1])
    isa = pick()
    widths, paths = (tuple(int(b) for b in given) for given in sys.argv[2:4])
    if not isa.startswith("neon"):
        raise SystemExit(f"the instruction set is {isa}, not NEON")
    found = products(isa, widths, paths)
    inner = "\n".join(matvec_rows.inspect_asm().values())
    counts = {name: len(re.findall(rf"^\s+{name}\s", inner, re.M)) for name in ("tbl", "sdot", "smull", "smull2")}
    print(f"{isa}: assembly of the matrix-vector product has {counts}", flush=True)
    if not counts["tbl"] or not (counts["sdot"] if isa != "neon" else counts["smull"] + counts["smull2"]):
        raise SystemExit("the expected instructions are missing")
    found |= group_products(isa)
    for name, value in found.items():
        if not np.array_equal(value, expected[name]):
            raise SystemExit(f"{isa}: {name} differs from x86:\n{value}\n{expected[name]}")
    print(f"{isa}: {len(found)} cases equal to x86 bit by bit")


if __name__ == "__main__":
    main()
