"""Text models inside multimodal ones: their text part is transformers' own, in every spelling of the names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoConfig

from export.contract.errors import InputError
from export.model_folder import write_model_folder
from tests.export.graph.families import COMMON, TINY, FloatCheckpoint, compare, stores_norms_minus_one
from toolchain.source.checkpoint import SourceModel
from toolchain.source.heads import open_model
from toolchain.source.wrappers import WRAPPERS

VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 16, "patch_size": 8, "num_channels": 3}  # fmt: skip
AUDIO = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8,
         "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
         "max_source_positions": 8}  # fmt: skip
CLIP = {"model_type": "clip_vision_model", **VISION, "projection_dim": 16}
SIGLIP = {"model_type": "siglip_vision_model", **VISION}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
               "patch_size": 8, "num_position_embeddings": 16}  # fmt: skip
# wrapper, family inside, what else its config says
CASES = {
    "gemma3": ("gemma3", "gemma3_text", {"vision_config": SIGLIP, "mm_tokens_per_image": 4}),
    "gemma4": ("gemma4", "gemma4_text", {"vision_config": {"model_type": "gemma4_vision", **VISION},
                                         "audio_config": None}),
    "gemma3n": ("gemma3n", "gemma3n_text", {"vision_config": {"model_type": "gemma3n_vision", "hidden_size": 16,
                                                              "architecture": "mobilenetv5_300m_enc"},
                                            "audio_config": {"model_type": "gemma3n_audio", "hidden_size": 16,
                                                             "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1,
                                                             "conf_attention_context_left": 3,
                                                             "sscp_conv_channel_size": [8, 4]}}),
    "mistral3 with ministral3": ("mistral3", "ministral3", {"vision_config": {"model_type": "pixtral", **VISION}}),
    "mistral3": ("mistral3", "mistral", {"vision_config": {"model_type": "pixtral", **VISION},
                                         "tie_word_embeddings": False}),
    "llava": ("llava", "llama", {"vision_config": CLIP}),
    "llava with qwen2": ("llava", "qwen2", {"vision_config": CLIP}),
    "llava_next": ("llava_next", "llama", {"vision_config": CLIP}),
    "llava_next with granite": ("llava_next", "granite", {"vision_config": CLIP, "tie_word_embeddings": True}),
    "llava_onevision": ("llava_onevision", "qwen2", {"vision_config": SIGLIP}),
    "vipllava": ("vipllava", "llama", {"vision_config": CLIP, "vision_feature_layers": [-1]}),
    "internvl": ("internvl", "qwen3", {"vision_config": {"model_type": "internvl_vision", **VISION}}),
    "aya_vision": ("aya_vision", "cohere2", {"vision_config": SIGLIP}),
    "cohere2_vision": ("cohere2_vision", "cohere2", {"vision_config": SIGLIP}),
    "got_ocr2": ("got_ocr2", "qwen2", {"vision_config": {**VISION, "output_channels": 8, "window_size": 2,
                                                         "mlp_dim": 16, "global_attn_indexes": [0]}}),
    "idefics3": ("idefics3", "llama", {"vision_config": VISION, "tie_word_embeddings": True}),
    "smolvlm": ("smolvlm", "llama", {"vision_config": VISION, "tie_word_embeddings": False}),
    "qwen2_audio": ("qwen2_audio", "qwen2", {"audio_config": {"model_type": "qwen2_audio_encoder", **AUDIO}}),
    "qwen3_5": ("qwen3_5", "qwen3_5_text", {"vision_config": QWEN_VISION, "tie_word_embeddings": True}),
    "qwen3_5_moe": ("qwen3_5_moe", "qwen3_5_moe_text", {"vision_config": QWEN_VISION}),
    "voxtral": ("voxtral", "llama", {"audio_config": AUDIO}),
}  # fmt: skip


def wrapped_model(case: str, folder: Path, **text: object):
    """A random tiny multimodal model, saved; text: fields of its text_config beside those of the family's variant."""
    wrapper, family, more = CASES[case]
    inner = {**COMMON, **TINY[family], "model_type": family, **text}
    config = CONFIG_MAPPING[wrapper](text_config=inner, **more)
    torch.manual_seed(0)
    model = MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)](config).eval()
    centre = 0.0 if stores_norms_minus_one(family) else 1.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (0.2 if p.ndim > 1 else 0.3) + (centre if "norm" in name.lower() else 0))
    model.save_pretrained(folder)
    return model


def exported(folder: Path, out: Path) -> Path:
    out.mkdir()
    write_model_folder(FloatCheckpoint(folder), out)
    return out


@pytest.mark.parametrize("case", CASES)
def test_the_text_part_is_transformers_own(case, tmp_path):
    """Logits of the whole model for texts without images: prefill, decode with the cache, padded batch."""
    if case == "gemma3n":
        pytest.importorskip("timm")  # its vision tower is one of timm's
    more = {"final_logit_softcapping": 2.0} if case == "gemma3" else {}  # the whole model does not apply it
    wrapped_model(case, tmp_path / "source", **more)
    config = AutoConfig.from_pretrained(tmp_path / "source")
    model = MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)].from_pretrained(
        tmp_path / "source", dtype=torch.float32, attn_implementation="eager"
    )
    compare(model.eval(), exported(tmp_path / "source", tmp_path / "model"), 1e-4)
    notes = SourceModel(tmp_path / "source").notes()
    assert len(notes) == 1 and notes[0].endswith(f"is read; {WRAPPERS[CASES[case][0]]} is left out")


def test_every_wrapper_is_tried():
    assert {wrapper for wrapper, _, _ in CASES.values()} == set(WRAPPERS)


def _stored(model, folder: Path, spelling: dict[str, str]) -> None:
    """Store the model's tensors with other beginnings of their names; "" takes a tensor away."""
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        start = next((old for old in spelling if name.startswith(old)), None)
        if start is None or spelling[start]:
            found[name if start is None else spelling[start] + name.removeprefix(start)] = tensor.contiguous()
    save_file(found, folder / "model.safetensors", {"format": "pt"})


SPELLINGS = {
    "as named": {},
    "of transformers 4": {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.",
                          "model.vision_tower.": "vision_tower.", "model.multi_": "multi_"},
    "head apart": {"model.language_model.": "language_model.model."},
    "of the base model": {"model.language_model.": "language_model."},
    "without the other parts": {"model.vision_tower.": "", "model.multi_modal_projector.": ""},
    "of a text model": {"model.language_model.": "model."},
    "two words before": {"model.language_model.": "model.language_model.model."},
}  # fmt: skip
REFUSED = {"of a text model"}  # transformers makes weights up


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("case", ["llava", "gemma3"])
def test_spellings_of_the_names(case, spelling, tmp_path):
    _stored(wrapped_model(case, tmp_path), tmp_path, SPELLINGS[spelling])
    config = AutoConfig.from_pretrained(tmp_path)
    model, info = MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)].from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    made_up = {name for name in info["missing_keys"] if "vision" not in name and "multi_modal" not in name}
    assert bool(made_up) == (spelling in REFUSED), made_up
    if spelling in REFUSED:
        with pytest.raises(InputError, match="the checkpoint has no tensor"):
            FloatCheckpoint(tmp_path)
        return
    source, spec = open_model(tmp_path)
    theirs = model.model.language_model.state_dict()
    assert theirs.keys() == {name.removeprefix("model.") for name in source.parameters() if name.startswith("model.")}
    for name, tensor in theirs.items():
        assert torch.equal(source.tensor(f"model.{name}"), tensor)
    if not spec.tied_head:
        assert torch.equal(source.tensor("lm_head.weight"), model.lm_head.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "paligemma"}, "'paligemma' is not supported, and its text_config cannot be taken alone; of "),
        ({"model_type": ["llava"]}, "is not supported"),
        ({"text_config": {"model_type": "bloom"}}, "model_type 'bloom' is not supported"),
        ({"text_config": {"model_type": "no_such"}}, "transformers refuses it .*no_such"),
        ({"text_config": 3}, "transformers refuses it"),
        ({"text_config": {"model_type": "llama", "num_hidden_layers": 10**9}}, "num_hidden_layers must be at most"),
        ({"text_config": {"model_type": "llama", "hidden_size": "x"}}, "transformers refuses it"),
        ({"text_config": {**COMMON, "model_type": "llama", "quantization_config": {"quant_method": "fp8"}}},
         "text_config has another quantization_config than the model"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_in_one_line(change, message, tmp_path):
    wrapped_model("llava", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message) as caught:
        FloatCheckpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("stored", ["both", "embedding", "differ"])
def test_whose_embeddings_are_tied(outer, inner, stored, tmp_path):
    """The head that transformers' whole model has, or a refusal where it makes one up."""
    wrapped_model("llava", tmp_path, tie_word_embeddings=True)  # saved as transformers 4 named them
    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = outer, inner
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors["language_model.model.embed_tokens.weight"]
    tensors.pop("language_model.lm_head.weight", None)
    if stored != "embedding":
        tensors["language_model.lm_head.weight"] = (
            embedding.clone() if stored == "both" else embedding.flip(0).contiguous()
        )
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    made = AutoConfig.from_pretrained(tmp_path)
    model, info = MODEL_FOR_MULTIMODAL_LM_MAPPING[type(made)].from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:
        with pytest.raises(InputError, match="lm_head"):
            open_model(tmp_path)
        return
    source, spec = open_model(tmp_path)
    head = source.tensor(f"{spec.embedding if spec.tied_head else spec.head}.weight")
    np.testing.assert_array_equal(head.numpy(), model.lm_head.weight.detach().numpy())
