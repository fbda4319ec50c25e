"""Processor, memory, threads and the cache of compiled kernels."""
