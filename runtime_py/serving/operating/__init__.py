"""What an operator sees and does: metrics, logs, and the way out that loses no answer."""
