"""What every weight format has in common: the layout of one stored matrix W [N, K]. Numpy only.

A format is one frozen dataclass derived from Layout, in one file: its fields are the attributes of the format's ONNX
operator, `parts` says which arrays are stored, `rows` what they stand for (slow, obvious), and `as_codebook` gives the
same matrix as codes of a codebook, which every kernel takes. The registry is export/contract/formats/__init__.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import product

if TYPE_CHECKING:
    import onnx

    from export.contract.formats.codebook import CodebookLayout

DOMAIN = "ai.athena"
DOMAIN_VERSION = 1
OPSET = 23
IR_VERSION = 11
LARGEST = 2**31 - 1
FLOATS = ("float16", "float32")


@dataclass(frozen=True)
class Part:
    """One array of a stored matrix."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]  # those allowed, by name
    computed: bool = False  # a graph may also compute it from other weights, such as scales from their codes

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=object))


@dataclass(frozen=True)
class Layout:
    """The attributes of one stored matrix W [N, K]; formats add fields of their own."""

    SCHEME: ClassVar[str]  # the format's name in records
    PARTS: ClassVar[tuple[str, ...]] = ("codes", "codebook", "scale")  # names of the parts, in their order
    OPERATOR: ClassVar[str] = ""  # X @ W^T, inputs X and the parts in their order; empty: integer products only
    LOOKUP: ClassVar[str] = ""  # the operator that looks up rows of W; empty: there is none
    KEPT: ClassVar[tuple[str, ...]] = ()  # parts that are the same arrays in the form of a codebook
    BY_ROWS: ClassVar[bool] = True  # whether a run of rows, such as an expert, is a run of every part
    LIMITS: ClassVar[Mapping[str, int]] = {}  # largest value by field; LARGEST for others
    LEAST: ClassVar[Mapping[str, int]] = {}  # smallest value by field; 1 for others

    bits: int
    K: int
    N: int

    def __post_init__(self) -> None:
        """Raises ValueError when an attribute is out of range, TypeError when it is no whole number."""
        for name in field_names(type(self)):
            value, low, high = getattr(self, name), self.LEAST.get(name, 1), self.LIMITS.get(name, LARGEST)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name} must be {low} to {high}, not {value}")

    def parts(self) -> dict[str, Part]:
        """The stored arrays by name, in the order of the operator's inputs."""
        raise NotImplementedError

    def rows(self, rows: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        """Rows `rows` (int [R]) of W as float32 [R, K]: the slow, obvious truth. arrays: in the order of parts."""
        raise NotImplementedError

    def codebook_layout(self) -> CodebookLayout:
        """The layout of the same matrix as codes of at most 8 bits, for whoever has no kernel for this format.

        Raises ValueError where there is none.
        """
        raise NotImplementedError

    def codebook_part(self, part: str, *arrays: np.ndarray) -> np.ndarray:
        """The part codes, codebook or scale of that form, exactly; not asked for those in KEPT.

        arrays: in the order of parts; those that a graph computes and that are in KEPT may be anything.
        """
        raise NotImplementedError

    def as_codebook(self, *arrays: np.ndarray) -> tuple[CodebookLayout, list[np.ndarray]]:
        """The same matrix in the form of a codebook: its layout, and codes, codebook and scale."""
        given = dict(zip(self.parts(), arrays, strict=True))
        layout = self.codebook_layout()
        found = [given[p] if p in self.KEPT else self.codebook_part(p, *arrays) for p in layout.parts()]
        return layout, found

    @classmethod
    def body(cls, b: Body, *parts: Value) -> Value:
        """W float32 [N, K] from the parts in standard ONNX operators; attributes are those of the function."""
        raise NotImplementedError

    @classmethod
    def function_bodies(cls) -> tuple[onnx.FunctionProto, ...]:
        """The format's operators as standard ONNX operators, so that every runtime has them."""
        return (_product_body(cls),) if cls.OPERATOR else ()

    def check(self, *arrays: np.ndarray) -> None:
        """Raises ValueError when an array does not have the dtype, shape or range that the format asks for."""
        for (name, part), array in zip(self.parts().items(), arrays, strict=True):
            if array.dtype.name not in part.dtypes or array.shape != part.shape:
                wanted = " or ".join(part.dtypes)
                raise ValueError(
                    f"{name} is {array.dtype.name} {list(array.shape)}, expected {wanted} {list(part.shape)}"
                )

    def dequantized(self, *arrays: np.ndarray) -> np.ndarray:
        """W as float32 [N, K]. Raises ValueError as check does."""
        self.check(*arrays)
        return self.rows(np.arange(self.N), *arrays)

    def attributes(self) -> dict[str, int]:
        """ONNX node attributes, by name."""
        return asdict(self)

    def stored_bytes(self, float_bytes: int = 2) -> int:
        """Bytes of all parts, those that may be float16 or float32 counted with `float_bytes` an element."""
        parts = self.parts().values()
        return sum(p.elements * (float_bytes if p.dtypes == FLOATS else np.dtype(p.dtypes[0]).itemsize) for p in parts)

    def with_rows(self, count: int) -> Layout:
        """The layout of so many rows of W, each with its own row of a part or one for all.

        Raises ValueError where some rows share a part, or depend on each other.
        """
        shared = {name: getattr(self, name) for name in field_names(type(self)) if name.startswith("rows_per_")}
        if any(rows not in (1, self.N) for rows in shared.values()):
            raise ValueError("its rows share codebooks or scales")
        return replace(self, N=count, **{name: count if rows == self.N else 1 for name, rows in shared.items()})

    def standard(self, part: str, edition: int) -> np.ndarray:
        """A part that is the same for all such matrices, stored nowhere. Raises ValueError where there is no such."""
        raise ValueError(f"{self.SCHEME} has no standard {part}")

    def integer_attributes(self, group_size: int) -> dict[str, int] | None:
        """Attributes of an SdrMatMul with this matrix whose activations share flags in groups of this size.

        None: the matrix cannot be a factor of integer products. Raises ValueError where its own groups differ.
        """
        return None

    def random(self, part: str, rng: np.random.Generator, deviation: float) -> np.ndarray:
        """Random values of a part; those of the weights have about this standard deviation."""
        raise NotImplementedError

    @property
    def weight_bits(self) -> float:
        """Bits of codes for one weight."""
        return self.bits

    @property
    def density(self) -> float:
        """Share of the weights that are there; those of others are zeros that nothing stores."""
        return 1.0


def _product_body(kind: type[Layout]) -> onnx.FunctionProto:
    def write(b: Body, x: Value, *parts: Value) -> Value:
        return product(b, x, b.named("weight", kind.body(b, *parts)))

    return function_proto(DOMAIN, OPSET, kind.OPERATOR, ("X", *kind.PARTS), field_names(kind), write)


def random_bytes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """uint8 of this shape, all values equally likely."""
    return np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape)


def field_names(kind: type[Layout]) -> list[str]:
    """The attributes of a format's operator."""
    return [field.name for field in fields(kind)]


def layout_from(kind: type[Layout], attributes: Mapping[str, Any]) -> Layout:
    """A layout from untrusted attributes. Raises KeyError, TypeError or ValueError."""
    return kind(**{name: attributes[name] for name in field_names(kind)})


def chunks(rows: int, shared: int) -> int:
    """How many runs of `shared` rows there are."""
    return -(-rows // shared)
