"""Trainable forms of stored matrices, one file each."""
