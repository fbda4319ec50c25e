"""Codes that follow one another through a trellis: levels, best paths, and the solver of a matrix."""
