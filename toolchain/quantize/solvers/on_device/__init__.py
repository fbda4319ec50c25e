"""Forms of the solvers in torch: the folder above is imported here, never the other way round."""
