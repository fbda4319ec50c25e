"""The compiled runtime: a graph becomes a table of steps that one compiled function runs on a thread pool.

Kernels take plain addresses and check nothing: the planner has compared every stored array with its node, and allocates
every buffer. matrix.py describes a codebook matrix, matvec.py multiplies one token by it, matmul.py many.
"""
