"""Adapters trained elsewhere, read without trust and made terms of a model folder."""
