"""Conversations: chat templates, what fits the context, and the terminal session. Nothing here computes."""
