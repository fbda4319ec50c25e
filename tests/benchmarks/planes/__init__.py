"""Products by bit planes and by bytes as small compiled functions, for measurements: the product itself has neither."""
