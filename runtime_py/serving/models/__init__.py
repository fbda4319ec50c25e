"""The models of a server by name: which are loaded, which leave when memory is short, and who waits for one."""
