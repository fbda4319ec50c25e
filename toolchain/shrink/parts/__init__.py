"""What all ways to make a model smaller share: sizes, cuts, budgets and their prices."""
