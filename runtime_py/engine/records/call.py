"""What a call of the step table is about: a row of numbers that the loop and all drivers read."""

from __future__ import annotations

from runtime_py.engine.records.record import NONE, Record, T, dataclass, declared

# A row of texts where they give single tokens (loop/apart.py), int64: tokens before this one, positions its cache has
# room for, the address of the records of its adapter, those of keys and values of each layer, and then those of each
# recurrent state before and behind this token.
PAST, CAPACITY, ADAPTER, CACHES = range(4)
# A row of whole texts (loop/packed.py), int64: its first token, how many it has, and the position where its keys begin.
FIRST, COUNT, BASE, TEXT = range(4)
# A row of their tokens, int64: the token's position in its text, and where its key lies.
LOCAL, PLACE, TOKEN = range(3)


@declared
@dataclass(kw_only=True, eq=False)
class Call(Record[T]):
    """Tokens, the tables of several texts where a call has any (packed.py, apart.py), and the shape of tiles."""

    tokens: T
    past: T = NONE  # tokens before the first
    last_only: T = NONE
    rows: T  # of a tile
    vectors: T  # of a tile
    amx: T = NONE  # address of the AMX configuration
    texts: T = NONE  # address of the rows of texts
    stride: T = NONE  # bytes from one row to the next, where they have no fixed size
    count: T = NONE  # of the rows of texts
    places: T = NONE  # address of the rows of tokens
    layers: T = NONE  # address of int64 [steps], the pair behind CACHES that a step belongs to
