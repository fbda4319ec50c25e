"""The commands of the cost model: what a graph costs, on which machine, and what would cost less."""
