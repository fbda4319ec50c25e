"""From a graph to the table of steps that the compiled loop runs.

../walk.py visits the nodes, handlers/ turn each into steps by the primitives of context.py, placement.py gives buffers
their memory and writes the table.
"""
