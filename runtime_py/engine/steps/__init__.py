"""The steps, one declaration each: what the planner sets, what compiled code reads, what a step claims of memory."""
