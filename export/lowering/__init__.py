"""From a model folder to one that a particular runtime likes better. One pass per file: model in, model out."""
