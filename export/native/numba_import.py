"""Numba as the user's environment configures it, never as a file in the current folder does.

At import and before every compilation, Numba looks for .numba_config.yaml in the current folder, which may be one that
was downloaded; it can name any importable class to decide where compiled code is loaded from. Import this module
before Numba.
"""

from __future__ import annotations

import sys
import warnings

_NAME = "_config_fname"  # Numba's own name for the file's


def _import() -> None:
    before = sys.modules.get("yaml")
    sys.modules["yaml"] = None  # type: ignore[assignment]  # Numba then only warns about the file
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="A Numba config file is found")
            import numba.core.config as config
    finally:
        del sys.modules["yaml"]
        if before is not None:
            sys.modules["yaml"] = before
    setattr(config, _NAME, "")  # a name that no file has
    config.reload_config()  # drops what another importer of Numba may have read from the file


_import()
