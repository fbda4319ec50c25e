"""Answers held to a form: JSON schemas, expressions and grammars as masks over a vocabulary (package llguidance)."""
