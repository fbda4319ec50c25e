"""Renders report.html from the report's data: one self-contained page, pictures as inlined SVG."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from export.artefacts.records import final_loss
from toolchain.report.attention_picture import attention_picture
from toolchain.system.units import engineering, figure, size_text

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_CARDS = 2  # targets whose cost is shown at the top


def render(report: Mapping[str, Any]) -> str:
    """The page as HTML; every value from the report is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.globals.update(bytes=size_text, eng=engineering, figure=figure, final=final_loss)
    data = {"speed": None, "encoder": False, "sparse": None, **report}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=report["provenance"]["source"]["name"], pictures=_pictures(report), cards=report["cost"][:_CARDS], **data
    )


def _pictures(report: Mapping[str, Any]) -> dict[str, Any]:
    """SVG by name; None for what has no data, and for all without matplotlib."""
    names = ("layers", "heat", "kinds", "energy", "roofline", "attention")
    try:
        from hw_model import pictures
    except ImportError:
        return dict.fromkeys(names)
    costs, tensors, sparse = report["cost"], report["tensors"], report.get("sparse") or {}
    found = (
        _layer_picture(tensors), _heat_picture(tensors), pictures.kinds(costs), pictures.energy_breakdown(costs),
        pictures.roofline(costs), attention_picture(sparse.get("maps")),
    )  # fmt: skip
    return {name: Markup(picture) if picture else None for name, picture in zip(names, found)}


def _layer_picture(tensors: list[dict[str, Any]]) -> str | None:
    from hw_model.pictures import svg
    from hw_model.plotting import Figure

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
    return svg(figure)


def _short_names(names: set[str]) -> dict[str, str]:
    """Of each dotted name the shortest end that no other one has."""
    found = {}
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        found[name] = next(e for e in ends if e == name or sum(f".{n}".endswith(f".{e}") for n in names) == 1)
    return found


def _heat_picture(tensors: Sequence[Mapping[str, Any]]) -> str | None:
    """Two maps, layer by matrix: logarithm of the final loss, and effective bits."""
    import numpy as np

    from hw_model.pictures import svg
    from hw_model.plotting import Figure

    cells: dict[tuple[str, int], tuple[float, float]] = {}
    places = [(t, re.search(r"\.(\d+)\.(.+)$", t["name"])) for t in tensors if t["losses"]]
    labels = _short_names({found[2] for _, found in places if found})
    for t, found in places:
        loss = final_loss(t["losses"])
        if found and loss:
            cells[labels[found[2]], int(found[1])] = (float(np.log10(loss)), t["effective_bits"])
    if not cells:
        return None
    names, layers = list(dict.fromkeys(name for name, _ in cells)), max(layer for _, layer in cells) + 1
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(names)), layout="constrained")
    for axes, index, title, map_name in zip(
        figure.subplots(1, 2), (0, 1), ("log10 of the relative loss", "effective bits"), ("magma", "viridis")
    ):
        grid = np.full((len(names), layers), np.nan)
        for (name, layer), values in cells.items():
            grid[names.index(name), layer] = values[index]
        image = axes.imshow(grid, aspect="auto", cmap=map_name, interpolation="nearest")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xlabel("layer", fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=axes)
    return svg(figure)
