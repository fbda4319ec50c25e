"""Simulation with iverilog, synthesis with yosys to a liberty library, and switching energy from a VCD."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.rtl.units import Unit

SOURCES = Path(__file__).parents[2] / "hw_model" / "rtl"
LIBRARY = Path("/usr/share/qflow/tech/osu018")
LIBERTY, CELLS = LIBRARY / "osu018_stdcells.lib", LIBRARY / "osu018_stdcells.v"
VOLTS = 1.8  # of osu018
SCRIPTS = ("plain", "full adders")
_LIMIT = 600  # seconds for one tool; a float32 divider takes a minute


def missing() -> str:
    """What is not installed, with how to get it; "" when everything is there."""
    wanted = [name for name in ("yosys", "iverilog", "vvp") if shutil.which(name) is None]
    wanted += [str(path) for path in (LIBERTY, CELLS) if not path.exists()]
    if not wanted:
        return ""
    return f"{', '.join(wanted)} missing: apt-get install yosys iverilog qflow-tech-osu018"


def simulate(unit: Unit, vectors: dict, folder: Path, netlist: Path | None = None) -> dict[str, list[int]]:
    """Outputs after every clock edge, as integers by port. netlist: gates, not the source; writes folder/x.vcd."""
    width = sum(unit.inputs.values())
    cycles = len(next(iter(vectors.values())))
    words = []
    for cycle in range(cycles):
        word, at = 0, 0
        for port, bits in unit.inputs.items():
            word |= (int(vectors[port][cycle]) & ((1 << bits) - 1)) << at
            at += bits
        words.append(f"{word:x}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vectors.hex").write_text("\n".join(words) + "\n")
    connections, at = [".clk(clk)"], 0
    for port, bits in unit.inputs.items():
        connections.append(f".{port}(in[{at + bits - 1}:{at}])")
        at += bits
    at = 0
    for port, bits in unit.outputs.items():
        connections.append(f".{port}(out[{at + bits - 1}:{at}])")
        at += bits
    dump = '$dumpfile("x.vcd"); $dumpvars(0, dut);' if netlist else ""
    (folder / "bench.v").write_text(
        f"""module bench;
    reg clk = 0;
    reg [{width - 1}:0] vectors [0:{cycles - 1}];
    reg [{width - 1}:0] in;
    wire [{at - 1}:0] out;
    integer i, file;
    {unit.name} dut ({", ".join(connections)});
    initial begin
        $readmemh("vectors.hex", vectors);
        file = $fopen("out.hex");
        {dump}
        for (i = 0; i < {cycles}; i = i + 1) begin
            in = vectors[i];
            #5 clk = 1;
            #5 $fdisplay(file, "%h", out);
            clk = 0;
        end
        $fclose(file);
        $finish;
    end
endmodule
"""
    )
    sources = [str(netlist.resolve()), str(CELLS)] if netlist else [str(path) for path in sources_of(unit.name)]
    _run(["iverilog", "-g2005", "-o", "bench.vvp", "bench.v", *sources], folder)
    _run(["vvp", "-n", "bench.vvp"], folder)
    found: dict[str, list[int]] = {port: [] for port in unit.outputs}
    for line in (folder / "out.hex").read_text().split():
        word, at = int(line, 16), 0
        for port, bits in unit.outputs.items():
            value = (word >> at) & ((1 << bits) - 1)
            at += bits
            signed = port == "acc" and unit.name != "dot16_4_fp16"
            found[port].append(value - (1 << bits) if signed and value >> (bits - 1) else value)
    return found


def sources_of(module: str) -> list[Path]:
    """The files that a module and what it is made of are in, no others: yosys numbers everything that it reads, and abc
    maps another numbering to slightly other gates."""
    files = [path for path in sorted(SOURCES.glob("*.v")) if path.name != "full_adder_map.v"]
    texts = {path: re.sub("//.*", "", path.read_text()) for path in files}
    places = {name: path for path, text in texts.items() for name in re.findall(r"^module (\w+)", text, re.MULTILINE)}
    found, ahead = set[Path](), [module]
    while ahead:
        path = places[ahead.pop()]
        if path not in found:
            found.add(path)
            ahead += [name for name in places if re.search(rf"\b{name}\b", texts[path])]
    return sorted(found)


def synthesize(unit: Unit, script: str, folder: Path) -> Path:
    """The unit in gates of the library: folder/gates.v (returned) and folder/gates.json. The scripts are frozen."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = " ".join(str(path) for path in sources_of(unit.name))
    start = f"synth -top {unit.name} -noshare -run begin:fine\nopt -fast -full\n"
    if script == "full adders":  # carry-save adders of products and sums become cells before anything is dissolved
        start += f"maccmap\ntechmap -map {SOURCES / 'full_adder_map.v'}\n"
    mapping = f"{start}flatten\nsynth -top {unit.name} -noshare -run fine:"
    commands = f"""
read_liberty -lib {LIBERTY}
read_verilog {sources}
{mapping}
dfflibmap -liberty {LIBERTY}
abc -liberty {LIBERTY} -script +strash;dc2;dc2;map,-a;topo
opt_clean -purge
check -assert
write_verilog -noattr -noexpr -norename gates.v
write_json gates.json
"""
    (folder / "synthesis.ys").write_text(commands)
    _run(["yosys", "-q", "-s", "synthesis.ys"], folder)
    return folder / "gates.v"


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_LIMIT)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} in {folder} failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")


@dataclass(frozen=True)
class Library:
    """Areas (um2) of the cells, capacitances (pF) of their input pins."""

    areas: dict[str, float]
    pins: dict[tuple[str, str], float]

    @staticmethod
    def read() -> Library:
        areas: dict[str, float] = {}
        pins: dict[tuple[str, str], float] = {}
        cell = pin = ""
        for line in LIBERTY.read_text().split("\n"):
            if found := re.match(r"\s*cell\s*\((\w+)\)", line):
                cell = found[1]
            elif found := re.match(r"\s*area\s*:\s*([\d.]+)", line):
                areas.setdefault(cell, float(found[1]))
            elif found := re.match(r"\s*pin\s*\((\w+)\)", line):
                pin = found[1]
            elif found := re.match(r"\s*capacitance\s*:\s*([\d.]+)", line):
                pins.setdefault((cell, pin), float(found[1]))
        return Library(areas, pins)

    @property
    def gate_area(self) -> float:
        """um2 of the two-input NAND, the unit of gate equivalents."""
        return self.areas["NAND2X1"]

    @property
    def gate_capacitance(self) -> float:
        """pF of both inputs of that NAND."""
        return self.pins["NAND2X1", "A"] + self.pins["NAND2X1", "B"]


def area(unit: Unit, folder: Path, library: Library) -> float:
    """um2 of all cells."""
    cells = json.loads((folder / "gates.json").read_text())["modules"][unit.name]["cells"]
    return sum(library.areas[cell["type"]] for cell in cells.values())


def energy(unit: Unit, folder: Path, library: Library, cycles: int) -> float:
    """pJ a cycle: every toggle of a net in folder/x.vcd charges or discharges the input pins on it, half of C V^2.

    The clock counts; wires, glitches and what switches inside a cell do not.
    """
    module = json.loads((folder / "gates.json").read_text())["modules"][unit.name]
    load: dict[int, float] = {}
    for cell in module["cells"].values():
        for pin, bits in cell["connections"].items():
            if cell["port_directions"][pin] == "input" and isinstance(bits[0], int):
                load[bits[0]] = load.get(bits[0], 0.0) + library.pins[cell["type"], pin]
    toggles, seen = _toggles(folder / "x.vcd", {name: net["bits"] for name, net in module["netnames"].items()})
    if unseen := set(load) - seen:
        raise RuntimeError(f"{unit.name}: {len(unseen)} of {len(load)} nets are not in the VCD")
    return sum(0.5 * load.get(bit, 0.0) * VOLTS**2 * count for bit, count in toggles.items()) / cycles


def _toggles(vcd: Path, nets: dict[str, list]) -> tuple[dict[int, int], set[int]]:
    """Toggles of each net of the netlist, by its number, and all nets that were watched.

    Names that stand for the same net are read once.
    """
    watched: dict[str, list] = {}
    taken: set[int] = set()
    counts: dict[int, int] = {}
    last: dict[str, str] = {}
    depth = 0
    with open(vcd) as file:
        for line in file:
            words = line.split()
            if line.startswith("$scope"):
                depth += 1
            elif line.startswith("$upscope"):
                depth -= 1
            elif line.startswith("$var") and depth == 2:  # inside bench, inside dut; not inside its cells
                code, name = words[3], words[4].removeprefix("\\").replace("\\\\", "\\")
                bits = [b if isinstance(b, int) and b not in taken else None for b in nets.get(name, [])]
                if any(b is not None for b in bits):
                    watched[code] = bits
                    taken.update(b for b in bits if b is not None)
            elif words and words[0][0] in "01xzb" and not line.startswith("$"):
                value, code = (words[0][1:], words[1]) if words[0][0] == "b" else (words[0][0], words[0][1:])
                if code not in watched:
                    continue
                value = value.rjust(len(watched[code]), "0" if value[0] in "01" else value[0])
                old = last.get(code)
                last[code] = value
                if old is None:
                    continue
                for bit, before, after in zip(watched[code], reversed(old), reversed(value)):
                    if bit is not None and before != after and before in "01" and after in "01":
                        counts[bit] = counts.get(bit, 0) + 1
    return counts, taken
