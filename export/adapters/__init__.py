"""Adapters of a model folder: how their terms are stored beside the shared weights, and which layers take them."""
