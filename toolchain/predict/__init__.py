"""What a run would cost: time, memory and size, before it starts."""
