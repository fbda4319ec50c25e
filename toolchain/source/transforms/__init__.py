"""Transformations that are folded into the source's weights before anything is quantized."""
