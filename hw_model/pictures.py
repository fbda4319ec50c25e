"""Pictures of cost reports as SVG text: roofline, breakdowns, trade-offs, latency over context, sweeps.

Needs matplotlib (extra `report`). Every function returns the text of one <svg> element.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hw_model.plotting import Figure, matplotlib

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
    """Energy by component, one bar per report, as shares."""
    shown = [r for r in reports if r.get("components") and r.get("energy_j")]
    return _shares(shown, lambda r: _sums(r["components"], "name", "energy_j"), "share of modelled energy")


def area_breakdown(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """Area by component, one bar per report, as shares."""
    shown = [r for r in reports if r.get("components") and r.get("area_mm2")]
    return _shares(shown, lambda r: _sums(r["components"], "name", "area_mm2"), "share of modelled area")


def rest_breakdown(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """Power at rest by component, one bar per report, as shares."""
    shown = [r for r in reports if any(part.get("leakage_w") for part in r.get("components", ()))]
    return _shares(shown, lambda r: _sums(r["components"], "name", "leakage_w"), "share of modelled power at rest")


def kinds(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """Latency by kind of layer, one bar per report, as shares."""
    return _shares(reports, lambda r: _sums(r["by_kind"], "kind", "latency_s"), "share of modelled latency")


def energy_kinds(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """Energy by kind of layer, one bar per report, as shares."""
    shown = [r for r in reports if r.get("energy_j")]
    return _shares(shown, lambda r: _sums(r["by_kind"], "kind", "energy_j"), "share of modelled energy")


def _sums(rows: Sequence[Mapping[str, Any]], name: str, figure: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        found[row[name]] = found.get(row[name], 0.0) + (row[figure] or 0.0)
    return found


def _shares(
    reports: Sequence[Mapping[str, Any]], parts: Callable[[Mapping[str, Any]], dict[str, float]], label: str
) -> str | None:
    """One bar per report, cut into its parts, the largest first; parts below a thousandth everywhere are left out."""
    rows = [{name: value / (sum(row.values()) or 1.0) for name, value in row.items()} for row in map(parts, reports)]
    if not rows:
        return None
    totals = {name: sum(row.get(name, 0.0) for row in rows) for row in rows for name in row}
    order = sorted((name for name, total in totals.items() if total > 0.001), key=lambda name: -totals[name])
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    left, colors, palette = [0.0] * len(rows), matplotlib.colormaps["tab20"], sorted(totals)
    for name in order:
        shares = [row.get(name, 0.0) for row in rows]
        color = colors(palette.index(name) % 20)  # a name has one colour on every picture of the same parts
        axes.barh(range(len(rows)), shares, left=left, label=name, color=color)
        left = [a + b for a, b in zip(left, shares)]
    labels = [f"{r['target']} {r['phase']} {r['context']}" for r in reports]
    axes.set_yticks(range(len(rows)), labels, fontsize=_LABEL)
    axes.set_xlim(0, 1)
    axes.set_xlabel(label)
    figure.legend(fontsize=_LABEL, ncols=4, loc="outside upper center")
    return svg(figure)


def trade(points: Sequence[Mapping[str, Any]]) -> str | None:
    """Latency against energy per token of several targets and models; those that nothing dominates are ringed.

    A point: model (one colour each), target, latency_s, energy_j (of one token).
    """
    shown = [p for p in points if p["latency_s"] and p["energy_j"]]
    if len(shown) < 2:
        return None
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(dict.fromkeys(p["model"] for p in shown)):
        mine = [p for p in shown if p["model"] == model]
        axes.plot([1000 * p["latency_s"] for p in mine], [1000 * p["energy_j"] for p in mine], "o", label=model,
                  markersize=5, color=f"C{number % 10}")  # fmt: skip
    for p in shown:
        x, y = 1000 * p["latency_s"], 1000 * p["energy_j"]
        axes.annotate(p["target"], (x, y), fontsize=6, xytext=(4, 3), textcoords="offset points")
        if not any(
            q["latency_s"] <= p["latency_s"] and q["energy_j"] <= p["energy_j"] and q is not p
            and (q["latency_s"], q["energy_j"]) != (p["latency_s"], p["energy_j"]) for q in shown
        ):  # fmt: skip
            axes.plot(x, y, "o", markersize=10, fillstyle="none", color="red", markeredgewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("latency of a token, ms")
    axes.set_ylabel("energy of a token, mJ")
    axes.set_title("ringed: no other point is better in both", fontsize=_LABEL)
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=_LABEL, loc="outside right upper")
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
