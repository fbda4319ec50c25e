"""The picture of sparse attention: the pages that queries expect to matter, and those that dense attention looks at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.files.json_shape import COUNT, NUMBER, Maybe

_MAP = [[NUMBER]]
_MOST_COLUMNS, _MOST_CELLS = 8, 64
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

    columns = len(maps["layers"])
    every = [one for name in ("expected", "attention") for one in maps[name]]
    square = all(len(row) == len(one) and 0 < len(one) <= _MOST_CELLS for one in every for row in one or [[]])
    if columns > _MOST_COLUMNS or len(every) != 2 * columns or len(maps["expected"]) != columns or not square:
        raise ValueError(f"maps that are not squares of up to {_MOST_CELLS} of up to {_MOST_COLUMNS} layers")
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
