"""The way of one model from its source to a model folder."""
