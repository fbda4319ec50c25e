"""Tags (machine/isa.py) as Numba types: constants of compiled code without data."""

from __future__ import annotations

from numba.core import types
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

from runtime_py.machine.isa import Tag


class TagType(types.Type):
    """Numba type of one Tag."""

    def __init__(self, kind: str, value: str | int) -> None:
        self.kind, self.value = kind, value
        super().__init__(name=f"Tag({kind}={value})")


@register_model(TagType)
class _TagModel(models.OpaqueModel):
    pass


@typeof_impl.register(Tag)
def _typeof_tag(value, context):
    return TagType(value.kind, value.value)


@unbox(TagType)
def _unbox_tag(typ, obj, c):
    return NativeValue(c.context.get_dummy_value())


@lower_constant(TagType)
def _constant_tag(context, builder, typ, value):
    return context.get_dummy_value()
