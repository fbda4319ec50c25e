"""The compiled runtime: a graph becomes a table of steps that one compiled function runs on a pool of threads.

records/ says how numbers lie in a row, kernels/ compute on plain addresses, steps/ declares each kind of step, plan/
turns a graph into steps, verify/ proves that they stay inside their memory, loop/ runs them. Imports go that way only.
Kernels check nothing: the planner has compared every stored array with its node, and allocates every buffer.
"""
