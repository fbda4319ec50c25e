"""Hessians and k-means."""
