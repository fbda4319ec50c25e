"""Attention and its caches: float16 or float32 numbers, and 4-bit razored codes."""
