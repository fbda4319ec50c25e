"""What people hand over in place of a checkpoint that transformers loads, said in one line each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from export.contract.errors import InputError
from export.files.access import MANIFEST, read_json

ADAPTER_CONFIG = "adapter_config.json"
_MERGE = (
    "Merge it once: AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(new_folder) "
    "(package peft), then give new_folder"
)
_CONVERT = "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
_PICKLES = ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt")
_TRAINING_STATE = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "trainer_state")
# files that tell what a folder is, and the line; the first that is there speaks
_SIGNS = (
    (("adapter_model.*",), "a PEFT adapter without its adapter_config.json"),
    (("model.onnx", "onnx/*.onnx", "*.onnx"), "an ONNX model"),
    (("*.gguf",), "a GGUF model (llama.cpp), which is read where the file itself is given"),
    (("model_index.json",), "a diffusers pipeline"),
    (("consolidated*.safetensors", "consolidated*.pth", "params.json"), "weights in the format of Mistral or Meta"),
    (("weights*.npz",), "an MLX model"),
    (("tf_model*.h5", "tf_model*.index.json"), "TensorFlow weights"),
    (("flax_model*",), "Flax weights"),
    (("rust_model.ot",), "Rust weights"),
    (("openvino_model.xml",), "an OpenVINO model"),
    (("*.nemo", "model_weights/"), "a NeMo checkpoint"),
    (("*.distcp", "*/*.distcp", ".metadata"), "a distributed checkpoint of torch"),
    (("global_step*/", "zero_to_fp32.py"), "a DeepSpeed checkpoint; convert it with its zero_to_fp32.py"),
)


def refuse_adapter(folder: Path) -> None:
    """Raise InputError on a folder of PEFT: where peft is installed, transformers would put the adapter on top."""
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        return
    config = read_json(path)
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    named = f"{kind} adapter" if isinstance(kind, str) else "adapter"
    of = f" of {base}" if isinstance(base, str) and base else ""
    beside = "" if not (folder / "model.safetensors").is_file() else f"; if it is merged already, delete {path.name}"
    raise InputError(f"{folder}: holds a PEFT {named}{of}, not a model by itself. {_MERGE}{beside}")


def without_config(folder: Path) -> str:
    """The line for a folder that has no config.json."""
    refuse_adapter(folder)
    where = folder / "config.json"
    for found in (_ours(folder), _sign(folder)):
        if found:
            return f"{where}: this file is missing; the folder holds {found}. {_wanted()}"
    inside = _model_inside(folder)
    if inside:
        return f"{where}: this file is missing; a model lies in {inside}: give that folder"
    return f"{where}: this file is missing"


def without_weights(folder: Path) -> str:
    """The line for a folder with a config.json, in which transformers would find no safetensors."""
    nothing = f"{folder}: no model.safetensors and no model.safetensors.index.json in this folder"
    ours = _ours(folder)
    if ours:
        return f"{nothing}; it holds {ours}. {_wanted()}"
    pickle = _pickle(folder)
    if pickle:
        return f"{pickle}: pickled weights are not read (they can run code). Convert once: {_CONVERT}"
    sign = _sign(folder)
    if sign:
        return f"{nothing}; it holds {sign}. {_wanted()}"
    inside = _model_inside(folder)
    if inside:
        return f"{nothing}; a model lies in {inside}: give that folder"
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"{nothing}; transformers reads no other name, such as {others[0]}, unless an index lists it"
    return nothing + ("; only the state of a training lies here" if _only_training_state(folder) else "")


def foreign_file(path: Path) -> str:
    """The line for a file that was given as the model."""
    kinds = {
        ".safetensors": "one file of weights; give the folder with it, config.json and tokenizer.json",
        ".onnx": f"an ONNX model. {_wanted()}",
        ".json": "a JSON file; give the folder that it lies in",
    }
    kinds |= dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), "pickled weights, which are not read (they can run code)")
    found = kinds.get(path.suffix.lower())
    if found is None:
        return f"{path}: is a file; a model folder or a Hugging Face model name was expected"
    return f"{path}: is {found}"


def _wanted() -> str:
    return "Give the model as transformers saves it: config.json and model.safetensors"


def _ours(folder: Path) -> str | None:
    if not (folder / MANIFEST).is_file():
        return None
    if (folder / "model.onnx").is_file():
        return "a model that was exported already (athena.json)"
    return "a checkpoint that was quantized already (athena.json)"


def _sign(folder: Path) -> str | None:
    for patterns, found in _SIGNS:
        if any(_first(folder, pattern) for pattern in patterns):
            return found
    return None


def _first(folder: Path, pattern: str) -> Path | None:
    only_folders = pattern.endswith("/")
    found = (path for path in folder.glob(pattern.rstrip("/")) if not only_folders or path.is_dir())
    return next(iter(sorted(found)), None)


def _pickles(folder: Path) -> Iterator[Path]:
    for pattern in _PICKLES:
        yield from sorted(folder.glob(pattern))


def _pickle(folder: Path) -> Path | None:
    return next((path for path in _pickles(folder) if not path.name.startswith(_TRAINING_STATE)), None)


def _only_training_state(folder: Path) -> bool:
    return any(path.name.startswith(_TRAINING_STATE) for path in folder.iterdir())


def _model_inside(folder: Path) -> Path | None:
    """The folder below this one that holds a model: the newest checkpoint of a training, else the first by name."""
    inside = [path.parent for path in folder.glob("*/config.json")]

    def order(path: Path) -> tuple[int, str]:
        number = path.name.rpartition("-")[2]
        return (-int(number) if number.isdecimal() else 1, path.name)

    return min(inside, key=order, default=None)
