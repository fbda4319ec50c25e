"""Processors: published decode and prompt speeds against the targets' rooflines.

Files: bits are those of the file over its weights where one figure is published. Engines compute a prompt's logits for
its last token alone, with kernels that differ by format: the rate of each comes from one model (fitted) and is tried on
others (held out). Sources: geerlingguy's benchmark repositories (2024 to 2026, issue 47 for Qwen3-30B-A3B), llamafile's
(TinyLlama), llama.cpp's pull requests 19356 and 19360 (LFM2) and 6928 (Llama-2-7B), ollama-benchmark's 9 (Pi 4), our
own runtime on two cores of a Xeon (`athena-export bench`).
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
_OTHER = "the rate of its format's kernel is not known: the mean of two others that do not repack weights"
_SMALL = "Ollama of 2024 on a board of 2 GB: 2.9 GB/s, below the range that rows of boards with more memory gave"
_FORMAT = "the rate is of the same kernels for another format, Q8_0"
# op/s of llama.cpp's kernels on a Pi 5 for prompts, from 512 tokens of LFM2-350M: weights repacked when they are loaded
# for products of several tokens, or read as they lie in the file
_REPACKED = {"Q6_K": 130.7e9, "Q5_K": 109.2e9}
_AS_STORED = {"Q6_K": 50.2e9, "Q5_K": 58.8e9}
_BITS = {"Q6_K": 6.5625, "Q5_K": 5.5}
_UNKNOWN = sum(_AS_STORED.values()) / len(_AS_STORED)
_LLAMAFILE = 89.4e9  # of 2024, from TinyLlama in Q8_0


def rows() -> list[Row]:
    """Every board and laptop."""
    return [*_pi5(), *_kernels(), *_pi4(), *_laptops(), *_own()]


def _speed(target: Target, shape: Shape, phase: Phase, bits: float, head_bits: float = 0.0) -> float:
    """Tokens per second of a phase."""
    return price(shape.work(phase, bits, head_bits), phase, target, ranged=False).tokens_per_s


def _decode(target: Target, board: str, model: str, published: float, bits: float, head: float = 0.0,
            origin: str = HELD_OUT, why: str = "") -> Row:  # fmt: skip
    rate = _speed(target, SHAPES[model], Phase.of("decode", _CONTEXT), bits, head)
    return Row(f"{board}, {model}", "decode", "tokens/s", published, rate, origin, _AIM, why, system=True)


def _prompt(target: Target, board: str, model: str, published: float, bits: float, head: float = 0.0,
            origin: str = HELD_OUT, why: str = "", kernel: float = 0.0) -> Row:  # fmt: skip
    """kernel: op/s of the format's products; 0: what the target states."""
    target = target.varied({"compute_rate": kernel}) if kernel else target
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
        _decode(target, new, "Qwen3-4B", 5.9, 3.87),
        _decode(target, new, "Qwen3-30B-A3B", 8.0, 2.70, why=_WIDE),
        _prompt(target, new, "Qwen3-4B", 6, 3.87, why=_OTHER, kernel=_UNKNOWN),
        _prompt(target, new, "Qwen3-30B-A3B", 10.91, 2.70, kernel=_UNKNOWN),
        Row(f"{new}, Gemma-4-E2B", "decode", "tokens/s", 6.35, None, HELD_OUT, system=True,
            why="what of its tables a token reads is not published"),
        _decode(target, f"{old}, 8 GB", "Llama-3.2-3B", 4.61, three, why=_OLD),
        _decode(target, f"{old}, 8 GB", "Llama-3.1-8B", 1.99, eight, why=_OLD),
        _decode(target, f"{old}, 16 GB", "Llama-3.2-3B", 4.88, three, why=_OLD),
        _decode(target, f"{old}, 16 GB", "Llama-3.1-8B", 2.17, eight, why=_OLD),
        _decode(target, f"{old}, 16 GB", "Llama-2-13B", 1.36, thirteen, why=_OLD),
        _decode(target, "Raspberry Pi 500+", "Llama-3.2-3B", 5.55, three),
        _prompt(target, old, "TinyLlama-1.1B", 45, 8.5, origin=FITTED, kernel=_LLAMAFILE),
        _prompt(target, old, "Llama-2-7B", 8.1, 4.5, why=_FORMAT, kernel=_LLAMAFILE),
    ]  # fmt: skip


def _kernels() -> list[Row]:
    """llama.cpp's kernels of two formats, with and without repacked weights, on two models."""
    target, found = load_target("rpi5"), []
    measured = (  # format, tokens/s of a prompt: LFM2-350M and 700M repacked, as stored; decode, repacked
        ("Q6_K", (224.06, 105.82), (86.21, 39.93), (38.51, 17.83)),
        ("Q5_K", (187.35, 89.73), (100.89, 47.06), (43.00, 21.33)),
    )
    for form, repacked, stored, decode in measured:
        bits, board = _BITS[form], f"Raspberry Pi 5, 2026, {form}"
        for name, kernel, speeds in (
            ("repacked", _REPACKED[form], repacked), ("as stored", _AS_STORED[form], stored),
        ):  # fmt: skip
            for model, speed, origin in zip(("LFM2-350M", "LFM2-700M"), speeds, (FITTED, HELD_OUT)):
                found.append(_prompt(target, f"{board} {name}", model, speed, bits, origin=origin, kernel=kernel))
        found += [
            _decode(target, board, model, speed, bits)
            for model, speed in zip(("LFM2-350M", "LFM2-700M"), decode)
        ]  # fmt: skip
    return found


def _pi4() -> list[Row]:
    target = load_target("rpi4")
    return [
        _decode(target, "Pi 400", "Llama-3.2-3B", 1.60, _bits("Llama-3.2-3B", 2.02), origin=FITTED),
        _decode(target, "Raspberry Pi 4", "TinyLlama-1.1B", 3, 8.5, origin=FITTED),
        _prompt(target, "Raspberry Pi 4", "TinyLlama-1.1B", 10, 8.5, origin=FITTED),
        _decode(target, "Raspberry Pi 4, 2 GB", "Qwen1.5-1.8B", 3.054, 4.5, 6.5625, why=_SMALL),
    ]


def _laptops() -> list[Row]:
    target, three, eight = load_target("laptop-x86"), _bits("Llama-3.2-3B", 2.02), _bits("Llama-3.1-8B", 4.92)
    return [
        _decode(target, "Ryzen AI 5 340", "Llama-3.2-3B", 23.81, three, origin=FITTED),
        _decode(target, "Ryzen AI 5 340", "Llama-3.1-8B", 10.46, eight),
        _decode(target, "Ryzen AI 5 340", "Qwen2.5-14B", 5.83, _bits("Qwen2.5-14B", 8.99)),
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
