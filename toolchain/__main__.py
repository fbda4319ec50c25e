"""`python -m toolchain` is the same as `athena-export`."""

import os
import sys
from pathlib import Path

# Python puts the current folder first, where a downloaded folder could have modules of any name.
try:
    here = os.getcwd()
except OSError:  # it was deleted
    here = ""
if sys.path and sys.path[0] in ("", here) and Path(sys.path[0]) != Path(__file__).resolve().parent.parent:
    del sys.path[0]

from toolchain.cli import main

main()
