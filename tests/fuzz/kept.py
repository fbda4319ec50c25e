"""A file of the prompt cache under attack: whatever it holds, the answer is that of a start without it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from runtime_py.engine.saved import BLOCK

FILE = "kept"  # the cache's own names hold digests, which change with the model
_PROMPT = [1 + i % 50 for i in range(BLOCK + 2)]


def prompt_folder(model: Path, folder: Path) -> Path:
    """A folder with one kept part of a prompt of `model`."""
    cached = _cache(model, folder)
    state = _runner(model).new_state()
    _runner(model).forward(state, _PROMPT, last_only=True)
    cached.keep(state, _PROMPT)
    cached.close()
    (path,) = folder.glob("*.part")
    path.rename(folder / FILE)
    (folder / "model").symlink_to(model)
    (folder / "name").write_text(path.name)
    return folder


def use_prompt_cache(folder: Path) -> None:
    """Start from the file, and go on. Raises InputError where nothing was taken from it."""
    model = (folder / "model").resolve()
    runner = _runner(model)
    (folder / (folder / "name").read_text()).write_bytes((folder / FILE).read_bytes())
    cached = _cache(model, folder)
    state = runner.new_state()
    found = cached.restore(state, _PROMPT)
    cached.close()
    logits = runner.forward(state, _PROMPT[found:], last_only=True)
    assert logits.tobytes() == _alone(model), "another answer"
    if not found:
        raise InputError("nothing was found")


@cache
def _runner(model: Path) -> Any:
    from runtime_py.load import open_model

    return open_model(model, threads=1, mapped=True)[0]


@cache
def _alone(model: Path) -> bytes:
    return _runner(model).forward(_runner(model).new_state(), _PROMPT, last_only=True).tobytes()


def _cache(model: Path, folder: Path) -> Any:
    from runtime_py.prompt_cache.store import PromptCache

    return PromptCache(folder, 1 << 30, model, _runner(model))
