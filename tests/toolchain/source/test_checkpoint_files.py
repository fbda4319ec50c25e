"""Files and names: the weights are those that transformers loads from the same folder, or one line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from export.contract.errors import InputError
from export.files.access import read_json
from tests.export.graph.families import TINY, TINY_ENCODERS, tiny_model
from toolchain.calibrate.own_text import whole_model
from toolchain.numerics.experts import unpack_experts
from toolchain.source.checkpoint import SourceModel

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def model(tmp_path):
    tiny_model("llama", tmp_path)
    return tmp_path


def stored(folder):
    return load_file(folder / "model.safetensors")


def altered(tensors, factor):
    """Another set of weights, told from the first everywhere."""
    return {name: value * factor for name, value in tensors.items()}


def shards(folder, parts, index="model.safetensors.index.json", weight_map=None):
    """Write files {name: tensors} and an index of them."""
    for name, tensors in parts.items():
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name, metadata={"format": "pt"})
    names = {tensor: name for name, tensors in parts.items() for tensor in tensors}
    content = {"metadata": {"total_size": 0}, "weight_map": weight_map or names}
    (folder / index).write_text(json.dumps(content))


def halves(tensors):
    names = sorted(tensors)
    return {n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}


def check(folder, kind=AutoModelForCausalLM):
    """Every tensor as transformers has it after loading."""
    expected = unpack_experts(kind.from_pretrained(folder, dtype=torch.float32)).state_dict()
    source = SourceModel(folder)
    assert source.parameters()
    for name in source.parameters():
        assert torch.equal(source.tensor(name), expected[name]), name
    return source


def config(folder, **more):
    (folder / "config.json").write_text(json.dumps({**read_json(folder / "config.json"), **more}))


def left_over_index(folder):
    first, second = halves(altered(stored(folder), 2))
    shards(folder, {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second})


def left_over_index_without_shards(folder):
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"x": "gone.safetensors"}}')


def broken_index(folder):
    (folder / "model.safetensors.index.json").write_text("{")


def only_shards(folder):
    left_over_index(folder)
    (folder / "model.safetensors").unlink()


def tensors_in_both_shards(folder):
    tensors = stored(folder)
    first, second = halves(tensors)
    shards(folder, {"b.safetensors": first, "a.safetensors": {**second, **altered(first, 3)}})
    (folder / "model.safetensors").unlink()


def index_that_names_the_other_shard(folder):
    tensors = stored(folder)
    first, second = halves(tensors)
    names = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    shards(folder, {"a.safetensors": first, "b.safetensors": {**second, **altered(first, 3)}}, weight_map=names)
    (folder / "model.safetensors").unlink()


def index_that_omits_a_tensor(folder):
    first, second = halves(stored(folder))
    names = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(sorted(second)[1:], "b.safetensors")
    shards(folder, {"a.safetensors": first, "b.safetensors": second}, weight_map=names)
    (folder / "model.safetensors").unlink()


def pickle_beside(folder):
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def consolidated_beside(folder):
    save_file(altered(stored(folder), 2), folder / "consolidated.safetensors")
    save_file(altered(stored(folder), 3), folder / "model.fp16.safetensors")
    save_file(altered(stored(folder), 4), folder / "adapter_model.safetensors")


def file_named_in_the_config(folder):
    save_file(altered(stored(folder), 2), folder / "other.safetensors", metadata={"format": "pt"})
    config(folder, transformers_weights="other.safetensors")


def index_named_in_the_config(folder):
    first, second = halves(altered(stored(folder), 2))
    shards(folder, {"x.safetensors": first, "y.safetensors": second}, "other.safetensors.index.json")
    config(folder, transformers_weights="other.safetensors.index.json")


def nothing_named_in_the_config(folder):
    save_file(altered(stored(folder), 2), folder / "other.safetensors")
    config(folder, transformers_weights=None)


def state_of_the_training_beside(folder):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(b"x")
    (folder / "global_step10").mkdir()


CHOICES = [
    left_over_index, left_over_index_without_shards, broken_index, only_shards, tensors_in_both_shards,
    index_that_names_the_other_shard, index_that_omits_a_tensor, pickle_beside, consolidated_beside,
    file_named_in_the_config, index_named_in_the_config, nothing_named_in_the_config, state_of_the_training_beside,
]  # fmt: skip


@pytest.mark.parametrize("arrange", CHOICES)
def test_the_files_that_transformers_loads(model, arrange):
    arrange(model)
    check(model)


@pytest.mark.parametrize(
    "named", ["../model.safetensors", "sub/x.safetensors", "absent.safetensors", "x.bin", "", 4, ["a"]]
)
def test_a_bad_name_in_the_config(model, named):
    config(model, transformers_weights=named)
    with pytest.raises(InputError, match="transformers_weights"):
        SourceModel(model)


def test_an_incomplete_file_beside_whole_shards(model):
    """transformers loads the incomplete one and makes up the rest."""
    tensors = stored(model)
    shards(model, {"a.safetensors": tensors})
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InputError, match=r"has no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        SourceModel(model).names()


def test_a_distributed_checkpoint_is_refused(model):
    save_file(stored(model), model / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(InputError, match="distributed checkpoint"):
        SourceModel(model)


def with_prefix(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


FAMILIES = sorted({name for name in (*TINY, *TINY_ENCODERS) if " " not in name})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spelling", ["as saved", "base model", "old norms"])
def test_spellings_of_names(tmp_path, family, spelling):
    """With the prefix of the base model and without it; `gamma` and `beta`; buffers that earlier versions stored."""
    tiny_model(family, tmp_path)
    kind = AutoModel if family in TINY_ENCODERS else AutoModelForCausalLM
    loaded = kind.from_pretrained(tmp_path)
    prefix = f"{loaded.base_model_prefix}."
    tensors = stored(tmp_path)
    if spelling == "base model" and kind is AutoModel:
        tensors = with_prefix(tensors, prefix)
    elif spelling == "base model":
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    elif spelling == "old norms":
        new = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        tensors = {name.replace(*new[0]).replace(*new[1]): value for name, value in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = check(tmp_path, kind)
    assert source.notes() == []
    packed = (".experts.down_proj", ".block_sparse_moe.output_linear.weight")
    if not any(name.endswith(packed) for name in tensors):  # several parameters lie in one tensor
        assert len(source.parameters()) == len(tensors)
    numbers = sum(source.tensor(name).numel() for name in source.parameters())
    assert numbers == sum(value.numel() for value in tensors.values())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "language_model.", "model.layers."])
def test_a_spelling_that_transformers_does_not_know(model, prefix):
    """It would load none of them, and make up the weights."""
    save_file(with_prefix(stored(model), prefix), model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"has no tensor {EMBEDDING}; it has {prefix}model.embed_tokens.weight"):
        SourceModel(model).names()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_a_tied_embedding_that_is_stored_as_the_head(tmp_path, family):
    """What remains where a writer drops one of two tensors that share memory."""
    tiny_model(family, tmp_path, tie_word_embeddings=True)
    tensors = stored(tmp_path)
    [embedding] = [n for n in tensors if n.endswith(("embed_tokens.weight", "wte.weight"))]
    tensors["lm_head.weight"] = tensors.pop(embedding)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = check(tmp_path)
    assert source.has(embedding) and source.names() == sorted(tensors)


def test_a_head_that_is_missing_is_not_made_up(model):
    tensors = stored(model)
    del tensors["lm_head.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has no tensor lm_head\.weight"):
        whole_model(SourceModel(model))


def test_a_tensor_of_another_shape(model):
    tensors = stored(model)
    tensors["model.norm.weight"] = torch.ones(31)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model.norm.weight has shape \[31\], config.json asks") as refused:
        whole_model(SourceModel(model))
    assert "\n" not in str(refused.value)


def test_one_tensor_under_two_names(model):
    tensors = stored(model)
    tensors["layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"] * 2
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InputError, match="one and the same tensor"):
        SourceModel(model).names()


@pytest.mark.parametrize(
    "extra",
    ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq",
     "model.layers.0.self_attn.masked_bias", "model.layers.1.self_attn.rotary_emb.cos_cached",
     "model.embed_tokens.position_ids"],
)  # fmt: skip
def test_buffers_of_earlier_versions_are_left_out_in_silence(model, extra):
    save_file({**stored(model), extra: torch.ones(4)}, model / "model.safetensors", metadata={"format": "pt"})
    assert check(model).notes() == []


@pytest.mark.parametrize(
    "extra",
    ["lm_head.bias", "model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.up_proj.bias", "v_head.summary.weight",
     "model.layers.7.mlp.up_proj.weight", "model.layers.2.input_layernorm.weight", "score.weight", "mtp.fc.weight",
     "model.layers.0.self_attn.q_norm.weight", "model.embed_positions.weight"],
)  # fmt: skip
def test_tensors_without_a_place_are_named(model, extra, capsys):
    """transformers leaves them out and reports them; so do we."""
    save_file({**stored(model), extra: torch.ones(4)}, model / "model.safetensors", metadata={"format": "pt"})
    source = check(model)
    assert extra in source.notes()[0] and len(source.notes()) == 1
    assert not source.has(extra)
    source.print_notes()
    assert extra in capsys.readouterr().err


HEADS = {
    "bert": ["cls.predictions.bias", "cls.predictions.transform.dense.weight", "cls.seq_relationship.weight"],
    "roberta": ["lm_head.dense.weight", "classifier.dense.weight"],
    "distilbert": ["vocab_transform.weight", "vocab_projector.bias", "pre_classifier.weight"],
    "albert": ["predictions.dense.weight", "sop_classifier.classifier.weight"],
}


@pytest.mark.parametrize("family", HEADS)
def test_heads_of_encoders_are_left_out_in_silence(tmp_path, family):
    tiny_model(family, tmp_path)
    tensors = with_prefix(stored(tmp_path), f"{family}.") | {name: torch.ones(4) for name in HEADS[family]}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert check(tmp_path, AutoModel).notes() == []


def test_more_layers_than_are_stored(model):
    config(model, num_hidden_layers=3)
    with pytest.raises(InputError, match=r"has no tensor model\.layers\.2"):
        SourceModel(model).names()
    config(model, num_hidden_layers=2**24)
    with pytest.raises(InputError, match="num_hidden_layers must be at most 10000"):
        SourceModel(model).names()
    config(model, num_hidden_layers=10_000)
    with pytest.raises(InputError, match="asks for 10000 blocks"):
        SourceModel(model).names()
