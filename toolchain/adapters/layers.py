"""Layers of a model folder by the names that adapters trained elsewhere have for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from export.adapters.sites import Site

_WRAPPED = "language_model."  # of multimodal models, whose text model alone is exported
_MOST_PARTS = 100


def endings(sites: Sequence[Site]) -> dict[str, Site | None]:
    """Sites by every ending of their dotted names; None where an ending is of several."""
    found: dict[str, Site | None] = {}
    for site in {site.module: site for site in sites}.values():
        parts = site.module.split(".")
        for start in range(len(parts)):
            ending = ".".join(parts[start:])
            found[ending] = None if ending in found else site
        found[site.module] = site
    return found


def site_of(module: str, places: Mapping[str, Site | None]) -> Site | None:
    """The site of a module, which may lie in a wrapper, or be of the model without its head. places: of endings()."""
    parts = module.replace(_WRAPPED, "").split(".")
    if len(parts) < _MOST_PARTS:
        for start in range(len(parts)):  # the longest ending that is a site, or the end of one and no other
            found = places.get(".".join(parts[start:]))
            if found is not None and (start == 0 or found.module == ".".join(parts[start:])):
                return found
    return None
