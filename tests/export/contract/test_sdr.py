"""The SDR codec: the vectors of the design's section 2.7, a bit-by-bit reference, and round trips of every packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.packing import unpack
from export.contract.sdr import (
    HALF_EVEN,
    HALF_UP,
    SIGN_MAGNITUDE,
    TWOS_COMPLEMENT,
    SdrFormat,
    code_patterns,
    code_table,
    pack_codes,
    pack_flags,
    razor,
    restore,
    unpack_flags,
)


def _razored(values: list[int], **settings) -> tuple[list[int], list[int]]:
    codes, flags = razor(np.array(values), SdrFormat(group_size=8, **settings))
    return codes.tolist(), flags.tolist()


def test_vector_1_and_its_nibbles() -> None:
    values = [37, -12, 5, 90, -64, 3, 0, -127]
    a = SdrFormat(group_size=8, ties=HALF_EVEN)
    assert _razored(values, ties=HALF_EVEN) == ([2, -1, 0, 6, -4, 0, 0, -7], [4])
    assert _razored(values, ties=HALF_EVEN, variant=TWOS_COMPLEMENT) == ([2, -1, 0, 6, -4, 0, 0, -8], [4])
    codes, flags = razor(np.array(values), a)
    assert restore(codes, flags, 8).tolist() == [32, -16, 0, 96, -64, 0, 0, -112]
    assert [f"{p:04b}" for p in code_patterns(codes, a)] == [
        "0010",
        "1001",
        "0000",
        "0110",
        "1100",
        "0000",
        "0000",
        "1111",
    ]


def test_vector_2_one_large_element_zeroes_its_group() -> None:
    assert _razored([1200, -340, 77, 15, -4096, 2047, 9, 0], basis=16) == ([1, 0, 0, 0, -4, 2, 0, 0], [10])


def test_vector_3_small_values_are_exact() -> None:
    assert _razored([5, -3, 2, 0, 7, -6, 1, 4]) == ([5, -3, 2, 0, 7, -6, 1, 4], [0])


def test_vector_4_ties() -> None:
    values = [24, 40, -40, 8, -8, 56, 100, 127]
    assert _razored(values, ties=HALF_EVEN)[0] == [2, 2, -2, 0, 0, 4, 6, 7]
    assert _razored(values, ties=HALF_UP)[0] == [2, 3, -3, 1, -1, 4, 6, 7]


def test_vector_5_overflow_floors() -> None:
    for variant, lowest in ((SIGN_MAGNITUDE, -7), (TWOS_COMPLEMENT, -8)):
        assert _razored([1, 60, 0, 0, 0, 0, 0, 0], variant=variant) == ([0, 7, 0, 0, 0, 0, 0, 0], [3])
        assert _razored([1, -60, 0, 0, 0, 0, 0, 0], variant=variant)[0][1] == lowest


def test_vector_6_codes_multiply_without_expansion() -> None:
    w, fw = razor(np.array([37, -12, 5, 90, -64, 3, 0, -127]), SdrFormat(group_size=8))
    a, fa = razor(np.array([1200, -340, 77, 15, -4096, 2047, 9, 0]), SdrFormat(basis=16, group_size=8))
    mac = int(w.astype(int) @ a.astype(int))
    assert mac == 18 and mac << int(fw[0] + fa[0]) == 294912
    assert int(restore(w, fw, 8) @ restore(a, fa, 8)) == 294912


def _by_bits(group: list[int], form: SdrFormat) -> tuple[list[int], int]:
    """The text of the paper on strings of bits: OR, leading one, the bits that are kept, the guard bit."""
    ored = 0
    for value in group:
        ored |= abs(value)
    bits = f"{ored:b}" if ored else ""
    dropped = max(0, len(bits) - (form.width - 1))
    codes = []
    for value in group:
        magnitude = f"{abs(value):0{form.basis}b}"
        kept, low = magnitude[: form.basis - dropped], magnitude[form.basis - dropped :]
        code = int(kept, 2)
        if low:
            tie = low[0] == "1" and set(low[1:]) <= {"0"}
            up = low[0] == "1" and (form.ties == HALF_UP or not tie or kept[-1] == "1")
            code += up
        highest = form.code_limit + (value < 0 and form.variant == TWOS_COMPLEMENT)
        codes.append((-1 if value < 0 else 1) * min(code, highest))
    return codes, dropped


formats = st.builds(
    lambda basis, width, group, variant, ties: SdrFormat(basis, min(width, basis), group, variant, ties),
    st.sampled_from([8, 16]),
    st.integers(2, 9),
    st.sampled_from([1, 3, 8, 16, 128]),
    st.sampled_from([SIGN_MAGNITUDE, TWOS_COMPLEMENT]),
    st.sampled_from([HALF_UP, HALF_EVEN]),
)


@settings(max_examples=200, deadline=None)
@given(formats, st.data())
def test_razor_is_what_the_bits_say(form: SdrFormat, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([0, 2, 5, form.basis - 1]))
    values = data.draw(st.lists(st.integers(-(2**size) + 1, 2**size - 1), min_size=1, max_size=40))
    codes, flags = razor(np.array([values]), form)
    for g, flag in enumerate(flags[0]):
        part = slice(g * form.group_size, (g + 1) * form.group_size)
        assert (codes[0, part].tolist(), int(flag)) == _by_bits(values[part], form)
    assert int(flags.max()) <= form.flag_limit
    error = np.abs(restore(codes, flags, form.group_size)[0] - values)
    step = (1 << np.repeat(flags[0].astype(int), form.group_size))[: len(values)]
    assert (error <= step).all()  # half a step where it rounds, up to one where it floors


@pytest.mark.parametrize("variant", [SIGN_MAGNITUDE, TWOS_COMPLEMENT])
@pytest.mark.parametrize("width", range(2, 9))
def test_every_code_survives_packing(width: int, variant: str) -> None:
    form = SdrFormat(basis=8, width=width, variant=variant)
    every = np.arange(form.lowest_code, form.code_limit + 1)
    for columns in (1, every.size, 300):
        codes = np.resize(every, (3, columns))
        stored = unpack(pack_codes(codes, form), width, columns)
        np.testing.assert_array_equal(code_table(form)[stored], codes)


def test_every_pair_of_flags_survives_packing() -> None:
    every = np.stack(np.meshgrid(np.arange(16), np.arange(16)), axis=-1).reshape(-1, 2)
    np.testing.assert_array_equal(unpack_flags(pack_flags(every), 2), every)
    odd = np.arange(13)[None]
    np.testing.assert_array_equal(unpack_flags(pack_flags(odd), 13), odd)
    with pytest.raises(ValueError, match="4 bits"):
        pack_flags(np.array([16]))


def test_effective_bits_are_those_of_the_paper() -> None:
    assert [SdrFormat(16, 4, g).effective_bits for g in (8, 16, 32, 64, 128)] == [4.5, 4.25, 4.125, 4.0625, 4.03125]


@pytest.mark.parametrize(
    "wrong", [{"width": 9}, {"basis": 17, "width": 4}, {"group_size": 0}, {"variant": "C"}, {"ties": "up"}]
)
def test_impossible_formats_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="SDR"):
        SdrFormat(**wrong)


def test_values_outside_the_basis_are_refused() -> None:
    with pytest.raises(ValueError, match="8-bit basis"):
        razor(np.array([128]), SdrFormat())
