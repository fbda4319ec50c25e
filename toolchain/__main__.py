"""`python -m toolchain` is the same as `athena-export`."""

import os
import sys
from pathlib import Path

# Python puts the current folder first, where a downloaded folder could have modules of any name.
if sys.path and sys.path[0] == os.getcwd() and Path(sys.path[0]) != Path(__file__).resolve().parent.parent:
    del sys.path[0]

from toolchain.cli import main

main()
