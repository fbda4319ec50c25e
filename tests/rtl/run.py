"""The units of hw_model/rtl in gates: equality with the codec, area, energy; what `make rtl` runs.

    python -m tests.rtl.run [--write]

Random vectors with all corners check every unit, as source and as gates; the energies come from the tensors of a real
layer (scribe-6M of ../shared: gate projection of the third block), random ones where it is not there. What the plain
script gives must be targets/gates.toml to the byte, which the cost model reads; --write puts it there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.conftest import SHARED
from tests.rtl import tools
from tests.rtl.formats import FORMATS
from tests.rtl.nonlinear import NONLINEAR
from tests.rtl.units import RANDOM, UNITS, Tensors, Unit
from toolchain.evaluate.emulate import quantize_rows

GATES = Path(__file__).parents[2] / "targets" / "gates.toml"
PUBLISHED = (61.2, 57.8)  # % of area and power that QRazor's first version claims, without naming the baseline
_TOKENS, _ROWS = 24, 24
ALL = (*UNITS, *NONLINEAR, *FORMATS)


def real_tensors() -> Tensors:
    """Rows of a trained layer's weights and inputs as integers; random ones where ../shared is not there."""
    model, text = SHARED / "models" / "scribe-6M", SHARED / "text" / "scribe_valid.txt"
    if not (model.exists() and text.exists()):
        return Tensors.random(7)
    from export.graph.archs import model_spec
    from toolchain.calibrate import text as calibration
    from toolchain.calibrate.blocks import BlockRunner, get_weight
    from toolchain.source.checkpoint import SourceModel

    source = SourceModel(model)
    runner = BlockRunner(source, model_spec(source.config))
    ids = calibration.load_tokenizer(model).encode(calibration.read_text(text)[:4000]).ids[:128]
    hidden = runner.embed(np.asarray([ids], np.int64))
    for number in range(2):
        hidden = runner.run(runner.load_block(number), hidden)
    block, found = runner.load_block(2), []
    layer = block.get_submodule("mlp.gate_proj")
    handle = layer.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0][0].numpy().copy()))
    runner.run(block, hidden)
    handle.remove()
    weights, inputs = get_weight(layer), found[0]
    w = np.rint(weights / np.abs(weights).max(axis=1, keepdims=True) * 127).astype(np.int64)
    a = np.rint(inputs / np.abs(inputs).max() * 32767).astype(np.int64)
    return Tensors(w[:_ROWS], a[-_TOKENS:], "scribe-6M, block 2, mlp.gate_proj")


def check(unit: Unit, folder: Path) -> None:
    """Source against the reference on random vectors. Raises AssertionError at the first difference."""
    vectors, expected = unit.make(Tensors.random(1))
    found = tools.simulate(unit, vectors, folder / f"{unit.name}-source")
    _compare(unit, found, expected, "source")


def _compare(unit: Unit, found: dict, expected: dict, what: str) -> None:
    for port, values in expected.items():
        wanted = [int(v) for v in values]
        wrong = [i for i, (a, b) in enumerate(zip(found[port], wanted)) if a != b]
        assert len(found[port]) == len(wanted) and not wrong, f"{unit.name}.{port} ({what}): cycle {wrong[:1]} differs"


def measure(unit: Unit, script: str, tensors: Tensors, folder: Path, library: tools.Library) -> tuple[float, float]:
    """(um2, pJ a cycle) of the synthesized unit, after its gates have given the reference's outputs on the tensors."""
    place = folder / f"{unit.name}-{script.split()[0]}"
    netlist = tools.synthesize(unit, script, place)
    vectors, expected = unit.make(tensors)
    _compare(unit, tools.simulate(unit, vectors, place, netlist), expected, f"gates, {script}")
    cycles = len(next(iter(vectors.values())))
    return tools.area(unit, place, library), tools.energy(unit, place, library, cycles)


def tables(found: dict[tuple[str, str], tuple[float, float]], library: tools.Library) -> list[str]:
    """Areas and energies of all units, then what SDR saves against each baseline under both scripts."""
    lines = ["| unit | gate equivalents, plain / full adders | pJ a cycle, plain / full adders |", "|---|---|---|"]
    for unit in ALL:
        pair = [found[unit.name, script] for script in tools.SCRIPTS]
        areas = " / ".join(f"{a / library.gate_area:.0f}" for a, _ in pair)
        lines.append(f"| `{unit.name}` | {areas} | " + " / ".join(f"{e:.1f}" for _, e in pair) + " |")
    lines += [
        "",
        "| SDR saves against | plain: area, energy | full adders: area, energy | within 5 points of 61.2 / 57.8 % |",
    ]
    lines.append("|---|---|---|---|")
    for own, others in (
        ("sdr_mac", ("mac_4x4", "mac_8x8", "mac_8x16")),
        ("sdr_dot16", ("dot16_8x8", "dot16_8x16", "dot16_decompress", "dot16_4_fp16")),
    ):
        for other in others:
            cells, near = [], []
            for script in tools.SCRIPTS:
                saved = [100 * (1 - s / o) for s, o in zip(found[own, script], found[other, script])]
                cells.append(f"{saved[0]:.0f} %, {saved[1]:.0f} %")
                if all(abs(s - p) <= 5 for s, p in zip(saved, PUBLISHED)):
                    near.append(script)
            lines.append(f"| `{other}` | {cells[0]} | {cells[1]} | {', '.join(near) or 'no'} |")
    return lines


def activity(tensors: Tensors) -> dict[str, float]:
    """Shares that the energy of arrays depends on: ones and changes of bit-serial inputs, ones of weights."""
    inputs = _planes(quantize_rows(tensors.activations.astype(np.float64))[0])
    lines = inputs.transpose(1, 0, 2).reshape(inputs.shape[1], -1)  # [K, bits of all tokens], the lowest first
    return {
        "input_ones": float(inputs.mean()),
        "input_toggles": float((lines[:, 1:] != lines[:, :-1]).mean()),
        "weight_ones": float(_planes(tensors.weights).mean()),
    }


def _planes(values: np.ndarray) -> np.ndarray:
    """Bits of int8 numbers, the lowest first: uint8 [..., 8]."""
    return (values.astype(np.int8).view(np.uint8)[..., None] >> np.arange(8)) & 1  # type: ignore[no-any-return]


def results(
    found: dict[tuple[str, str], tuple[float, float]], library: tools.Library, source: str, measured: dict[str, float]
) -> str:
    """targets/gates.toml."""
    lines = [
        f"# python -m tests.rtl.run --write: yosys, plain script, osu018 at {tools.VOLTS} V; activity of {source}.",
        f"gate_capacitance_pf = {library.gate_capacitance:.6f}  # both inputs of NAND2X1",
        f"volts = {tools.VOLTS}",
    ]
    for unit in ALL:
        area, energy = found[unit.name, "plain"]
        lines += ["", f"[{unit.name}]", f"macs = {unit.macs}"]
        lines += [f"gate_equivalents = {area / library.gate_area:.1f}", f"energy_pj = {energy:.3f}  # a cycle"]
    lines += [
        "",
        "[activity]  # of int8 weights and activations, a power of two as unit of each token, lowest bit first",
    ]
    lines += [f"{name} = {value:.4f}" for name, value in measured.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the figures for the cost model")
    args = parser.parse_args()
    if lacking := tools.missing():
        print(f"rtl: skipped, {lacking}")
        return
    library, tensors = tools.Library.read(), real_tensors()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for unit in ALL:
            check(unit, Path(scratch))
            for script in tools.SCRIPTS:
                found[unit.name, script] = measure(unit, script, tensors, Path(scratch), library)
            print(f"{unit.name}: equal to the reference, as source and as gates", file=sys.stderr, flush=True)
    print(f"Activity: {tensors.source}.\n")
    print("\n".join(tables(found, library)))
    text = results(found, library, tensors.source, activity(tensors))
    if args.write:
        GATES.write_text(text)
    elif tensors.source == RANDOM:
        print("\nActivity is random: nothing to compare targets/gates.toml with.")
    elif text != GATES.read_text():
        sys.exit(f"\ntargets/gates.toml is not what was measured; --write stores it:\n{text}")
    else:
        print("\ntargets/gates.toml: as measured.")


if __name__ == "__main__":
    main()
