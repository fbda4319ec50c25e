"""Threads, worker processes, progress bars, units."""
