"""The ai.athena operators on integers, in numpy."""
