"""Area, energy and delay of hardware parts: pure functions of their parameters."""
