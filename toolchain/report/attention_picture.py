"""The picture of sparse attention: the pages that queries expect to matter, and those that dense attention looks at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.files.json_shape import COUNT, NUMBER, Maybe

_MAP = [[NUMBER]]
SPARSE = {  # a report's section
    "keys": COUNT,
    "layers": COUNT,
    "quality?": Maybe({"ratio": Maybe(NUMBER), "kl": Maybe(NUMBER), "tokens": COUNT, "window": COUNT}),
    "maps?": Maybe({"tokens": COUNT, "layers": [COUNT], "expected": [_MAP], "attention": [_MAP]}),
}


def attention_picture(maps: Mapping[str, Any] | None) -> str | None:
    """SVG of the section's maps, a column for each layer; None where there are none."""
    if not maps or not maps["layers"]:
        return None
    import numpy as np

    from hw_model.pictures import svg
    from hw_model.plotting import Figure

    columns = min(len(maps[name]) for name in ("layers", "expected", "attention"))
    figure = Figure(figsize=(9, 5), layout="constrained")
    grid = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    for row, (name, title) in zip(grid, (("expected", "expected"), ("attention", "attention"))):
        for axes, layer, shares in zip(row, maps["layers"], maps[name]):
            tokens = maps["tokens"]
            # square roots: a page of a hundredth is to be seen beside one of a half
            axes.imshow(np.sqrt(np.asarray(shares)), cmap="magma", extent=(0, tokens, tokens, 0), vmin=0, vmax=0.7)
            axes.set_title(f"layer {layer}: {title}", fontsize=8)
            axes.tick_params(labelsize=7)
    grid[1][0].set_xlabel("position of the keys", fontsize=8)
    grid[1][0].set_ylabel("position of the query", fontsize=8)
    return svg(figure)
