"""Machines made to measure: at equal silicon, at the knee, for many sequences, and whole sweeps of variants."""
