"""Prompts of one model, in parts of 64 tokens, each in a file of its own: prompts that begin alike share them.

Reading happens where a prompt begins. Writing happens on a thread: what is to be written is copied, and dropped where
more waits than memory should hold. Whatever is wrong with a file, the prompt is computed as if there were none.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from export.contract.errors import InputError
from runtime_py.engine.engine import Engine
from runtime_py.engine.saved import BLOCK, Items, is_finite, items_of, kinds_of, part, part_bytes, restore
from runtime_py.engine.state import EngineState
from runtime_py.prompt_cache import entry
from runtime_py.prompt_cache.fingerprint import fingerprint
from runtime_py.prompt_cache.folder import CacheFolder

_WAITING = 256 << 20  # most bytes that wait to be written


class PromptCache:
    """What earlier runs left of prompts."""

    def __init__(self, folder: Path, most_bytes: int, model: Path, engine: Engine) -> None:
        """model: the folder that `engine` runs. Raises InputError for a folder that cannot be used."""
        self._files, self._engine = CacheFolder(folder, most_bytes), engine
        self._model = fingerprint(model)
        if engine.cache_bits != 16:  # caches of other bits are no caches of this one
            self._model += bytes([engine.cache_bits])
        if engine.bits is not None:  # nor of nested codes at another width
            self._model += b"bits" + bytes([engine.bits])
        self._tasks: queue.SimpleQueue[tuple[Path, bytes, list[int], bytes] | list[Path] | None] = queue.SimpleQueue()
        self._waiting, self._lock = 0, threading.Lock()
        self._writer = threading.Thread(target=self._write, name="athena-prompt-cache", daemon=True)
        self._writer.start()

    def restore(
        self, state: EngineState, prompt: Sequence[int], tenant: str = "", adapter: str = "", at_least: int = 1
    ) -> int:
        """Make the state hold as many of the prompt's first tokens as there are on disk; how many these are.

        At least two tokens of the prompt are left to compute. Where fewer than `at_least` are found, the state stays as
        it is, and the answer is 0. tenant, adapter: only what was kept for and with the same is found.
        """
        keys = list(self._keys(prompt[: max(len(prompt) - 2, 0)], tenant, adapter))
        parts: list[tuple[Items, bytes]] = []
        if len(keys) * BLOCK < at_least or not self._files.path(keys[0], "part").exists():
            return 0
        for key in keys:
            found = self._part(key)
            if found is None:
                break
            parts.append(found)
        parts, recurrent = self._with_states(parts, keys)
        if len(parts) * BLOCK < max(at_least, 1):
            return 0
        self._tasks.put([self._files.path(key, "part") for key in keys[: len(parts)]])
        return restore(self._engine, state, adapter, parts, recurrent)

    def keep(self, state: EngineState, tokens: Sequence[int], tenant: str = "") -> None:
        """Write what is not on disk yet of `tokens`, a prompt that the state begins with."""
        keys = list(self._keys(tokens[: state.length], tenant, state.adapter))
        paths = [self._files.path(key, "part") for key in keys]
        flat = kinds_of(state, self._engine)
        for number, (key, path) in enumerate(zip(keys, paths)):
            if not path.exists() and not self._put(path, key, flat, part(state, number)):
                return
        if self._engine.recurrent_bytes:
            copies = state.recurrent.copies()
            whole = (length for length in copies if length % BLOCK == 0 and length <= len(keys) * BLOCK)
            last = max(whole, default=0)
            if last:
                key = keys[last // BLOCK - 1]
                path = self._files.path(key, "state")
                if not path.exists():
                    self._put(path, key, [], b"".join(array.tobytes() for array in copies[last]))
        self._tasks.put(paths)

    def close(self) -> None:
        """Write what waits, and end."""
        self._tasks.put(None)
        self._writer.join()

    def _keys(self, tokens: Sequence[int], tenant: str, adapter: str) -> Iterator[bytes]:
        """The key of each whole part of these tokens."""
        key = entry.first_key(self._model, tenant, adapter)
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            key = entry.next_key(key, tuple(tokens[start : start + BLOCK]))
            yield key

    def _part(self, key: bytes) -> tuple[Items, bytes] | None:
        path, engine = self._files.path(key, "part"), self._engine
        widest = tuple((4, 4) for _ in engine.attention)
        try:
            flat, data = entry.read(path, key, part_bytes(engine, widest))
            items = items_of(flat, engine)
            if len(data) != part_bytes(engine, items) or not is_finite(engine, items, data):
                raise entry.Damaged("its numbers")
            return items, data
        except FileNotFoundError:
            return None
        except (entry.Damaged, ValueError):
            _remove(path)
            return None

    def _with_states(
        self, parts: list[tuple[Items, bytes]], keys: Sequence[bytes]
    ) -> tuple[list[tuple[Items, bytes]], bytes]:
        """The parts up to the last place whose recurrent states are known, and these; all in a family without."""
        size = self._engine.recurrent_bytes
        if not size:
            return parts, b""
        for count in range(len(parts), 0, -1):
            path = self._files.path(keys[count - 1], "state")
            try:
                _, data = entry.read(path, keys[count - 1], size)
            except FileNotFoundError:
                continue
            except entry.Damaged:
                data = b""
            if len(data) == size and _finite(data):
                self._tasks.put([path])
                return parts[:count], data
            _remove(path)
        return [], b""

    def _put(self, path: Path, key: bytes, items: list[int], payload: bytes) -> bool:
        with self._lock:
            if self._waiting + len(payload) > _WAITING:
                return False
            self._waiting += len(payload)
        self._tasks.put((path, key, items, payload))
        return True

    def _write(self) -> None:
        good, written = True, False
        while (task := self._tasks.get()) is not None:
            if isinstance(task, list):  # the end of one prompt's parts
                self._files.used(task)
                if written:
                    with suppress(OSError):  # the folder is gone: the next file that is written will tell
                        self._files.trim()
                written = False
                continue
            path, key, items, payload = task
            with self._lock:
                self._waiting -= len(payload)
            try:
                if good:
                    entry.write(path, key, items, payload)
                    written = True
            except (OSError, InputError) as error:
                good = False
                print(f"[the prompt cache keeps no more: {getattr(error, 'strerror', None) or error}]", file=sys.stderr)


def _finite(data: bytes) -> bool:
    return bool(np.isfinite(np.frombuffer(data, np.float32)).all())


def _remove(path: Path) -> None:
    """A damaged file is written anew by the next prompt."""
    with suppress(OSError):
        path.unlink()
