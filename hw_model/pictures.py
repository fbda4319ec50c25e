"""Pictures of cost reports as SVG text: roofline, energy breakdown, latency over context, and what a sweep found.

Needs matplotlib (extra `report`). Every function returns the text of one <svg> element.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib.figure import Figure

_LABEL = 8  # points


def svg(figure: Figure) -> str:
    """The figure as one <svg> element, the same bytes every time."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "athena", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def roofline(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """Operations per byte of outside memory against operations per second, one roof and one dot per report."""
    shown = [r for r in reports if r.get("peak_macs_per_s") and r.get("memory_bytes", 0) > 0]
    if not shown:
        return None
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    intensities = [2 * r["macs"] / r["memory_bytes"] for r in shown]
    low, high = min(intensities) / 8, max(intensities) * 64
    for number, (r, intensity) in enumerate(zip(shown, intensities)):
        peak, slope = 2 * r["peak_macs_per_s"], r["memory_bytes_per_s"]
        ridge = peak / slope
        xs = sorted({low, min(max(ridge, low), max(high, ridge)), max(high, ridge)})
        (line,) = axes.plot(xs, [min(x * slope, peak) for x in xs], linewidth=1, color=f"C{number % 10}")
        label = f"{r['target']} {r['phase']} {r['context']}"
        axes.plot(intensity, 2 * r["macs"] / r["latency_s"], "o", color=line.get_color(), label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte read from outside memory")
    axes.set_ylabel("operations per second")
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=_LABEL, loc="outside right upper")
    return svg(figure)


def energy_breakdown(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """Energy per token by component, one bar per report, as shares."""
    shown = [r for r in reports if r.get("components") and r.get("energy_j")]
    if not shown:
        return None
    names: dict[str, float] = {}
    for r in shown:
        for c in r["components"]:
            names[c["name"]] = names.get(c["name"], 0.0) + c["energy_j"] / r["energy_j"]
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(shown)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{r['target']} {r['phase']} {r['context']}" for r in shown]
    left = [0.0] * len(shown)
    colors = matplotlib.colormaps["tab20"]
    order = sorted((n for n, v in names.items() if v > 0.001), key=lambda n: -names[n])
    for i, name in enumerate(order):
        shares = [sum(c["energy_j"] for c in r["components"] if c["name"] == name) / r["energy_j"] for r in shown]
        axes.barh(range(len(shown)), shares, left=left, label=name, color=colors(i % 20))
        left = [a + b for a, b in zip(left, shares)]
    axes.set_yticks(range(len(shown)), labels, fontsize=_LABEL)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of modelled energy")
    figure.legend(fontsize=_LABEL, ncols=4, loc="outside upper center")
    return svg(figure)


def kinds(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """Latency by kind of layer, one bar per report, as shares."""
    if not reports:
        return None
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(reports)), layout="constrained")
    axes = figure.subplots()
    names = sorted({k["kind"] for r in reports for k in r["by_kind"]})
    left = [0.0] * len(reports)
    for name in names:
        shares = [sum(k["latency_s"] for k in r["by_kind"] if k["kind"] == name) / r["latency_s"] for r in reports]
        axes.barh(range(len(reports)), shares, left=left, label=name)
        left = [a + b for a, b in zip(left, shares)]
    axes.set_yticks(
        range(len(reports)), [f"{r['target']} {r['phase']} {r['context']}" for r in reports], fontsize=_LABEL
    )
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of modelled latency")
    figure.legend(fontsize=_LABEL, ncols=5, loc="outside upper center")
    return svg(figure)


def latency_over_context(generations: Sequence[Mapping[str, Any]]) -> str | None:
    """A token's latency while the context grows, one line per target."""
    shown = [g for g in generations if len(g["contexts"]) > 1]
    if not shown:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, g in enumerate(shown):
        style = "-" if number < 10 else "--"
        axes.plot(g["contexts"], [1000 * s for s in g["token_s"]], style, marker=".", linewidth=1, label=g["target"])
    axes.set_yscale("log")
    axes.set_xlabel("tokens in the context")
    axes.set_ylabel("ms per token")
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=_LABEL, loc="outside right upper")
    return svg(figure)


def pareto(points: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> str:
    """Latency against energy of a sweep's points, coloured by area; those that nothing dominates are ringed."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    x = [1000 * p["latency_s"] for p in points]
    y = [1000 * (p["energy_j"] or 0.0) for p in points]
    dots = axes.scatter(x, y, c=[p["area_mm2"] or 0.0 for p in points], s=14, cmap="viridis")
    best = [i for i, p in enumerate(points) if p["best"]]
    axes.scatter([x[i] for i in best], [y[i] for i in best], s=60, facecolors="none", edgecolors="red", linewidths=0.8)
    for i in best[:12]:
        text = ", ".join(f"{points[i][n]:g}" if isinstance(points[i][n], float) else str(points[i][n]) for n in varied)
        axes.annotate(text, (x[i], y[i]), fontsize=6, xytext=(4, 3), textcoords="offset points")
    figure.colorbar(dots, label="mm2")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("energy, mJ")
    axes.set_title(f"labels: {', '.join(varied)}; ringed: no other variant is better in all three", fontsize=_LABEL)
    axes.grid(alpha=0.3, which="both")
    return svg(figure)
