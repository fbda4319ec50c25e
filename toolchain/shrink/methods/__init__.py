"""The ways to choose what of a model is kept, one file each, looked up by the name that --by has."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from toolchain.settings.shrinking.shrink import JOINT_RANK, LORAPRUNE, MAGNITUDE, SEARCH
from toolchain.shrink.parts.work import Choice, Work

# By name: the file here. Its `choose(work)` gives what is kept.
_FILES = {MAGNITUDE: "magnitude", SEARCH: "search", LORAPRUNE: "loraprune", JOINT_RANK: "joint_rank"}


def chooser(name: str) -> Callable[[Work], Choice]:
    """The method of a name, one of settings.shrinking.shrink.METHODS."""
    return cast(Callable[[Work], Choice], import_module(f"toolchain.shrink.methods.{_FILES[name]}").choose)
