"""`python -m toolchain` is the same as `athena-export`."""

from toolchain.cli import main

main()
