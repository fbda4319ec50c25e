"""An object is used exactly where it is whole, of this version and for this machine; nothing else is ever loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.contract.errors import InputError
from runtime_py.engine.objects import file, store
from runtime_py.engine.objects.file import Damaged, origin, packed, unpacked
from runtime_py.engine.objects.wanted import LOOP, Wanted
from runtime_py.machine.isa import available, pick
from runtime_py.machine.processor import NAMED, aimed_at, processor, this_processor

CODE = b"\x7fELF" + bytes(range(256))
WANTED = Wanted("products.product", "MatMul", ("bits", 3), "avx2")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of our own, and nothing in the package."""
    place = tmp_path / "cache"
    place.mkdir()
    monkeypatch.setattr(store, "folder", lambda: place)
    monkeypatch.setattr(store, "SHIPPED", tmp_path / "nothing")
    return place


def test_what_is_kept_is_found(cache, capsys):
    assert store.find(WANTED) is None
    store.keep(cache, WANTED, this_processor(), CODE)
    assert store.find(WANTED) == CODE and capsys.readouterr().err == ""
    assert store.find(replace(WANTED, width=("bits", 4))) is None
    assert store.find(replace(WANTED, isa="avx2+amx")) is None  # tiles are other code


@given(st.data())
def test_every_change_of_a_file_is_noticed(data):
    whole = packed(origin(WANTED, NAMED["rpi5"]), CODE)
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    wrong = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    with pytest.raises(Damaged):
        unpacked(wrong)
    assert unpacked(whole) == (origin(WANTED, NAMED["rpi5"]).to_json(), CODE)


def test_a_damaged_file_is_not_used_and_a_line_says_so(cache, capsys):
    path = store.keep(cache, WANTED, this_processor(), CODE)
    path.write_bytes(path.read_bytes()[:-1])
    assert store.find(WANTED) is None
    said = capsys.readouterr().err
    assert "is cut off or damaged" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [{"sources": "0" * 16}, {"compiler": "numba 0.1, llvmlite 0.1"}, {"features": "+neon"}, {"isa": "neon"}],
)
def test_another_versions_or_machines_object_is_not_found_and_not_taken_under_a_false_name(cache, change, capsys):
    asked = origin(WANTED, this_processor())
    made = replace(asked, **change)
    assert made.key != asked.key  # so it has another name
    store.path_in(cache, WANTED, this_processor()).write_bytes(packed(made, CODE))
    assert store.find(WANTED) is None
    assert "something else than its name says" in capsys.readouterr().err
    with pytest.raises(InputError, match="something else"):
        store.take(cache, [WANTED])


def test_an_edit_of_a_kernel_makes_objects_stale(cache, monkeypatch):
    store.keep(cache, WANTED, this_processor(), CODE)
    monkeypatch.setattr(file, "sources", lambda: "f" * 16)
    assert store.find(WANTED) is None


def test_objects_by_name_run_where_nothing_is_lacking(cache, monkeypatch):
    rich = replace(NAMED["rpi5"], name="host-1", features=NAMED["rpi5"].features + ",+sve")
    monkeypatch.setattr(store, "this_processor", lambda: rich)
    assert [p.name for p in store.suiting()] == ["host-1", "rpi5", "rpi4", "aarch64"]
    store.keep(cache, WANTED, NAMED["rpi5"], CODE)
    assert store.find(WANTED) == CODE
    poor = replace(NAMED["rpi4"], name="host-2")
    monkeypatch.setattr(store, "this_processor", lambda: poor)
    assert [p.name for p in store.suiting()] == ["host-2", "rpi4", "aarch64"]
    assert store.find(WANTED) is None  # it may use instructions that are not there
    other = replace(rich, triple="aarch64-apple-darwin")
    monkeypatch.setattr(store, "this_processor", lambda: other)
    assert [p.name for p in store.suiting()] == ["host-1"]


def test_kernels_are_taken_from_a_folder_that_the_user_names(cache, tmp_path):
    given = tmp_path / "given"
    with pytest.raises(InputError, match="is not a folder"):
        store.take(given, [WANTED])
    given.mkdir()
    with pytest.raises(InputError, match="no objects in it"):
        store.take(given, [WANTED])
    path = store.keep(given, WANTED, this_processor(), CODE)
    assert store.take(given, [WANTED, replace(WANTED, width=None)]) == 1 and store.find(WANTED) == CODE
    with pytest.raises(InputError, match="or another model"):
        store.take(given, [replace(WANTED, width=None)])
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match="is cut off or damaged"):
        store.take(given, [WANTED])


def test_a_folder_for_another_machine_or_version_says_so(cache, tmp_path, monkeypatch):
    foreign = next(p for p in NAMED.values() if p.architecture != this_processor().architecture)
    store.keep(cache, WANTED, foreign, CODE)
    with pytest.raises(InputError, match=f"for {foreign.cpu}"):
        store.take(cache, [WANTED])
    monkeypatch.setattr(store, "sources", lambda: "f" * 16)
    with pytest.raises(InputError, match="another version"):
        store.take(cache, [WANTED])


def test_a_link_or_a_device_in_place_of_an_object_is_no_harm(cache):
    path = store.path_in(cache, WANTED, this_processor())
    path.symlink_to("/dev/zero")
    assert store.find(WANTED) is None  # read up to a limit, then refused
    path.unlink()
    path.mkdir()
    assert store.find(WANTED) is None


def test_old_files_go(cache, monkeypatch):
    monkeypatch.setattr(store, "_KEPT", 2)
    for bits in (1, 2, 3, 4):
        store.keep(cache, replace(WANTED, width=("bits", bits)), this_processor(), CODE)
    store.forget_old(cache)
    assert len(list(cache.iterdir())) == 2


def test_machines_by_name_have_the_instruction_sets_that_they_are_for():
    sets = {
        "aarch64-i8mm": "neoni8mm", "rpi5": "neondot", "rpi4": "neon", "aarch64": "neon", "x86-64-v3": "avx2",
        "avx512": "avx512vbmi",
    }  # fmt: skip
    for name, isa in sets.items():
        assert available(NAMED[name])[0] == isa
        with aimed_at(NAMED[name]):
            assert pick() == isa or "ATHENA_ISA" in __import__("os").environ
    assert set(sets) == set(NAMED)
    with pytest.raises(InputError, match="choose one of this, avx512"):
        processor("cray")


def test_names_of_objects_are_names_of_files_and_symbols():
    for wanted in (WANTED, Wanted(LOOP, "", None, "avx512vbmi+amx")):
        assert "/" not in wanted.name and wanted.symbol.isidentifier()
