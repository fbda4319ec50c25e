"""A command's parameters, one by one, and arguments that need no typer to be understood."""
