"""Which keys the attention of a model folder reads: the settings of `sparsify`."""
