"""Commands that make a model do less: fewer weights, fewer keys read, fewer bits late in an answer."""
