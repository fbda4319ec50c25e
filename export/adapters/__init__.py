"""Adapters of a model folder: how low-rank terms are stored beside the shared weights, and which layers take them."""
