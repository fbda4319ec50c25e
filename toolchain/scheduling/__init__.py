"""When an answer goes to fewer bits, learned from a text: what `schedule` measures and trains."""
