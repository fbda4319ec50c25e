"""Proof that no step reads or writes outside its arrays."""
