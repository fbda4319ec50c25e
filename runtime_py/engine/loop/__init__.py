"""The compiled loop over the table of steps, and a driver for each group of kinds."""
