"""A small model that comes with the tool, and how it was trained."""
