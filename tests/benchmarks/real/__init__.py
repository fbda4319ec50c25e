"""The table of a real language model: our exports and their peers, scored alike."""
