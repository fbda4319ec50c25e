"""Machines, one file each: time, energy and area of a graph's work."""
