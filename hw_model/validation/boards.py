"""Processors: published decode and prompt speeds against the targets' rooflines.

Files: bits are those of the file over its weights where one figure is published. Engines compute a prompt's logits for
its last token alone. Sources: geerlingguy's benchmark repositories (2024), llamafile's (TinyLlama), llama.cpp rows of
2026 for the Pi 5 (ByteShape for Qwen3), our own runtime on two cores of a Xeon (`athena-export bench`).
"""

from __future__ import annotations

from hw_model.estimate import price
from hw_model.graph_work.operation import Phase
from hw_model.validation.models import SHAPES, Shape
from hw_model.validation.row import FITTED, HELD_OUT, Row
from targets import Target, load_target

_AIM = 0.12
_PROMPT, _CONTEXT = 512, 128  # llama-bench's prompt and generation
_OLD = "boards and llama.cpp of 2024, before the memory's new timing: 9.3 to 10.7 GB/s"
_WIDE = "how much wider than the average the parts that every token reads are stored is not published"
_KERNEL = "kernels of this format reach less than those of Q4_0, which repacks its weights"
_FLOAT = "llamafile of 2024 computed prompts of Q8_0 with half of today's rate"


def rows() -> list[Row]:
    """Every board and laptop."""
    return [*_pi5(), *_pi4(), *_laptops(), *_own()]


def _speed(target: Target, shape: Shape, phase: Phase, bits: float, head_bits: float = 0.0) -> float:
    """Tokens per second of a phase."""
    return price(shape.work(phase, bits, head_bits), phase, target, ranged=False).tokens_per_s


def _decode(target: Target, board: str, model: str, published: float, bits: float, head: float = 0.0,
            origin: str = HELD_OUT, why: str = "") -> Row:  # fmt: skip
    rate = _speed(target, SHAPES[model], Phase.of("decode", _CONTEXT), bits, head)
    return Row(f"{board}, {model}", "decode", "tokens/s", published, rate, origin, _AIM, why, system=True)


def _prompt(target: Target, board: str, model: str, published: float, bits: float, head: float = 0.0,
            origin: str = HELD_OUT, why: str = "") -> Row:  # fmt: skip
    rate = _speed(target, SHAPES[model], Phase.of("prefill", _PROMPT), bits, head)
    return Row(f"{board}, {model}", "prefill", "tokens/s", published, rate, origin, _AIM, why, system=True)


def _bits(model: str, gigabytes: float) -> float:
    """Bits a weight of a file."""
    return 8e9 * gigabytes / SHAPES[model].parameters


def _pi5() -> list[Row]:
    target, new, old = load_target("rpi5"), "Raspberry Pi 5, 2026", "Raspberry Pi 5, 2024"
    three, eight, thirteen = _bits("Llama-3.2-3B", 2.02), _bits("Llama-3.1-8B", 4.92), _bits("Llama-2-13B", 7.37)
    return [
        # Q4_0 has an 8-bit vocabulary: the official file is 429 MB, which holds it beside a 4-bit embedding
        _prompt(target, new, "Qwen2.5-0.5B", 290, 4.5, 8.5, FITTED),
        _decode(target, new, "Qwen2.5-0.5B", 33.8, 4.5, 8.5),
        _decode(target, new, "LFM2-700M", 17.8, 6.5625),
        _decode(target, new, "Qwen3-4B", 5.9, 3.87),
        _decode(target, new, "Qwen3-30B-A3B", 8.0, 2.70, why=_WIDE),
        _prompt(target, new, "LFM2-700M", 106, 6.5625, why=_KERNEL),
        _prompt(target, new, "Qwen3-4B", 6, 3.87, why=_KERNEL),
        _prompt(target, new, "Qwen3-30B-A3B", 10.9, 2.70, why=_KERNEL),
        Row(f"{new}, Gemma-4-E2B", "decode", "tokens/s", 6.35, None, HELD_OUT, system=True,
            why="what of its tables a token reads is not published"),
        _decode(target, f"{old}, 8 GB", "Llama-3.2-3B", 4.61, three, why=_OLD),
        _decode(target, f"{old}, 8 GB", "Llama-3.1-8B", 1.99, eight, why=_OLD),
        _decode(target, f"{old}, 16 GB", "Llama-3.2-3B", 4.88, three, why=_OLD),
        _decode(target, f"{old}, 16 GB", "Llama-3.1-8B", 2.17, eight, why=_OLD),
        _decode(target, f"{old}, 16 GB", "Llama-2-13B", 1.36, thirteen, why=_OLD),
        _decode(target, "Raspberry Pi 500+", "Llama-3.2-3B", 5.55, three),
        _prompt(target, old, "TinyLlama-1.1B", 45, 8.5, why=_FLOAT),
        _prompt(target, old, "Llama-2-7B", 8.1, 4.5, why=_FLOAT),
    ]  # fmt: skip


def _pi4() -> list[Row]:
    target = load_target("rpi4")
    return [
        _decode(target, "Pi 400", "Llama-3.2-3B", 1.60, _bits("Llama-3.2-3B", 2.02), origin=FITTED),
        _decode(target, "Raspberry Pi 4", "TinyLlama-1.1B", 3, 8.5, origin=FITTED),
        _prompt(target, "Raspberry Pi 4", "TinyLlama-1.1B", 10, 8.5, origin=FITTED),
    ]


def _laptops() -> list[Row]:
    target, three, eight = load_target("laptop-x86"), _bits("Llama-3.2-3B", 2.02), _bits("Llama-3.1-8B", 4.92)
    return [
        _decode(target, "Ryzen AI 5 340", "Llama-3.2-3B", 23.81, three, origin=FITTED),
        _decode(target, "Ryzen 7 8840U", "Llama-3.1-8B", 9.63, eight, origin=FITTED),
        _prompt(target, "Ryzen 7 8840U", "Llama-3.1-8B", 49.8, eight, origin=FITTED),
    ]


def _own() -> list[Row]:
    """Our runtime: the bandwidth is fitted on one width of one model and predicts others."""
    measured = (  # model, bytes that a token reads, width, tokens/s
        ("TinyLlama-1.1B", 557_991_168, "4 bits", 49.0, FITTED),
        ("TinyLlama-1.1B", 433_726_720, "3 bits", 62.1, HELD_OUT),
        ("Qwen2.5-0.5B", 319_477_504, "4 bits", 87.0, HELD_OUT),
        ("Qwen2.5-0.5B", 274_577_152, "3 bits", 93.3, HELD_OUT),
    )
    target = load_target("laptop-x86").varied({"memory_bandwidth": measured[0][1] * measured[0][3]})
    found = []
    for model, size, width, published, origin in measured:
        shape = SHAPES[model]
        read = shape.parameters - (0 if shape.tied else shape.vocabulary * shape.hidden)
        bits = 8 * size / read
        found.append(_decode(target, f"this runtime, 2-core Xeon, {width}", model, published, bits, origin=origin))
    return found
