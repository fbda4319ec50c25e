"""Writes the model folder: graph, external data, tokenizer, chat template and the configs that other runtimes read.

The folder is built beside its destination and moved into place when complete, so OUT is never half-written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from export import __version__
from export.artefacts.chat_templates import ADDITIONAL, TEMPLATE_FILE, additional_files, write_templates
from export.artefacts.checkpoint import StoredTensors
from export.artefacts.generation_config import read_generation_config
from export.files.access import MANIFEST, MAX_JSON, MAX_TEMPLATE, copy_file, write_json
from export.files.replace import install_folder as install_folder
from export.graph.archs import model_spec
from export.graph.integers import IntegerArithmetic
from export.graph.sentence_modules import Pooling, copy_sentence_files, read_pooling
from export.graph.spec import HeadSizes, ModelSpec
from export.graph.whole.decoder import build_decoder, cache_row
from export.graph.whole.encoder import build_encoder

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    TEMPLATE_FILE,
    "chat_template.json",
)
SMALL_FILES = (*TOKENIZER_FILES, "generation_config.json")
# "gpt2" is not among them: genai reads that type with key and value in one tensor, "decoder" with two.
GENAI_TYPES = frozenset(
    [
        "chatglm",
        "ernie4_5",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gemma4_text",
        "gptoss",
        "granite",
        "granitemoehybrid",
        "hunyuandensev1",
        "internlm2",
        "lfm2",
        "lfm2_moe",
        "llama",
        "mistral",
        "nemotron",
        "olmo",
        "phi",
        "phimoe",
        "phi3",
        "phi3small",
        "qwen2",
        "qwen3",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "smollm3",
    ]
)
FOLDED_WEIGHTS = 1 << 28
DISABLED_OPTIMIZERS = "optimization.disable_specified_optimizers"  # a session option of onnxruntime
GENERATION_LIMIT = 4096  # tokens; caps the KV cache that onnxruntime-genai allocates for long-context models


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy tokenizer and generation files as they are, and what says how an encoder's states are pooled.

    Raises InputError for one that is no regular file of the folder, or far too large.
    """
    for name in SMALL_FILES:
        if (source / name).exists():
            copy_file(source / name, destination / name, MAX_TEMPLATE if name == TEMPLATE_FILE else MAX_JSON, source)
    for path in additional_files(source):
        (destination / ADDITIONAL).mkdir(exist_ok=True)
        copy_file(path, destination / ADDITIONAL / path.name, MAX_TEMPLATE, source)
    copy_sentence_files(source, destination)


def write_model_folder(
    checkpoint: StoredTensors,
    destination: Path,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> None:
    """Write every file of the model folder into the existing, empty folder `destination`.

    `progress(tensor_name, index, count)` is called for every weight written.
    Raises InputError when the checkpoint does not fit its own config.
    """
    spec = model_spec(checkpoint.config)
    producer = f"athena-export {__version__}"
    if spec.causal:
        model = build_decoder(spec, checkpoint, producer)
    else:
        pooling = Pooling() if spec.scores else read_pooling(checkpoint.folder)
        model = build_encoder(spec, checkpoint, pooling, producer)
    manifest = checkpoint.manifest
    model.metadata_props.update(
        {
            "athena.tool_version": __version__,
            "athena.source": str(manifest.get("source", {}).get("name", "")),
            "athena.method": str(manifest.get("settings", {}).get("method", "")),
            "athena.fingerprint": str(manifest.get("fingerprint", "")),
            "athena.effective_bits": f"{manifest.get('totals', {}).get('effective_bits', 0):.4f}",
        }
    )
    ir.save(
        model,
        destination / MODEL_FILE,
        external_data=DATA_FILE,
        callback=lambda tensor, info: progress(str(tensor.name), info.index, info.total),
    )
    onnx.checker.check_model(str(destination / MODEL_FILE), full_check=True)
    write_json(destination / "config.json", checkpoint.config)
    copy_tokenizer(checkpoint.folder, destination)
    if spec.causal:
        write_templates(destination)
        if not (destination / "generation_config.json").exists():
            write_json(destination / "generation_config.json", _special_tokens(checkpoint.config))
        weights = sum(math.prod(r.shape) for r in checkpoint.records.values() if r.bits)
        genai = genai_config(spec, checkpoint.config, destination, weights)
        _tell_convolutions(genai["model"]["decoder"], spec)
        _tell_states(genai["model"]["decoder"], spec)
        heads = HeadSizes(spec.heads, spec.kv_heads, spec.head_dim)
        head_size = cache_row(heads, IntegerArithmetic.from_manifest(manifest))[1]  # genai sizes its cache by it
        genai["model"]["decoder"]["head_size"] = head_size
        write_json(destination / "genai_config.json", genai)
    write_json(destination / MANIFEST, manifest)


def _special_tokens(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}


def _tell_convolutions(decoder: dict[str, Any], spec: ModelSpec) -> None:
    """Add what genai wants to know of layers with a convolution in place of attention, where there are some."""
    found = [names.convolution for names in map(spec.names_of_layer, range(spec.layers))]
    widths = {convolution.width for convolution in found if convolution is not None}
    if widths:
        decoder["layer_types"] = ["full_attention" if convolution is None else "conv" for convolution in found]
        decoder["conv_cache_size"] = max(widths)
        decoder["inputs"]["past_conv_names"] = "past_conv.%d"
        decoder["outputs"]["present_conv_names"] = "present_conv.%d"


def _tell_states(decoder: dict[str, Any], spec: ModelSpec) -> None:
    """Add what genai wants to know of layers with gated delta nets or state spaces, where there are some.

    Where a layer has attention besides, or nothing of that kind, it finds the inputs by their names.
    """
    names = [spec.names_of_layer(layer) for layer in range(spec.layers)]
    recurrent = [own.delta_net is not None or own.state_space is not None for own in names]
    if not any(recurrent) or any(state == own.attends for state, own in zip(recurrent, names)):
        return
    decoder["layer_types"] = ["full_attention" if own.attends else "linear_attention" for own in names]
    for kind in ("conv", "recurrent"):
        decoder["inputs"][f"past_{kind}_names"] = f"past_key_values.%d.{kind}_state"
        decoder["outputs"][f"present_{kind}_names"] = f"present.%d.{kind}_state"


def genai_config(spec: ModelSpec, config: dict[str, Any], folder: Path, weights: int) -> dict[str, Any]:
    """The genai_config.json that lets onnxruntime-genai run the folder as it is (schema of version 0.18).

    weights: how many stand in codebooks. onnxruntime unpacks them to float32 once at load; beyond FOLDED_WEIGHTS that
    takes more memory than machines have, so it is told to unpack them at every use: slow, but it runs.
    """
    session: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    if weights > FOLDED_WEIGHTS:
        session[DISABLED_OPTIMIZERS] = "ConstantFolding"
    generation = {**_special_tokens(config), **read_generation_config(folder)}
    eos = generation.get("eos_token_id")
    first_eos = eos[0] if isinstance(eos, list) and eos else eos
    pad = generation.get("pad_token_id")
    pad = pad if isinstance(pad, int) else first_eos  # genai takes one integer only
    bos = generation.get("bos_token_id")
    model_type = spec.model_type if spec.model_type in GENAI_TYPES else "decoder"
    return {
        "model": {
            "type": model_type,
            "bos_token_id": bos if isinstance(bos, int) else (first_eos if isinstance(first_eos, int) else 0),
            "eos_token_id": eos if eos is not None else 0,
            "pad_token_id": pad if isinstance(pad, int) else 0,
            "context_length": spec.context_length,
            "vocab_size": spec.vocab_size,
            "decoder": {
                "filename": MODEL_FILE,
                "hidden_size": spec.hidden_size,
                "head_size": spec.head_dim,
                "num_attention_heads": spec.heads,
                "num_key_value_heads": spec.kv_heads,
                "num_hidden_layers": spec.layers,
                "session_options": session,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": min(spec.context_length, GENERATION_LIMIT),
            "min_length": 0,
            "do_sample": bool(generation.get("do_sample", False)),
            "num_beams": 1,
            "num_return_sequences": 1,
            "temperature": float(generation.get("temperature", 1.0) or 1.0),
            "top_k": int(generation.get("top_k", 50) or 50),
            "top_p": float(generation.get("top_p", 1.0) or 1.0),
            "repetition_penalty": 1.0,
            "length_penalty": 1.0,
            "diversity_penalty": 0.0,
            "no_repeat_ngram_size": 0,
            "early_stopping": True,
            "past_present_share_buffer": False,
        },
    }
