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

from export.archs import model_spec
from export.files import MANIFEST, read_json, without_infinity, write_bytes, write_json
from hw_model.estimate import estimate

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
_MEASURED = ("perplexity", "stderr", "nats_per_token")  # in every evaluation
_COMPARED = ("reference_perplexity", "kl", "kl_stderr")  # in one with a reference
_DEFAULT_TARGETS = ["rpi5", "laptop-x86", "attentionlego", "digital-sram-pim", "rap", "qrazor-pim", "tender"]


def new_report(folder: Path) -> dict[str, Any]:
    """The report of a freshly packaged folder: what was stored, at what layer loss, and the modelled cost."""
    manifest = read_json(folder / MANIFEST)
    config = read_json(folder / "config.json")
    totals = manifest["totals"]
    files = {name: (folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data")}
    context = min(1024, int(config.get("max_position_embeddings") or config.get("n_positions") or 1024))
    report = {
        "format_version": 1,
        "provenance": {
            "source": manifest["source"],
            "settings": manifest["settings"],
            "calibration": manifest["calibration"],
            "fingerprint": manifest["fingerprint"],
            "tool_version": manifest["tool_version"],
        },
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
    costs = [r.to_json() for r in estimate(folder, _DEFAULT_TARGETS, phase, context)]
    names = " ".join(f"--target {name}" for name in _DEFAULT_TARGETS)
    command = f"athena-export cost FOLDER {names} --phase {phase} --context {context}"
    report["cost"] = [{**c, "command": command} for c in costs]
    return report


def read_report(folder: Path) -> dict[str, Any]:
    """The report; what is infinite, and null in the file because JSON has no infinity, is infinite again.

    Raises InputError when it is missing or broken.
    """
    report = read_json(folder / REPORT_JSON)
    quality = report.get("quality")
    if isinstance(quality, dict):
        compared = _COMPARED if quality.get("top1_agreement") is not None else ()
        for name in (*_MEASURED, *compared):
            if name in quality and quality[name] is None:
                quality[name] = math.inf
    return report


def save_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json and report.html, each atomically."""
    from toolchain.report_page import render

    write_json(folder / REPORT_JSON, without_infinity(report))
    write_bytes(folder / REPORT_HTML, render(report).encode())


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
