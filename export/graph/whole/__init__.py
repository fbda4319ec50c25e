"""Puts the parts of a family together: a block, and whole decoders and encoders of them."""
