"""matplotlib as it comes, never as a file in the current folder says. Everything here imports it from this module.

At import it reads matplotlibrc of the current folder, which may be one that was downloaded: a pipe of that name is
waited for without end, and other bytes than text end the import.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["Figure", "matplotlib"]
try:
    _back = os.getcwd()
    os.chdir(Path(__file__).parent)
except OSError:  # the current folder was deleted: there is no file in it
    _back = ""
try:
    import matplotlib
    from matplotlib.figure import Figure
finally:
    if _back:
        os.chdir(_back)
matplotlib.rcdefaults()  # nor what another importer has read
matplotlib.use("svg")
