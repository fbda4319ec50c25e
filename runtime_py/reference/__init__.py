"""The slow, obvious runtime: every operator in numpy, one node at a time."""
