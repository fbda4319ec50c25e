"""Training what has been quantized: end to end, block by block."""
