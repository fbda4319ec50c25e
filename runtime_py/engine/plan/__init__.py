"""From a graph to the table of steps that the compiled loop runs."""
