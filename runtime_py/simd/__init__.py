"""A small SIMD vocabulary for Numba: logical 512-bit vectors, lowered per instruction set. Knows nothing of models.

isa.py names the instruction sets and picks one; vectors.py has the types and the operations LLVM lowers by itself;
lowering.py the two it cannot (table lookup, integer dot product); codes.py unpacks codes; atomics.py synchronises.
Every vector has the same 64 bytes and every reduction the same order on every machine, so results are bit-identical
on all of them.
"""

import runtime_py.system.numba_ready  # noqa: F401 (before Numba)
