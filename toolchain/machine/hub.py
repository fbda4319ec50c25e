"""The models that Hugging Face's cache on this machine holds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from export.contract.errors import InputError
from toolchain.machine.fit import Sizes

_LATER_PART = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$")  # the first stands for all parts of a model


@dataclass(frozen=True)
class CachedModel:
    """One model of the cache: a name or file that `export` takes, and its sizes or why it cannot be exported."""

    name: str
    model_type: str | None = None
    sizes: Sizes | None = None
    refused: str | None = None


def hub_folder() -> Path:
    """Where huggingface_hub keeps models, by HF_HUB_CACHE and its kin where it is not installed, too."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE)
    except ModuleNotFoundError:
        return Path.home() / ".cache" / "huggingface" / "hub"


def cached_models() -> Iterator[CachedModel]:
    """All models of the cache by name, the newest revision of each. Broken entries of the cache are passed over."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(hub_folder()).repos
    except (CacheNotFound, ValueError):  # none yet; a file in its place
        return
    for repository in sorted(repositories, key=lambda one: str(one.repo_id)):
        if repository.repo_type == "model" and repository.revisions:
            newest = max(repository.revisions, key=lambda one: one.last_modified)
            yield from _of_snapshot(str(repository.repo_id), newest.snapshot_path)


def _of_snapshot(name: str, folder: Path) -> Iterator[CachedModel]:
    files = [] if (folder / "config.json").exists() else sorted(folder.rglob("*.gguf"))
    files = [file for file in files if not _LATER_PART.search(file.name)]
    for place in files or [folder]:
        shown = str(place) if files else name
        try:
            yield _looked_at(shown, place)
        except InputError as error:
            yield CachedModel(shown, refused=str(error).removeprefix(f"{place}: ").replace(f"{folder}{os.sep}", ""))


def _looked_at(name: str, place: Path) -> CachedModel:
    """Reads headers alone. Raises InputError as `export` would."""
    from toolchain.source.checkpoint import resolve
    from toolchain.source.heads import open_model

    source, spec = open_model(resolve(str(place)))
    return CachedModel(name, spec.model_type, Sizes.of(spec, source.config))
