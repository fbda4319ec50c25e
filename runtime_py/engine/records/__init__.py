"""Rows of int64 numbers with named fields, and the claims on memory that they make."""
