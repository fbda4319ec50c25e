"""What the commands that generate text take and say alike."""
