"""Target files: all that ship are valid; every kind of mistake names the file and the line."""

from __future__ import annotations

import pytest

from targets import KINDS, TargetError, load_target, target_names

GOOD = """kind = "cpu"
summary = "test"
[constants]
memory_bandwidth = { value = 1e9, unit = "byte/s", source = "x", tag = "assumed" }
compute_rate = { value = 1e9, unit = "op/s", source = "x", tag = "assumed" }
board_power = { value = 1, unit = "W", source = "x", tag = "assumed" }
"""


def test_shipped_targets_load_with_sources():
    assert {"rpi5", "attentionlego"} <= set(target_names())
    for name in target_names():
        target = load_target(name)
        assert target.summary and set(target.constants) == set(KINDS[target.kind])
        for constant in target.constants.values():
            assert constant.source
            low, high = constant.low or constant.value, constant.high or constant.value
            assert low <= constant.value <= high


def test_users_own_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_target(str(path))["board_power"] == 1


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('unit = "W"', 'unit = "kW"', r"line 6: board_power must be in W, not 'kW'"),
        ('value = 1, unit = "W", source = "x"', 'value = 1, unit = "W"', "line 6: board_power has no source"),
        ('tag = "assumed" }\ncompute', 'tag = "guess" }\ncompute', "line 4: memory_bandwidth must have a tag"),
        ("board_power", "bored_power", "board_power is missing"),
        ('kind = "cpu"', 'kind = "gpu"', "line 1: kind must be one of cpu"),
        ("summary =", "sumary =", "line 2: sumary is not a known field"),
        ("value = 1,", "value = -1,", "line 6: board_power value must be a number"),
        ("value = 1,", "valeu = 1,", "line 6: board_power has an unknown key 'valeu'"),
        ("[constants]", "[constants", "not valid TOML"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, old, new, message):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(TargetError, match=message) as error:
        load_target(str(path))
    assert str(path) in str(error.value)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(TargetError, match="choose one of attentionlego, digital-sram-pim, .*, tender, or give"):
        load_target("abacus")
