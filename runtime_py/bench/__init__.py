"""How fast the machine is and how fast a model runs on it."""
