"""The record of one term: what compiled code reads of an adapter at one of the graph's products."""

from __future__ import annotations

from runtime_py.engine.records.record import NONE, Record, T, dataclass, declared


@declared
@dataclass(kw_only=True, eq=False)
class Term(Record[T]):
    """y += f(x @ a^T + a_bias) @ b + b_bias; all zeros where an adapter has no term.

    Factors lie as kernels/adapters/low_rank.py says.
    """

    rank: T = NONE
    item_bytes: T = NONE  # of a number of a and b: 1, 2 or 4
    a: T = NONE
    a_scales: T = NONE  # float32 [rank]; 0 for none
    b: T = NONE
    b_scales: T = NONE
    a_bias: T = NONE  # float32 [rank]; 0 for none
    b_bias: T = NONE  # float32 [rows]; 0 for none
    activation: T = NONE  # 0 for none, else 1 + that of kernels/elementwise.py


TERM = len(Term.names())  # int64 numbers of a record
