"""Forms of the solvers in torch, for an accelerator."""
