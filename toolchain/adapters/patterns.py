"""Names against patterns that came with a download: plain ones here, expressions in a process with a time limit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from export.contract.errors import InputError

_PLAIN = re.compile(r"[A-Za-z0-9_.]*")  # where a dot is an expression's any character, too: Matching tells
_SECONDS = 5
_LONGEST, _MOST = 4096, 4096  # characters of an expression; expressions
_SCRIPT = """
import json, re, sys
asked = json.load(sys.stdin)
found = {}
for pattern, names in asked.items():
    compiled = re.compile(pattern)
    found[pattern] = [name for name in names if compiled.fullmatch(name)]
json.dump(found, sys.stdout)
"""


def is_plain(key: str) -> bool:
    """Whether an expression is a dotted name and nothing else."""
    return _PLAIN.fullmatch(key) is not None


def ends_with(name: str, key: str) -> bool:
    """Whether a dotted name is a plain key, or ends with one behind a dot."""
    return name == key or name.endswith(f".{key}")


def full_matches(patterns: Sequence[str], names: Sequence[str], where: str) -> Mapping[str, frozenset[str]]:
    """Of each expression of Python's `re`, the names that it matches whole.

    Expressions can take time without end, so a process of its own tries them. Raises InputError, which begins with
    `where`, on what is no expression or takes longer than five seconds.
    """
    patterns = list(dict.fromkeys(patterns))
    if not patterns:
        return {}
    if len(patterns) > _MOST or any(len(pattern) > _LONGEST for pattern in patterns):
        raise InputError(f"{where}: at most {_MOST} expressions of {_LONGEST} characters are tried")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"{where}: {pattern[:200]!r} is no regular expression ({error})") from None
    asked = json.dumps({pattern: list(names) for pattern in patterns})
    command = [sys.executable, "-I", "-S", "-c", _SCRIPT]
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, text=True, timeout=_SECONDS, check=True, env={}
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise InputError(f"{where}: takes longer than {_SECONDS} seconds to match") from None
    except (subprocess.CalledProcessError, OSError, ValueError):
        raise InputError(f"{where}: could not be matched") from None
    return {pattern: frozenset(found[pattern]) for pattern in patterns}
