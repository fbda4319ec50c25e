"""The chat page of `serve`: one document with its own style and script, and the headers that let nothing else in."""
