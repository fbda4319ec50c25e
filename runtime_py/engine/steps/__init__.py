"""The steps and the compiled loop that runs them."""
