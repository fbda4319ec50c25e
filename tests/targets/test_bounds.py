"""Values that no constant can have are refused in one line, in files and options alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets import KINDS, TargetError, load_target, target_names
from targets.bounds import problem

RAP = 'base = "rap"\n[constants]\n'
WRONG = [
    ("adc_bits", "1e29", "must be 0 to 24 bit, not 1e\\+29"), ("arrays", "0.5", "must be a whole number, not 0.5"),
    ("rows", "0", "must be 1 to 65536, not 0"), ("ones_density", "1.5", "must be 0 to 1, not 1.5"),
    ("voltage", "0", "must be 0.1 to 5 V, not 0"), ("dram_bandwidth", "0", "must be 1 to 1e\\+18 byte/s, not 0"),
    ("weight_bits", "0", "must be 1 to 64 bit, not 0"), ("dram_energy", "1", "must be 0 to 0.001 J/byte, not 1"),
    ("columns_per_adc", "1e9", "must be 1 to 65536"), ("bits_per_cycle", "99", "must be 1 to 16 bit"),
]  # fmt: skip


@pytest.mark.parametrize("name, value, message", WRONG)
def test_an_option_is_refused(name, value, message):
    with pytest.raises(TargetError, match=f"^rap: {name} {message}") as caught:
        load_target("rap").with_changes({name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, value, message", WRONG)
@pytest.mark.parametrize("key", ["value", "low", "high"])
def test_a_file_is_refused(name, value, message, key, tmp_path):
    own = load_target("rap")[name]
    entry = {"value": own, "low": own, "high": own, key: value}
    fields = ", ".join(f"{k} = {v}" for k, v in entry.items())
    (tmp_path / "mine.toml").write_text(f'{RAP}{name} = {{ {fields}, source = "x", tag = "assumed" }}\n')
    with pytest.raises(TargetError, match=rf"mine.toml, line 3: {name} {key} {message}"):
        load_target(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("low, high", [(2e8, 1e8), (2e8, 3e8), (1e7, 5e7)])
def test_a_range_that_does_not_hold_its_value_is_refused(low, high, tmp_path):
    entry = f'clock = {{ value = 1e8, low = {low}, high = {high}, source = "x", tag = "assumed" }}'
    (tmp_path / "mine.toml").write_text(f"{RAP}{entry}\n")
    with pytest.raises(TargetError, match="line 3: clock low .* and high .* do not enclose 100000000.0"):
        load_target(str(tmp_path / "mine.toml"))


@given(st.sampled_from(target_names()), st.data())
def test_own_targets_are_within_and_every_unit_has_bounds(name, data):
    target = load_target(name)
    key = data.draw(st.sampled_from(sorted(KINDS[target.kind])))
    unit = KINDS[target.kind][key]
    assert not problem(target.kind, key, unit, target[key])
    assert problem(target.kind, key, unit, -1.0) and problem(target.kind, key, unit, 1e25)
