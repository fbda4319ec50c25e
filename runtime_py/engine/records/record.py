"""Rows of int64 numbers with named fields: one declaration for who writes, for compiled code, and for who checks.

A record is a dataclass whose fields are, in order, the numbers of the row:

    @declared
    @dataclass(kw_only=True, eq=False)
    class Scale(Step[T]):
        source: T
        factor: T = field(metadata=REAL)

Its constructor takes every field once and by name. `Scale.write(row, ...)` puts the numbers into a row. Compiled code
gets them back with `read = reader(Scale)` (kernels/reading.py), `s = read(address)`, `s.factor`: what it does not use
is not loaded.
`Scale.of(numbers)` is for those who check a row.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

T = TypeVar("T")  # what stands in a field: an int once the row is written
R = TypeVar("R", bound="Record[Any]")
REAL: Mapping[str, Any] = {"real": True}  # metadata of a field that is a float32, stored as its bits
NONE: Any = 0  # the default of an address that may lead nowhere, and of a switch


class Record(Generic[T]):
    """Base of all declarations."""

    Values: ClassVar[Any]  # the named tuple that compiled code reads

    @classmethod
    @cache
    def names(cls) -> tuple[str, ...]:
        """Fields in the order of the row."""
        return tuple(f.name for f in fields(cls))  # type: ignore[arg-type]

    @classmethod
    @cache
    def reals(cls) -> frozenset[str]:
        """Fields that are float32."""
        return frozenset(f.name for f in fields(cls) if f.metadata.get("real"))  # type: ignore[arg-type]

    @classmethod
    def of(cls: type[R], numbers: Sequence[int]) -> R:
        """The record that a row holds; a float32 is given by its bits."""
        return cls(**dict(zip(cls.Values._fields, numbers)))

    def items(self) -> Iterable[tuple[str, T]]:
        """Names and values in the order of the row."""
        return ((name, getattr(self, name)) for name in self.names())

    def write(self, row: np.ndarray, number: Callable[[int, T], float]) -> None:
        """Fill an int64 row with number(place, value). Raises ValueError where a float stands for an integer."""
        for place, (name, value) in enumerate(self.items()):
            found = number(place, value)
            if name in self.reals():
                row[place] = int(np.float32(found).view(np.int32))
            elif isinstance(found, float):
                raise ValueError(f"{type(self).__name__}.{name} is an integer, not {found}")
            else:
                row[place] = found


def declared(kind: type[R]) -> type[R]:
    """Give a record the type of its values in compiled code, which kernels on disk find again by its name."""
    values: Any = namedtuple(kind.__name__, kind.names())  # type: ignore[misc]  # mypy wants literal names
    values.__module__, values.__qualname__ = kind.__module__, f"{kind.__qualname__}.Values"
    kind.Values = values
    return kind
