"""Mixtures of experts: a linear layer for each expert and matrix, however checkpoints and transformers hold them."""
