"""GGUF files (llama.cpp) as a source: the header, read without trusting it, tensors, and the small files of a model."""
