"""`adapter`: adapters of a model folder, added, listed and removed. Needs no torch."""

from __future__ import annotations

from toolchain.cli.adapters.commands import app as app
