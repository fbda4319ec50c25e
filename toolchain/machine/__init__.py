"""What this machine has and which models would fit it, for `doctor` and `models`."""
