"""From what a request asks to what runs: its prompt, its grammar, and who reads its answer."""
