"""Attention and its caches: float16 or float32 numbers, integer codes, and 4-bit razored ones."""
