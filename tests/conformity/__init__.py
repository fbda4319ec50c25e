"""Every family's exported folder in every tool that is said to run it: `make test-conformity`."""
