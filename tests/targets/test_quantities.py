"""Quantities with units, and target files that state only what differs from another."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets import KINDS, TargetError, load_target
from targets.quantities import quantity, unit_of

RAP = 'base = "rap"\n[constants]\n'
UNITS = sorted({unit for units in KINDS.values() for unit in units.values()})


@given(st.floats(1e-9, 1e9), st.sampled_from(["n", "u", "m", "", "k", "M", "G"]), st.sampled_from(UNITS))
def test_a_prefix_is_its_factor(value, prefix, unit):
    factor = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[prefix]
    assert quantity(f"{value!r} {unit}", unit) == pytest.approx(value)
    if unit in ("byte/s", "byte", "J/op", "W", "V", "Hz", "W/byte"):
        assert quantity(f"{value!r} {prefix}{unit}", unit) == pytest.approx(value * factor)


@pytest.mark.parametrize(
    "text, unit, expected",
    [("51.2GB/s", "byte/s", 51.2e9), ("8Gb/s", "byte/s", 1e9), ("32MiB", "byte", 2**25), ("800mm2", "mm2", 800),
     ("0.0008 m2", "mm2", 800), ("120fJ", "J/op", 120e-15), ("3pJ/b", "J/byte", 24e-12), ("5", "V", 5),
     ("10mW/mm2", "W/mm2", 10e-3), ("0.18mm2/(GB/s)", "mm2/(byte/s)", 0.18e-9)],
)  # fmt: skip
def test_what_people_write(text, unit, expected):
    assert quantity(text, unit) == pytest.approx(expected)


@given(st.text(max_size=12), st.sampled_from(UNITS))
def test_anything_else_is_refused_in_one_line(text, unit):
    try:
        assert math.isfinite(quantity(text, unit))
    except ValueError as error:
        assert "\n" not in str(error).strip("'\"") or "\\n" in repr(str(error))


@pytest.mark.parametrize(
    "text", ["", "GB/s", "5 GB", "5W", "5 mm2/s", "5/s/", "1e999", "nan", "5(", "5GB/(s", "5xB/s", "5B//s"]
)
def test_wrong_quantities(text):
    with pytest.raises(ValueError):
        quantity(text, "byte/s")


def test_every_unit_of_a_target_is_known():
    assert all(unit_of(unit)[0] > 0 for unit in UNITS)


def write(folder, name: str, text: str) -> str:
    (folder / f"{name}.toml").write_text(text)
    return str(folder / f"{name}.toml")


def test_a_file_states_what_differs_from_its_base(tmp_path):
    mine = write(tmp_path, "mine", 'base = "rap"\n[choices]\nadc_law = "isaac"\n[constants]\n'
                 'arrays = { value = 7, source = "x", tag = "assumed" }\n')  # fmt: skip
    second = write(tmp_path, "second", 'base = "mine.toml"\nsummary = "s"\n')
    rap = load_target("rap")
    for path in (mine, second):
        found = load_target(path)
        assert found["arrays"] == 7 and found.constants["arrays"].unit == "1" and found.choices["adc_law"] == "isaac"
        same = {n: c for n, c in found.constants.items() if n != "arrays"}
        assert same == {n: c for n, c in rap.constants.items() if n != "arrays"} and found.kind == "pim"
    assert load_target(second).name == "second" and load_target(second).summary == "s"


@pytest.mark.parametrize(
    "text, message",
    [('base = "abacus"', "base must be one of a100"), ('base = "../rap.toml"', "base must be one of"),
     ('base = 3', "base must be one of"), ('base = "circle.toml"', "more than 8 files, or in a circle"),
     ('base = "rap"\nkind = "cpu"', "kind must be pim, as that of its base rap"),
     ('base = "gone.toml"', "cannot be read"),
     (f"{RAP}macs = {{ value = 1, source = 'x', tag = 'assumed' }}", "macs is not a constant of kind pim"),
     (f"{RAP}arrays = {{ value = 1, tag = 'assumed' }}", "arrays has no source"),
     (f"{RAP}arrays = {{ value = 1, unit = 'm', source = 'x', tag = 'assumed' }}", "must be in 1")],
)  # fmt: skip
def test_wrong_bases_are_refused(tmp_path, text, message):
    with pytest.raises(TargetError, match=message):
        load_target(write(tmp_path, "circle", text + "\n"))


def test_a_change_names_itself():
    target = load_target("rap").with_changes({"dram_bandwidth": "51.2GB/s", "adc_law": "isaac"})
    assert target["dram_bandwidth"] == 51.2e9 and target.name == "rap (dram_bandwidth=51.2GB/s, adc_law=isaac)"
    for changes in ({"nothing": "1"}, {"arrays": "many"}, {"adc_law": "magic"}, {"arrays": "1e31"}, {"clock": "5W"}):
        with pytest.raises(TargetError):
            load_target("rap").with_changes(changes)
