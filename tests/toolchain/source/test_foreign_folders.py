"""What people hand over in place of a model: one line that says what it is."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.contract.errors import InputError
from tests.export.graph.families import tiny_model
from toolchain.evaluate.perplexity import open_scorer
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.checkpoint import SourceModel, resolve


@pytest.fixture
def model(tmp_path):
    tiny_model("llama", tmp_path)
    return tmp_path


def refused(folder):
    """The line of every reader of a source model; they must agree."""
    lines = []
    for read in (
        lambda: SourceModel(folder).names(),
        lambda: open_scorer(str(folder)),
        lambda: quantize_model(str(folder), folder / "out", QuantizeSettings(bits=4), CalibrationChoice(), quiet=True),
    ):
        with pytest.raises(InputError) as error:
            read()
        lines.append(str(error.value))
    assert len(set(lines)) == 1 and "\n" not in lines[0]
    return lines[0]


def add(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"x")


@pytest.mark.parametrize("whole", [True, False], ids=["beside a model", "alone"])
@pytest.mark.parametrize("kind", ["LORA", "IA3", "PROMPT_TUNING", None])
@pytest.mark.parametrize("base", ["meta-llama/Llama-3.2-1B", None])
def test_an_adapter(model, whole, kind, base):
    """Where peft is installed transformers would load it on top of the model, or of the base that it names."""
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "base_model_name_or_path": base}))
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(1)}, model / "adapter_model.safetensors")
    if not whole:
        (model / "config.json").unlink()
        (model / "model.safetensors").unlink()
    line = refused(model)
    assert "adapter" in line and "merge_and_unload" in line
    assert (kind or "") in line and (base or "") in line
    assert ("delete adapter_config.json" in line) == whole


@pytest.mark.parametrize(
    "name",
    ["{}.lora_A.weight", "{}.lora_B.default.weight", "{}.base_layer.weight", "{}.base_layer.SCB", "{}.ia3_l",
     "{}.lora_magnitude_vector", "{}.lora_magnitude_vector.default.weight", "{}.hada_w1_a", "{}.lokr_w1", "{}.oft_r",
     "{}.vera_lambda_b", "{}.modules_to_save.default.weight", "{}.original_module.weight", "{}.adapter_down.weight",
     "model.embed_tokens.lora_embedding_A", "model.embed_tokens.lora_embedding_B.default",
     "base_model.model.{}.weight", "base_model.model.lm_head.weight", "prompt_encoder.default.embedding.weight",
     "{}.fourierft_spectrum.default", "{}.hra_u.default", "{}.miss_block.default", "{}.bone_block.default",
     "{}.shira_weight.default", "{}.c3a_kernel.default", "{}.road_theta.default", "{}.delora_A.default",
     "{}.vblora_logits_A.default", "{}.randlora_lambda.default", "{}.gralora_A.default", "{}.oft_R.default.weight",
     "model.norm.ln_tuning_layers.default.weight", "model.embed_tokens.trainable_tokens_delta.default",
     "model.layers.0.self_attn.adaption_prompt", "{}.lora_down.weight"],
)  # fmt: skip
def test_tensors_of_an_adapter_that_was_not_merged(model, name):
    tensors = load_file(model / "model.safetensors")
    tensors[name.format("model.layers.0.self_attn.q_proj")] = torch.ones(4, 4)
    save_file(tensors, model / "model.safetensors")
    line = refused(model)
    assert "adapter" in line and "merge_and_unload" in line


def test_an_adapter_is_named_before_what_lies_beside_it(model):
    tensors, module = load_file(model / "model.safetensors"), "model.layers.0.self_attn.q_proj"
    beside = {"alpha": torch.tensor(4.0), "lora_down.weight": torch.ones(4, 4), "lora_up.weight": torch.ones(4, 4)}
    save_file(tensors | {f"{module}.{name}": value for name, value in beside.items()}, model / "model.safetensors")
    assert "lora_down.weight belongs to an adapter" in refused(model)


CONFIG = "config.json"
FOLDERS = {
    "GGUF": (["model-Q4_K_M.gguf"], "GGUF"),
    "GGUF with a config": ([CONFIG, "model-Q4_K_M.gguf"], "GGUF"),
    "ONNX of optimum": ([CONFIG, "onnx/model.onnx"], "ONNX"),
    "ONNX in the root": ([CONFIG, "model_quantized.onnx"], "ONNX"),
    "exported by us": ([CONFIG, "model.onnx", "athena.json"], "exported already"),
    "quantized by us": ([CONFIG, "block-00000.safetensors", "outside.safetensors", "athena.json"], "quantized already"),
    "diffusers": (["model_index.json", "unet/config.json"], "diffusers"),
    "TensorFlow": ([CONFIG, "tf_model.h5"], "TensorFlow"),
    "Flax": ([CONFIG, "flax_model.msgpack"], "Flax"),
    "Flax in shards": ([CONFIG, "flax_model-00001-of-00002.msgpack"], "Flax"),
    "Mistral": (["params.json", "consolidated.safetensors", "tekken.json"], "Mistral"),
    "Mistral with a config": ([CONFIG, "consolidated.safetensors"], "Mistral"),
    "Llama of Meta": (["params.json", "consolidated.00.pth"], "Meta"),
    "MLX": ([CONFIG, "weights.npz"], "MLX"),
    "OpenVINO": ([CONFIG, "openvino_model.xml", "openvino_model.bin"], "OpenVINO|pickled"),
    "a variant": ([CONFIG, "model.fp16.safetensors"], "model.fp16.safetensors"),
    "shards without their index": ([CONFIG, "model-00001-of-00002.safetensors"], "unless an index lists it"),
    "adapter weights alone": ([CONFIG, "adapter_model.safetensors"], "PEFT adapter"),
    "state of a training": ([CONFIG, "optimizer.pt", "training_args.bin", "rng_state.pth"], "state of a training"),
    "checkpoints of a training": (["checkpoint-90/config.json", "checkpoint-500/config.json"], "checkpoint-500"),
    "checkpoints below a config": ([CONFIG, "checkpoint-9/config.json", "checkpoint-50/config.json"], "checkpoint-50"),
    "sentence-transformers": (["modules.json", "0_Transformer/config.json", "1_Pooling/config.json"], "0_Transformer"),
    "DeepSpeed": ([CONFIG, "global_step200/", "zero_to_fp32.py"], "DeepSpeed"),
    "torch distributed": ([CONFIG, "pytorch_model_fsdp_0/__0_0.distcp"], "distributed checkpoint of torch"),
    "pickles": ([CONFIG, "pytorch_model-00001-of-00002.bin", "training_args.bin"], r"pytorch_model-00001.*pickled"),
    "pickles and ONNX": ([CONFIG, "pytorch_model.bin", "onnx/model.onnx"], "pickled"),
    "nothing": ([], r"config\.json: this file is missing"),
    "a config alone": ([CONFIG], r"no model\.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_other_folders(model, case):
    names, says = FOLDERS[case]
    config = (model / CONFIG).read_bytes()
    for path in model.iterdir():
        path.unlink()
    add(model, *names)
    if CONFIG in names:
        (model / CONFIG).write_bytes(config)
    with pytest.raises(InputError, match=says) as error:
        SourceModel(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [("model.safetensors", "one file of weights"), ("m.gguf", "GGUF"), ("m.onnx", "ONNX"), ("config.json", "folder"),
     ("pytorch_model.bin", "pickled"), ("m.pt", "pickled"), ("readme.txt", "a model folder")],
)  # fmt: skip
def test_a_file_in_place_of_a_folder(tmp_path, name, says):
    add(tmp_path, name)
    with pytest.raises(InputError, match=says):
        resolve(str(tmp_path / name))


def test_a_pointer_of_git_lfs(model):
    (model / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"
    )
    with pytest.raises(InputError, match="git lfs pull"):
        SourceModel(model)


def test_a_trained_checkpoint_with_its_state_is_read(model):
    add(model, "optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json", "global_step7/")
    assert SourceModel(model).names()
