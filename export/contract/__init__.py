"""The contract of stored weights: how they lie in bytes and what they stand for. Numpy only."""
