"""Functions of an assembly text as basic blocks, and which block follows which."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_LABEL = re.compile(r"^([\w.$]+):")
_CONDITIONAL = re.compile(r"^(b\.\w+|cbn?z|tbn?z)\s")
_WORD = re.compile(r"^\s*\.inst\s+(0x[0-9a-f]+)")  # an instruction in hexadecimal, for assemblers that do not know it
_NUMBERED = re.compile(r"(?<![\w.])(\d+)([bf])$")  # a label of inline assembly, before or behind


@dataclass
class Block:
    """Instructions in order; `next`: labels of the blocks that may follow."""

    label: str
    code: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)


Function = dict[str, Block]


def functions(text: str) -> dict[str, Function]:
    """By name, the blocks by label; the first block is the entry."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    kinds = dict(re.findall(r"^\s+\.type\s+([\w.$]+),\s*[@%](\w+)", text, re.M))
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label and kinds.get(label[1]) == "function":
            lines = found[label[1]] = []
        elif line.startswith(".Lfunc_end"):
            lines = None
        elif lines is not None:
            lines.append(line)
    return {name: _blocks(body) for name, body in found.items()}


def _spelled(word: int) -> str:
    """A dot product by an element of 32 bits (SDOT, Arm ARM C7.2) in words. Raises ValueError on other words."""
    if word & 0xFFC0F400 != 0x4F80E000:
        raise ValueError(f"instruction {word:#x} is not known")
    index = (word >> 11 & 1) << 1 | word >> 21 & 1
    return f"sdot v{word & 31}.4s, v{word >> 5 & 31}.16b, v{word >> 16 & 31}.4b[{index}]"


def _plain(body: list[str]) -> list[str]:
    """Labels and instructions alone; numbered labels, which may come again, with names of their own."""
    kept, times = [], dict[str, int]()
    for line in body:
        word = _WORD.match(line)
        line = _spelled(int(word[1], 16)) if word else line.split("//")[0].split("/*")[0].strip()
        label = _LABEL.match(line)
        if not line or (line.startswith(".") and not label):
            continue
        if label and label[1].isdigit():
            times[label[1]] = times.get(label[1], 0) + 1
            line = f".Lnumber{label[1]}_{times[label[1]]}:"
        elif side := _NUMBERED.search(line):
            place = times.get(side[1], 0) + (side[2] == "f")
            line = _NUMBERED.sub(f".Lnumber{side[1]}_{place}", line)
        kept.append(line)
    return kept


def _blocks(body: list[str]) -> Function:
    blocks = [Block("entry")]
    ended = False
    for line in _plain(body):
        label = _LABEL.match(line)
        if label or ended:
            blocks.append(Block(label[1] if label else f"behind {len(blocks)}"))
            ended = False
        if label:
            continue
        blocks[-1].code.append(line)
        ended = line.startswith(("b ", "b\t", "br", "ret")) or _CONDITIONAL.match(line) is not None
    for block, after in zip(blocks, [*blocks[1:], None]):
        last = block.code[-1] if block.code else ""
        goes, falls = re.split(r"[\s,]+", last)[-1], after.label if after else None
        if _CONDITIONAL.match(last):
            block.next = [goes, falls] if falls else [goes]
        elif last.startswith(("b ", "b\t")):
            block.next = [goes]
        elif not last.startswith(("br", "ret")) and falls:
            block.next = [falls]
    known = {block.label: block for block in blocks}
    for block in blocks:
        block.next = [label for label in block.next if label in known]
    return known
