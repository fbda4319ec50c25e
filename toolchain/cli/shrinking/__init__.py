"""The command that makes a model smaller before it is quantized."""
