"""A row of the table of texts that apart.py runs over, int64."""

from __future__ import annotations

# Tokens before this one, positions its cache has room for, the address of the records of its adapter, and then those of
# keys and values of each layer.
PAST, CAPACITY, ADAPTER, CACHES = range(4)
