"""Sparse attention for long texts: which keys a query reads, and what that does to a model."""
