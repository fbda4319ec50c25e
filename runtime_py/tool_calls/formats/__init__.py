"""The notations, one file each: found by the chat template, listed in the registry."""
