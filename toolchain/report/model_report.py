"""report.json and report.html of a model folder: size, layer errors, quality, cost. Every figure says where it is from.

report.json holds the data; report.html is rendered from it alone, self-contained, and rendered again whenever `eval`
or `cost` add a section. Pictures need matplotlib (extra `report`); without it the page has the tables only.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.artefacts.manifest import CALIBRATION, SETTINGS, SOURCE, TENSOR, TOTALS, read_manifest
from export.files.access import read_json, without_infinity, write_bytes, write_json
from export.files.foreign import foreign
from export.files.json_shape import COUNT, FLAG, NUMBER, TEXT, Each, Maybe, check
from export.graph.archs import model_spec
from hw_model.estimate import has_rules, open_target, price, workload
from hw_model.graph_work.workload import Phase
from toolchain.report.attention_picture import SPARSE

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
_MEASURED = ("perplexity", "stderr", "nats_per_token")  # in every evaluation
_COMPARED = ("reference_perplexity", "kl", "kl_stderr")  # in one with a reference
_DEFAULT_TARGETS = ["rpi5", "laptop-x86", "attentionlego", "digital-sram-pim", "rap", "qrazor-pim", "tender"]
_PROVENANCE = ("source", "settings", "calibration", "fingerprint", "tool_version")
_FIGURE = Maybe(NUMBER)  # infinite where null
_QUALITY = {
    "text?": Maybe(TEXT),
    "tokens?": COUNT,
    "reference_perplexity?": _FIGURE,
    "kl?": _FIGURE,
    "top1_agreement?": _FIGURE,
    **dict.fromkeys([f"{name}?" for name in _MEASURED], _FIGURE),
}
_RATE = {"tokens_per_s": NUMBER}
_COST = {
    "target": TEXT,
    "phase": TEXT,
    "context": COUNT,
    "tokens": COUNT,
    "latency_s": _FIGURE,
    "energy_j": _FIGURE,
}
_FIELDS = {
    "provenance": {"source": SOURCE, "settings": SETTINGS, "calibration?": CALIBRATION},
    "size": {**TOTALS, "file_bytes": COUNT, "float16_bytes": COUNT, "files?": Each(COUNT)},
    "tensors": [{**TENSOR, "losses": Each(_FIGURE)}],
    "encoder?": FLAG,
    "quality": Maybe(_QUALITY),
    "speed?": Maybe({"decode?": _RATE, "prefill?": _RATE}),
    "cost": [_COST],
    "sparse?": Maybe(SPARSE),
}


def new_report(folder: Path) -> dict[str, Any]:
    """The report of a freshly packaged folder: what was stored, at what layer loss, and the modelled cost."""
    manifest = read_manifest(
        folder, "tensors", "totals", "settings", "source", "calibration", "fingerprint", "tool_version"
    )
    config = read_json(folder / "config.json")
    totals = manifest["totals"]
    files = {name: (folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data")}
    context = min(1024, model_spec(config).context_length)
    report = {
        "format_version": 1,
        "provenance": {name: manifest[name] for name in _PROVENANCE},
        "size": {
            "tag": "measured",
            **totals,
            "files": files,
            "file_bytes": sum(files.values()),
            "float16_bytes": 2 * totals["parameters"],
            "command": "athena-export inspect FOLDER",
        },
        "tensors": manifest["tensors"],
        "encoder": not model_spec(config).causal,
        "quality": None,
        "speed": None,
        "cost": [],
    }
    phase = "decode" if model_spec(config).causal else "prefill"
    work = workload(folder, phase, context)
    able = [name for name in _DEFAULT_TARGETS if has_rules(open_target(name), work)]
    costs = [price(work, Phase.of(phase, context), open_target(name)).to_json() for name in able]
    names = " ".join(f"--target {name}" for name in able)
    command = f"athena-export cost FOLDER {names} --phase {phase} --context {context}"
    report["cost"] = [{**c, "command": command} for c in costs]
    return report


def read_report(folder: Path) -> dict[str, Any]:
    """The report; what is infinite, and null in the file because JSON has no infinity, is infinite again.

    Raises InputError when it is missing or broken, or holds something else than a report does.
    """
    report = read_json(folder / REPORT_JSON)
    check(report, _FIELDS, f"{folder / REPORT_JSON}: ")
    quality = report.get("quality")
    if isinstance(quality, dict):
        compared = _COMPARED if quality.get("top1_agreement") is not None else ()
        for name in (*_MEASURED, *compared):
            if name in quality and quality[name] is None:
                quality[name] = math.inf
    return report


def save_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json and report.html, each atomically. Raises InputError when the report cannot be shown."""
    from toolchain.report.page import render

    with foreign(folder / REPORT_JSON, "cannot be shown as a page"):
        page = render(report).encode(errors="backslashreplace")
    write_json(folder / REPORT_JSON, without_infinity(report))
    write_bytes(folder / REPORT_HTML, page)


def add_quality(folder: Path, quality: dict[str, Any]) -> None:
    """Put an evaluation into the folder's report, replacing an earlier one."""
    report = read_report(folder)
    report["quality"] = {"tag": "measured", **quality}
    save_report(folder, report)


def add_speed(folder: Path, speed: dict[str, Any], command: str) -> None:
    """Put a measurement of `bench` into the folder's report, replacing an earlier one."""
    report = read_report(folder)
    machine = platform.machine() + (f" {model}" if (model := _processor()) else "")
    report["speed"] = {"tag": "measured", "machine": machine, "command": command, **speed}
    save_report(folder, report)


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    lines = (line.partition(":") for line in text.split("\n"))
    return next((value.strip() for name, _, value in lines if name.strip() in ("model name", "Model")), "")


def add_costs(folder: Path, costs: list[dict[str, Any]]) -> None:
    """Put cost estimates into the folder's report; the same target, phase and context is replaced."""
    report = read_report(folder)
    fresh = {(c["target"], c["phase"], c["context"]) for c in costs}
    kept = [c for c in report["cost"] if (c["target"], c["phase"], c["context"]) not in fresh]
    report["cost"] = kept + costs
    save_report(folder, report)
