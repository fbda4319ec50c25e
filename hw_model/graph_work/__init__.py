"""What a graph has to compute and to move, operator by operator."""
