"""Smaller models before any bits are saved: fewer layers, heads and channels, or matrices of low rank."""
