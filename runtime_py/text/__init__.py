"""Text in, text out: tokenizing, sampling, streaming, embeddings."""
