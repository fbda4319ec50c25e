"""Guessing what comes next in an answer: how far a guess is worth computing, and what that costs. No answer changes."""
