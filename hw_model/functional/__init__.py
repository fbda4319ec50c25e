"""What accelerators compute, bit for bit: the same descriptions that are priced, as integer arithmetic."""
