"""Whole accelerators on whole models, priced as targets are (hw_model/estimate.py).

A machine is a target of ours with what is published of the chip in place of its constants; what is not published stays
as the target has it. Nothing was chosen with a figure of these rows in view.
"""

from __future__ import annotations

from collections.abc import Mapping

from hw_model.estimate import price
from hw_model.graph_work.operation import Operation, Phase
from hw_model.machines.parts import LEAKAGE
from hw_model.machines.result import CostReport
from hw_model.validation.models import SHAPES
from hw_model.validation.row import FITTED, HELD_OUT, Row
from targets import Target, load_target

_AIM = 0.25
# TranCIM (ISSCC 2022 29.3): 28 nm, 1.48 TOPS of INT8, so 3,072 products a cycle at 240 MHz: bit-serial inputs, three
# cores; INT16 attention takes four times the energy and time of INT8; 192 KB of buffers. The clock and the buffers are
# quoted from memory, the geometry of a core and the supply (0.9 V, of 0.6 to 1.0) are assumed.
_TRANCIM = {
    "clock": 240e6, "arrays": 3, "rows": 128, "outputs": 64, "cache_capacity": 192 << 10, "attention_macs": 768,
    "attention_energy": 4 * load_target("digital-sram-pim")["attention_energy"],
    "network_bandwidth": 3 * 128 * 240e6, "write_bandwidth": 3 * 128 * 240e6,
}  # fmt: skip
# RCW-CIM (arXiv 2604.27384): 22 nm, 100 MHz, 8 clusters of 4 cores, banks of 32 products; 3.28 TOPS, so 16 banks a core
# that multiply whole words; 64 KB a cluster; two channels of DDR5-6400; weights are written while products are read.
# Supply (0.8 V, nominal), 8-bit activations and wires of a millimetre are assumed.
_RCW = {
    "clock": 100e6, "arrays": 32, "rows": 32, "outputs": 16, "weight_bits": 4, "input_bits": 8, "bits_per_cycle": 8,
    "node": 22, "voltage": 0.8, "cache_capacity": 8 * (64 << 10), "dram_bandwidth": 102.4e9, "write_bandwidth": 102.4e9,
    "network_bandwidth": 32 * 32 * 100e6, "network_energy": 0.8e-12, "attention_macs": 16384, "vector_lanes": 1024,
    "softmax_lanes": 256, "requantize_lanes": 512,
}  # fmt: skip
_CONTEXT = 1024  # tokens of RCW-CIM's prompt


def rows() -> list[Row]:
    """TranCIM on BERT-base, RCW-CIM on Llama-2-7B, Hailo-10H on Qwen2.5-1.5B."""
    return [*_trancim(), *_rcw(), *_hailo()]


def _machine(base: str, published: Mapping[str, float]) -> Target:
    return load_target(base).varied(published)


def _priced(target: Target, work: list[Operation], phase: Phase) -> CostReport:
    return price(work, phase, target, ranged=False)


def on_chip(report: CostReport) -> float:
    """J of a pass without DRAM: of the parts at work, and what all but the DRAM's interface leak."""
    inside = [part for part in report.components if part.name not in ("DRAM", LEAKAGE)]
    return sum(part.energy_j + part.leakage_w * report.latency_s for part in inside)


def _trancim() -> list[Row]:
    phase = Phase("prefill", 128, 0)
    report = _priced(_machine("digital-sram-pim", _TRANCIM), SHAPES["BERT-base"].work(phase, 8), phase)
    return [
        Row("TranCIM ISSCC 2022 29.3, BERT-base, 128 tokens", "energy per token without DRAM", "uJ", 15.59,
            1e6 * on_chip(report) / phase.tokens, HELD_OUT, _AIM, system=True),
    ]  # fmt: skip


def _rcw() -> list[Row]:
    """Decode and prefill with DRAM; a prompt's 4.2 ms can only be of a token: 1,024 in that time were 3,300 TOPS."""
    target, shape, chip = _machine("digital-sram-pim", _RCW), SHAPES["Llama-2-7B"], "RCW-CIM, Llama-2-7B in INT4"
    decode, prefill = Phase.of("decode", _CONTEXT), Phase.of("prefill", _CONTEXT)
    one = _priced(target, shape.work(decode, 4), decode)
    prompt = _priced(target, shape.work(prefill, 4), prefill)
    energy = 1e15 * on_chip(prompt) / prompt.macs
    why = (
        "inputs are sent to each bank of 16 outputs anew, 50 fJ, and 10 mW/mm2 leak, 75 fJ: more than the chip's 77 mW"
    )
    return [
        Row(chip, "decode", "tokens/s", 26.87, 1 / one.latency_s, HELD_OUT, _AIM, system=True),
        Row(
            chip, "prefill, time of a token", "ms", 4.2, 1e3 * prompt.latency_s / _CONTEXT, HELD_OUT, _AIM, system=True
        ),
        Row(chip, "energy without DRAM", "fJ/MAC", 2000 / 42.3, energy, HELD_OUT, _AIM, why, system=True),
    ]


def _hailo() -> list[Row]:
    """Hailo-10H: a roofline whose bandwidth is fitted on one published model and tried on another of the same shape.

    4-bit weights in groups (4.5 bits), 8-bit vocabulary; 20 TOPS of INT8 and 2.5 W as its maker states; the other row
    is of arXiv 2603.23640 (prompt of 258 tokens).
    """
    shape, phase = SHAPES["Qwen2.5-1.5B"], Phase.of("decode", 300)
    work = shape.work(phase, 4.5, 8)
    stored = sum(op.weight_bytes for op in work)
    constants = {"memory_bandwidth": 9.45 * stored, "compute_rate": 20e12, "board_power": 2.5}
    report = _priced(_machine("rpi5", constants), work, phase)
    rate, chip = 1 / report.latency_s, "Hailo-10H, 4 bits"
    why = "two published rows of one shape on one chip, 9.45 and 6.9 tokens/s: what differs is not the work"
    return [
        Row(f"{chip}, Qwen2-1.5B", "decode", "tokens/s", 9.45, rate, FITTED, 0.12, system=True),
        Row(f"{chip}, Qwen2.5-1.5B", "decode", "tokens/s", 6.9, rate, HELD_OUT, 0.12, why, system=True),
        Row(f"{chip}, Qwen2.5-1.5B", "energy per token (published: below)", "J", 2 / 6.9, report.energy_j, HELD_OUT,
            _AIM, system=True),
    ]  # fmt: skip
