"""Parts that Gemma's later families have: keys and values of an earlier layer, embeddings for each layer."""
