"""Rows of int64 numbers with named fields: one declaration for who writes, for compiled code, and for who checks.

A record is a dataclass (of this file) whose fields are, in order, the numbers of the row:

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
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
else:
    _NOTHING = object()

    class _Stated:
        """A field that says something about itself."""

        def __init__(self, default, metadata):
            self.default, self.metadata = default, metadata

    def field(*, metadata, default=_NOTHING):
        """As dataclasses.field()."""
        return _Stated(default, metadata)

    def dataclass(*, kw_only, eq):
        """As the dataclass() of the standard library to those who read and check types, without its generated code:
        some sixty declarations would take a tenth of the time in which a small model answers."""
        return _collected

    def _collected(kind):
        found = {}  # a field's metadata by its name, in the order of the row
        for base in reversed(kind.__mro__[1:]):
            found |= base.__dict__.get("FIELDS", {})
        for name, stated in kind.__annotations__.items():
            if stated.startswith("ClassVar"):
                continue
            default = kind.__dict__.get(name)
            found[name] = {}
            if isinstance(default, _Stated):
                found[name] = default.metadata
                delattr(kind, name)
                if default.default is not _NOTHING:
                    setattr(kind, name, default.default)
        kind.FIELDS = found
        return kind


T = TypeVar("T")  # what stands in a field: an int once the row is written
R = TypeVar("R", bound="Record[Any]")
REAL: Mapping[str, Any] = {"real": True}  # metadata of a field that is a float32, stored as its bits
NONE: Any = 0  # the default of an address that may lead nowhere, and of a switch


class _Values:
    """The named tuple of a declaration, made when it is first asked for: objects on disk need none."""

    def __get__(self, instance: Any, kind: Any) -> Any:
        values: Any = namedtuple(kind.__name__, kind.names())  # type: ignore[misc]  # mypy wants literal names
        values.__module__, values.__qualname__ = kind.__module__, f"{kind.__qualname__}.Values"
        kind.Values = values
        return values


class Record(Generic[T]):
    """Base of all declarations."""

    FIELDS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    Values: ClassVar[Any]  # the named tuple that compiled code reads

    if not TYPE_CHECKING:

        def __init__(self, **values):
            unknown = values.keys() - self.FIELDS.keys()
            missing = [name for name in self.FIELDS if name not in values and not hasattr(type(self), name)]
            if unknown or missing:
                raise TypeError(f"{type(self).__name__}: {sorted(unknown)} unknown, {missing} missing")
            self.__dict__.update(values)

    @classmethod
    @cache
    def names(cls) -> tuple[str, ...]:
        """Fields in the order of the row."""
        return tuple(cls.FIELDS)

    @classmethod
    @cache
    def reals(cls) -> frozenset[str]:
        """Fields that are float32."""
        return frozenset(name for name, metadata in cls.FIELDS.items() if metadata.get("real"))

    @classmethod
    def of(cls: type[R], numbers: Sequence[int]) -> R:
        """The record that a row holds; a float32 is given by its bits."""
        return cls(**dict(zip(cls.names(), numbers)))

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
    kind.Values = _Values()
    return kind
