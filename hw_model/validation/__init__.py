"""The cost model against published silicon and boards: what is re-added, what was fitted, what it never saw."""
