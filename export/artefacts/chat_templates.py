"""Where a model folder keeps its chat templates, and which one counts. As transformers' tokenizers find them.

Template files win over tokenizer_config.json: chat_template.jinja is the one called "default", each file of
additional_chat_templates/ is named by its file. chat_template.json is read last: it belongs to processors of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from export.files.access import MAX_TEMPLATE, read_json, read_text, write_bytes

DEFAULT, TEMPLATE_FILE, ADDITIONAL = "default", "chat_template.jinja", "additional_chat_templates"
_CONFIG, _PROCESSOR = "tokenizer_config.json", "chat_template.json"


def read_templates(folder: Path) -> tuple[str | dict[str, str] | None, Path]:
    """(one template, or several by name, or None, the file or folder they stand in).

    Raises InputError when a file cannot be read, or when the field chat_template is neither text nor named texts.
    """
    files = {DEFAULT: folder / TEMPLATE_FILE} if (folder / TEMPLATE_FILE).exists() else {}
    files |= {path.name.removesuffix(".jinja"): path for path in additional_files(folder)}
    if files:
        texts = {name: read_template(path, folder) for name, path in files.items()}
        return (texts[DEFAULT], files[DEFAULT]) if list(texts) == [DEFAULT] else (texts, folder)
    for path in (folder / _CONFIG, folder / _PROCESSOR):
        if path.exists():
            found = _templates(read_json(path).get("chat_template"), path)
            if found is not None:
                return found, path
    return None, folder


def additional_files(folder: Path) -> list[Path]:
    """The template files beside chat_template.jinja, sorted by name."""
    return sorted(path for path in (folder / ADDITIONAL).glob("*.jinja") if not path.is_dir())


def read_template(path: Path, folder: Path | None = None) -> str:
    """A template file of a model folder, or (None) of the user's own. Raises InputError when it cannot be read."""
    return read_text(path, MAX_TEMPLATE, folder)


def write_templates(folder: Path) -> None:
    """Put templates that only stand in a config into files of their own as well: not every reader knows both places.

    Names that are no plain file names stay in the config alone. Raises InputError as read_templates does.
    """
    found, where = read_templates(folder)
    if found is None or where.suffix != ".json":
        return
    texts = {DEFAULT: found} if isinstance(found, str) else found
    if any(Path(f"{name}.jinja").name != f"{name}.jinja" or "\0" in name for name in texts):
        return
    for name, text in texts.items():
        path = folder / TEMPLATE_FILE if name == DEFAULT else folder / ADDITIONAL / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, text.encode())


def _templates(value: Any, path: Path) -> str | dict[str, str] | None:
    if value is None or isinstance(value, str):
        return value
    named: Any = value
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
        named = {entry["name"]: entry.get("template") for entry in entries} if len(entries) == len(value) else None
    if not isinstance(named, Mapping) or not all(isinstance(text, str) for text in named.values()):
        raise InputError(f"{path}: chat_template must be a text, or a list of texts with name and template")
    return dict(named)
