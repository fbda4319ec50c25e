"""The ways to choose what of a model is kept, one file each, looked up by the name that --by has."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from toolchain.settings.shrinking.shrink import JOINT_RANK, LORAPRUNE, MAGNITUDE, SEARCH, ShrinkSettings
from toolchain.shrink.parts.budget import Budget
from toolchain.shrink.parts.family import Freedom
from toolchain.shrink.parts.work import Choice, Work

# By name: the file here. Its `check(...)` refuses, its `choose(work)` gives what is kept.
_FILES = {MAGNITUDE: "magnitude", SEARCH: "search", LORAPRUNE: "loraprune", JOINT_RANK: "joint_rank"}


def checker(name: str) -> Callable[[Freedom, Budget, ShrinkSettings], None]:
    """What refuses a budget or family for a method, before there is a working folder."""
    return cast(
        Callable[[Freedom, Budget, ShrinkSettings], None],
        import_module(f"toolchain.shrink.methods.{_FILES[name]}").check,
    )


def chooser(name: str) -> Callable[[Work], Choice]:
    """The method of a name, one of settings.shrinking.shrink.METHODS."""
    return cast(Callable[[Work], Choice], import_module(f"toolchain.shrink.methods.{_FILES[name]}").choose)
