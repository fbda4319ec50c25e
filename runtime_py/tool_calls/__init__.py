"""Tool calls and reasoning in a model's own notation: what grammar holds an answer to it, and how it is read again."""
