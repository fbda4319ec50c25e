"""Which parameter of the model each stored tensor becomes: transformers' own renaming, applied to the names.

Checkpoints of one family come with several spellings: with or without the prefix of the base model, `gamma` and `beta`
of old layer norms, heads that were renamed. transformers knows them (conversion_mapping), so it is asked.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from export.contract.errors import InputError
from export.graph.archs import model_spec
from toolchain.numerics.plain_modules import plain_modules
from toolchain.source.empty_model import empty_model
from toolchain.source.stored_weights import changes_activations_only

# what tensors of PEFT's methods (0.21), kohya's tools and adapter-transformers begin with, as a part of a dotted name
_ADAPTER_PREFIXES = (
    "adamss_", "adaption_", "adapter", "ada3?lora_", "beft_", "boft_", "bone_", "c3a_", "deft_", "delora_",
    "fourierft_", "frod_", "glora_", "gralora_", "hada_", "hira_", "hra_", "ia3_", "lily_", "ln_tuning_", "lokr_",
    "lora_", "miss_", "oft_", "osf_", "peanut_", "poly_", "psoft_", "p?vera_lambda_", "randlora_", "road_", "shadow_",
    "shira_", "supertuning_", "tinylora_", "trainable_tokens_", "unilora_", "vblora_", "waveft_",
)  # fmt: skip
_ADAPTER = re.compile(
    rf"(^|\.)(_?({'|'.join(_ADAPTER_PREFIXES)})\w*|base_layer|modules_to_save|original_module|prompt_encoder"
    r"|prompt_embeddings)(\.|$)|(^|\.)base_model\.model\."
)
# buffers of earlier versions, and what stands on an encoder in place of the head that is not exported
_HARMLESS = re.compile(
    r"(^|\.)(rotary_emb\.\w+|masked_bias|position_ids|token_type_ids|att(n|ention)\.bias|embed_scale)$"
)
_ENCODER_HEAD = re.compile(
    r"^(cls|classifier|pre_classifier|qa_outputs|lm_head|vocab_\w+|predictions|sop_classifier|pooler|score|head|decoder)\."
)

_EXPERT = r"(\.experts\.\d+\.){}(\.\w+)$"  # with the name of a matrix


@dataclass(frozen=True)
class ParameterNames:
    """The parameters of a model, and how transformers renames stored tensors to them."""

    expected: dict[str, str]  # parameters and buffers that a checkpoint may hold: the first name of what is tied
    required: frozenset[str]  # first names of those that a model must have; an untied head is not among them
    causal: bool
    transposed: bool  # linear weights are [in, out]
    prefix: str
    renamings: list[WeightRenaming]
    experts: tuple[tuple[str, str], ...]  # what checkpoints call the matrices of an expert, and what we do
    together: bool  # checkpoints hold the experts of a block in one tensor
    as_rows: bool  # and so does transformers' loader, the gate's rows before those of up
    ignored: re.Pattern[str] | None  # what the class itself takes for left over

    def of(self, stored: str) -> str | None:
        """The parameter that a stored tensor of this name becomes; None where the model has none."""
        for theirs, ours in self.experts:
            stored = re.sub(_EXPERT.format(theirs), rf"\1{ours}\2", stored)
        for renamings in (self.renamings, []):
            name, _ = rename_source_key(stored, renamings, [], self.prefix, self.expected)
            if name in self.expected:
                return name
        return None

    def packable_name(self, parameter: str) -> str:
        """What checkpoints call a parameter where that differs, so that transformers packs it."""
        for theirs, ours in self.experts:
            parameter = re.sub(_EXPERT.format(ours), rf"\1{theirs}\2", parameter)
        return parameter

    def is_of_expert(self, stored: str) -> bool:
        """Whether a tensor of this name is a matrix of an expert of a block that the model has, be it one too many."""
        if not self.experts or (matrix := re.search(_EXPERT.format(r"\w+"), stored)) is None:
            return False
        first = f"{stored[: matrix.start()]}.experts.0.{self.experts[0][0]}.weight"
        return self.of(first) is not None

    def harmless(self, stored: str) -> bool:
        """Whether a tensor that the model has no parameter for is known to change nothing."""
        if _HARMLESS.search(stored) or changes_activations_only(stored):
            return True
        if self.ignored is not None and self.ignored.search(stored):
            return True
        return not self.causal and _ENCODER_HEAD.match(stored) is not None

    def beside_a_parameter(self, stored: str) -> bool:
        """Whether an unknown tensor belongs to a weight of the model, as scales do."""
        module = stored.rpartition(".")[0]
        return stored.rpartition(".")[2] != "bias" and any(
            self.of(name) is not None for name in (module, f"{module}.weight")
        )


def is_adapter(stored: str) -> bool:
    """Whether a tensor of this name belongs to an adapter of PEFT, or to the layer under one."""
    return _ADAPTER.search(stored) is not None


def parameter_names(config: dict[str, Any], stored: int) -> ParameterNames:
    """Of the model that a config.json describes and of which `stored` tensors are there.

    Raises InputError when the config is refused by this package or by transformers, or asks for more than is there.
    """
    blocks = model_spec(config).blocks
    if blocks > stored:
        raise InputError(f"config.json: asks for {blocks} blocks, the checkpoint has {stored} tensors in all")
    return _parameter_names(json.dumps(config, sort_keys=True))


@functools.lru_cache(maxsize=4)
def _parameter_names(config: str) -> ParameterNames:
    settings = json.loads(config)
    spec = model_spec(settings)
    model = empty_model(settings)
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    experts: tuple[tuple[str, str], ...] = ()
    if spec.has_experts:
        experts = tuple(_expert_names(entry for entry in transforms if isinstance(entry, WeightConverter)))
        if spec.experts_together:
            experts = tuple((name, name) for name in ("gate_proj", "up_proj", "down_proj"))
    plain_modules(model)
    first = {id(value): name for name, value in reversed(list(model.state_dict(keep_vars=True).items()))}
    expected = {name: first[id(value)] for name, value in model.state_dict(keep_vars=True).items()}
    optional = {expected[name] for name, _ in model.named_buffers() if name in expected}
    optional |= {name for name in expected if name.startswith("pooler.")}  # not exported
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings() if spec.causal else None
    if head is not None and head.weight is not embedding.weight:
        optional.add(first[id(head.weight)])
    parts = (getattr(part, "_keys_to_ignore_on_load_unexpected", None) for part in model.modules())
    ignored = [f"({pattern})" for patterns in parts for pattern in patterns or ()]
    return ParameterNames(
        expected=expected,
        required=frozenset(expected.values()) - optional,
        causal=spec.causal,
        transposed=spec.linear_is_transposed,
        prefix=model.base_model_prefix,
        renamings=renamings,
        experts=experts,
        together=spec.experts_together,
        as_rows=spec.has_experts and not experts,
        ignored=re.compile("|".join(ignored)) if ignored else None,
    )


def _expert_names(converters: Iterable[WeightConverter]) -> Iterator[tuple[str, str]]:
    """What checkpoints of a family call the matrices of an expert, and what numerics.experts."""
    ours = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
    for converter in converters:
        packed = converter.target_patterns[0].rpartition(".")[2]
        names = [pattern.removesuffix(".weight").rpartition(".")[2] for pattern in converter.source_patterns]
        if packed in ours and len(names) == len(ours[packed]):
            yield from zip(names, ours[packed])
