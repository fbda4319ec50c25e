"""Kernels that come with the package: what they are, and that a start finds them."""

from __future__ import annotations

from runtime_py.engine.objects import store
from runtime_py.engine.steps import table
from runtime_py.machine.processor import NAMED, this_processor
from runtime_py.making import common, ship


def test_common_kernels_are_those_of_llama_at_the_widths_of_presets():
    wanted = common(NAMED["rpi5"])
    assert len(wanted) == len(set(wanted)) and {one.isa for one in wanted} == {"neondot"}
    widths = {one.width for one in wanted if one.step == table.NAMES[table.MATMUL]}
    assert widths >= {("bits", 3), ("raw", 8), ("halves", 2)} and ("trellis", 3) not in widths
    assert ("trellis", 3) in {one.width for one in common(NAMED["avx512"])}


def test_what_is_shipped_is_found(tmp_path, monkeypatch):
    calls = []

    def compile_into(place, wanted, processor):
        calls.append(processor.name)
        for one in wanted:
            store.keep(place, one, processor, b"code")

    monkeypatch.setattr("runtime_py.making.compile_into", compile_into)
    names = [p.name for p in store.suiting() if p != this_processor()]
    ship(names, tmp_path / "shipped")
    assert calls == names
    monkeypatch.setattr(store, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(store, "folder", lambda: None)
    for name in names[:1]:
        assert all(store.find(one) == b"code" for one in common(NAMED[name]))
    ship([], tmp_path / "shipped")
    assert not list((tmp_path / "shipped").iterdir())
