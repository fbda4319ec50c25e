"""Sizes as people write them."""

from __future__ import annotations

import pytest

from export.contract.errors import InputError
from runtime_py.system.sizes import parsed_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GB", 6 * 10**9), ("1.5 GiB", 3 << 29), ("500mb", 5 * 10**8), ("1000", 1000), (" 2k ", 2000), ("1T", 10**12)],
)
def test_sizes(text, size):
    assert parsed_size(text, "--x") == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1e9", "nan", "0", "0.2", "1 2GB", "9" * 40, "999999999T", "٣GB", "6GBB"]
)
def test_what_is_none_is_told(text):
    with pytest.raises(InputError, match="--x must be a size such as 6GB"):
        parsed_size(text, "--x")
