"""Claims of papers as experiments: what each of their mechanisms is worth on one model, everything else equal."""
