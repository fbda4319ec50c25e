"""Renders report.html from the report's data: one self-contained page, pictures as inlined SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from toolchain.units import engineering, size_text

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(report: Mapping[str, Any]) -> str:
    """The page as HTML; every value from the report is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.globals.update(bytes=size_text, eng=engineering, final=final_loss)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=report["provenance"]["source"]["name"], pictures=_pictures(report), **report
    )


def final_loss(losses: Mapping[str, float]) -> float | None:
    """The relative layer loss after the quantizer's last step."""
    steps = [value for name, value in losses.items() if name != "damping"]
    return steps[-1] if steps else None


def _pictures(report: Mapping[str, Any]) -> dict[str, Any]:
    try:
        import matplotlib
    except ImportError:
        return {"layers": None, "cost": None}
    matplotlib.use("svg")
    return {"layers": _layer_picture(report["tensors"]), "cost": _cost_picture(report["cost"])}


def _layer_picture(tensors: list[dict[str, Any]]) -> Markup | None:
    from matplotlib.figure import Figure

    layers = [t for t in tensors if final_loss(t["losses"]) is not None]
    if not layers:
        return None
    figure = Figure(figsize=(9, 4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    places = range(len(layers))
    for step in ("rounding", "clustering", "sweep"):
        values = [t["losses"].get(step) for t in layers]
        if any(v is not None for v in values):
            top.plot(places, values, ".-", linewidth=0.8, markersize=4, label=step)
    top.plot(places, [final_loss(t["losses"]) for t in layers], ".-", color="black", linewidth=1.2, label="stored")
    top.set_yscale("log")
    top.set_ylabel("relative loss")
    top.legend(fontsize=8, ncols=4)
    bottom.bar(places, [t["effective_bits"] for t in layers], color="#1769aa")
    bottom.set_ylabel("effective bits")
    bottom.set_xlabel("linear layer, forward order")
    return _svg(figure)


def _cost_picture(costs: list[dict[str, Any]]) -> Markup | None:
    from matplotlib.figure import Figure

    if not costs:
        return None
    figure = Figure(figsize=(9, 0.8 + 0.6 * len(costs)), layout="constrained")
    axes = figure.subplots()
    kinds = sorted({k["kind"] for c in costs for k in c["by_kind"]})
    left = [0.0] * len(costs)
    labels = [f"{c['target']} {c['phase']} {c['context']}" for c in costs]
    for kind in kinds:
        shares = [sum(k["latency_s"] for k in c["by_kind"] if k["kind"] == kind) / c["latency_s"] for c in costs]
        axes.barh(labels, shares, left=left, label=kind)
        left = [a + b for a, b in zip(left, shares)]
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of modelled latency")
    axes.legend(fontsize=7, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _svg(figure)


def _svg(figure: Any) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])
