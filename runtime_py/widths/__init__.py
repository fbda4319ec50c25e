"""Nested codes whose width changes while an answer grows: prompts and first tokens at more bits than later ones."""
