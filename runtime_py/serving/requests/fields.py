"""Every field of a request that is known, by route, and what becomes of it. A table, so that none is missed.

A field is in exactly one class of a route: `supported` (schema.py reads it), `inert` (it cannot change the answer's
text; accepted whatever it holds), or `refused` (it would change the answer and is not there; accepted while it holds
null or one of the values listed, with which it changes nothing). What no table knows is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime_py.serving.requests.errors import ApiError
from runtime_py.text.generation_config import UNSUPPORTED


@dataclass(frozen=True)
class Fields:
    """The classes of one kind of object."""

    supported: frozenset[str]
    inert: frozenset[str]
    refused: Mapping[str, tuple[Any, ...]]  # with the values that change nothing, beside null

    def knows(self, name: str) -> bool:
        """Whether a field of this name is in one of the classes."""
        return name in self.supported or name in self.inert or name in self.refused


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _nothing(text: str) -> dict[str, tuple[Any, ...]]:
    return dict.fromkeys(text.split(), ())


# Identifiers, accounting, caching and scheduling: none of them reaches the model.
_INERT = _names(
    "user metadata store service_tier safety_identifier request_id rid session_id priority keep_alive cache_prompt "
    "id_slot prompt_cache_key prompt_cache_options prompt_cache_retention prediction custom_labels "
    "data_parallel_rank routed_dp_rank"
)
_GENERATION = _names(
    "model stream stream_options max_tokens n best_of logprobs temperature top_p top_k min_p seed stop "
    "repetition_penalty frequency_penalty presence_penalty logit_bias stop_token_ids min_tokens ignore_eos "
    "response_format structured_outputs guided_json guided_regex guided_choice guided_grammar json_schema grammar "
    "regex ebnf"
)
# Extensions of the API by vLLM, llama.cpp's server, TGI, SGLang, Ollama, text-generation-webui, koboldcpp and hosted
# services. A penalty of 1 or a strength of 0 is their way to say "off".
_EXTENSIONS: Mapping[str, tuple[Any, ...]] = {
    # transformers' generate(), as its own server and others take it
    **UNSUPPORTED,
    "early_stopping": (False,),
    "min_length": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "renormalize_logits": (False,),
    **_nothing("generation_config forced_decoder_ids eos_token_id cache_implementation assistant_model"),
    # vLLM
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "beam_width": (1,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "return_prompt_text": (False,),
    "bad_words": ([],),
    "logits_processors": ([],),
    "echo": (False,),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "include_reasoning": (True,),
    **_nothing(
        "truncate_prompt_tokens prompt_logprobs allowed_token_ids guided_decoding_backend guided_whitespace_pattern "
        "structural_tag documents "
        "chat_template cache_salt kv_transfer_params ec_transfer_params prompt_embeds reasoning logprob_token_ids "
        "thinking_token_budget repetition_detection truncation_side"
    ),
    # llama.cpp
    "n_predict": (-1,),
    "n_keep": (0,),
    "n_discard": (0,),
    "n_indent": (0,),
    "n_cache_reuse": (0,),
    "n_probs": (0,),
    "min_keep": (0,),
    "typical_p": (1,),
    "typical": (1,),
    "tfs_z": (1,),
    "tfs": (1,),
    "top_n_sigma": (-1, 0),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "repeat_penalty": (1,),
    "rep_pen": (1,),
    "penalize_nl": (False,),
    "post_sampling_probs": (False,),
    "return_tokens": (False,),
    "timings_per_token": (False,),
    "return_progress": (False,),
    "lora": ([],),
    "grammar_lazy": (False,),
    "grammar_triggers": ([],),
    "preserved_tokens": ([],),
    "response_fields": ([],),
    "image_data": ([],),
    "reasoning_format": ("none",),
    "thinking_forced_open": (False,),
    "parse_tool_calls": (False,),
    "t_max_predict_ms": (0, -1),
    "t_max_prompt_ms": (0, -1),
    "adaptive_target": (-1,),
    # Parameters of samplers that the fields above switch on, and the order of samplers.
    **_nothing(
        "mirostat_tau mirostat_eta dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers xtc_threshold "
        "dynatemp_exponent repeat_last_n samplers penalty_prompt input_prefix input_suffix input_extra "
        "enable_thinking reasoning_budget reasoning_budget_tokens chat_format adaptive_decay backend_sampling"
    ),
    # TGI
    "do_sample": (True,),
    "watermark": (False,),
    "details": (False,),
    "decoder_input_details": (False,),
    "return_full_text": (False,),
    **_nothing("inputs parameters max_new_tokens truncate top_n_tokens adapter_id guideline tool_prompt"),
    # SGLang
    "no_stop_trim": (False,),
    "min_new_tokens": (0,),
    "separate_reasoning": (False,),
    "stream_reasoning": (False, True),
    "return_hidden_states": (False,),
    "return_routed_experts": (False,),
    "return_cached_tokens_details": (False,),
    "return_meta_info": (False,),
    "return_logprob": (False,),
    "custom_params": ({},),
    **_nothing(
        "stop_regex lora_path session_params input_ids input_embeds custom_logit_processor extra_key "
        "bootstrap_host bootstrap_port bootstrap_room images_config sampling_params ngram_corpus_id "
        "max_dynamic_patch min_dynamic_patch disagg_prefill_dp_rank"
    ),
    # Ollama
    "options": ({},),
    "raw": (False,),
    "images": ([],),
    **_nothing("think format system template context num_predict num_ctx num_keep"),
    # text-generation-webui and koboldcpp
    "top_a": (0,),
    "smoothing_factor": (0,),
    "smoothing_curve": (1,),
    "dynamic_temperature": (False,),
    "penalty_alpha": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "temperature_last": (False,),
    "guidance_scale": (1,),
    "negative_prompt": ("",),
    "ban_eos_token": (False,),
    "custom_token_bans": ("",),
    "banned_strings": ([],),
    "banned_tokens": ([],),
    "auto_max_new_tokens": (False,),
    "add_bos_token": (True,),
    "nsigma": (0,),
    "skew": (0,),
    **_nothing(
        "dynatemp_low dynatemp_high sampler_priority sampler_order rep_pen_range rep_pen_slope grammar_string preset "
        "mode character instruction_template instruction_template_str chat_template_str user_name bot_name memory "
        "max_length max_context_length prompt_lookup_num_tokens repetition_penalty_range repetition_context_size "
        "repetition_decay stopping_strings truncation_length cfg_scale presence_context_size frequency_context_size"
    ),
    # Hosted services
    "safe_prompt": (False,),
    "transforms": ([],),
    "plugins": ([],),
    "models": ([],),
    **_nothing(
        "random_seed prompt_mode provider route thinking stop_sequences max_output_tokens input instructions "
        "draft_model adapters num_draft_tokens search_parameters reasoning_split context_length_exceeded_behavior "
        "prompt_truncate_len"
    ),
}
_CHAT_ONLY: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),  # without tools there is none to choose
    "parallel_tool_calls": (False, True),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "verbosity": ("medium",),  # the API's own default
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    **_nothing("audio moderation reasoning_effort web_search_options"),
}
_EMBEDDING_ONLY: Mapping[str, tuple[Any, ...]] = {
    "truncate": (False,),
    "truncation": (False,),
    "output_dtype": ("float",),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "late_chunking": (False,),
    **_nothing(
        "normalize embd_normalize pooling input_type prompt_name prompt_type task task_type instruction instruct "
        "embedding_type embedding_types output_dimension content use_activation softmax activation texts query queries"
    ),
}


def _route(supported: frozenset[str], refused: Mapping[str, tuple[Any, ...]]) -> Fields:
    """A route's fields: what another route supports and this one does not is refused here."""
    everything: dict[str, tuple[Any, ...]] = {**_EXTENSIONS, **_CHAT_ONLY, **_EMBEDDING_ONLY, **_nothing(_ELSEWHERE)}
    everything |= refused
    return Fields(supported, _INERT, {name: v for name, v in everything.items() if name not in supported | _INERT})


_ELSEWHERE = " ".join(sorted(_GENERATION)) + (
    " messages max_completion_tokens top_logprobs chat_template_kwargs prompt suffix encoding_format dimensions"
)
_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
COMPLETIONS = _route(_GENERATION | {"prompt"}, {"suffix": ("",), "add_special_tokens": (True,)})
CHAT = _route(
    _GENERATION | _TOOLS | {"messages", "max_completion_tokens", "top_logprobs", "chat_template_kwargs"},
    {"add_special_tokens": (False,)},  # templates write their own
)
EMBEDDINGS = _route(
    frozenset({"model", "input", "encoding_format", "dimensions", "prompt_name"}), {"add_special_tokens": (True,)}
)
RERANK = _route(
    frozenset({"model", "query", "documents", "top_n", "return_documents"}),
    _nothing("rank_fields max_chunks_per_doc max_tokens_per_doc overlap_tokens raw_scores"),
)
DOCUMENT = Fields(frozenset({"text"}), frozenset(), {"image": ()})
_SHAPES = frozenset(name for name in _GENERATION if name.startswith(("guided_", "structured_")))
_CHATS_ALONE = _names("max_tokens logprobs n best_of response_format json_schema grammar regex ebnf")
RESPONSES = _route(
    _GENERATION.difference(_CHATS_ALONE, _SHAPES)
    | _TOOLS
    | _names("input instructions max_output_tokens text reasoning include top_logprobs chat_template_kwargs"),
    {
        "background": (False,),
        "truncation": ("disabled",),
        "response_format": ({"type": "text"},),
        **_nothing("previous_response_id conversation prompt max_tool_calls context_management image"),
    },
)  # fmt: skip
RESPONSE_STREAM_OPTIONS = Fields(frozenset(), frozenset({"include_obfuscation"}), {"include_usage": (True, False)})
RESPONSE_TEXT = Fields(frozenset({"format"}), frozenset(), {"verbosity": ("medium",)})
RESPONSE_SCHEMA = Fields(frozenset({"type", "schema", "name", "description", "strict"}), frozenset(), {})
RESPONSE_TOOL = Fields(
    frozenset({"type", "name", "description", "parameters", "strict"}),
    frozenset({"allowed_callers", "output_schema"}),
    {"defer_loading": (False,)},
)
RESPONSE_CHOICE = Fields(frozenset({"type", "name", "mode", "tools"}), frozenset(), {})
_ITEM = frozenset({"id", "status", "phase", "type"})
ITEM_MESSAGE = Fields(frozenset({"role", "content"}), _ITEM, {})
ITEM_PART = Fields(frozenset({"text"}), frozenset({"type", "annotations", "logprobs", "prompt_cache_breakpoint"}), {})
ITEM_CALL = Fields(frozenset({"call_id", "name", "arguments"}), _ITEM | {"caller"}, _nothing("namespace async"))
ITEM_RESULT = Fields(frozenset({"call_id", "output"}), _ITEM | {"caller", "name"}, {})
ITEM_REASONING = Fields(frozenset({"content"}), _ITEM | {"summary"}, _nothing("encrypted_content"))
STREAM_OPTIONS = Fields(
    frozenset({"include_usage"}), frozenset({"include_obfuscation"}), {"continuous_usage_stats": (False,)}
)
TOOL = Fields(frozenset({"type", "function"}), frozenset({"cache_control"}), {})
FUNCTION = Fields(frozenset({"name", "description", "parameters", "strict"}), frozenset(), {"return": ()})
ALLOWED_CHOICE = Fields(frozenset({"type", "allowed_tools"}), frozenset(), {})
ALLOWED_TOOLS = Fields(frozenset({"mode", "tools"}), frozenset(), {})
CALL = Fields(frozenset({"id", "type", "function"}), frozenset({"index"}), {})
CALLED = Fields(frozenset({"name", "arguments"}), frozenset(), {})
TEXT_FORMAT = Fields(frozenset({"type"}), frozenset(), {"json_schema": ()})
OBJECT_FORMAT = Fields(frozenset({"type", "schema"}), frozenset(), {"json_schema": ()})
SCHEMA_FORMAT = Fields(frozenset({"type", "json_schema"}), frozenset(), {})
NAMED_SCHEMA = Fields(frozenset({"schema"}), frozenset({"name", "description", "strict"}), {})
STRUCTURED_OUTPUTS = Fields(
    frozenset({"json", "json_object", "regex", "choice", "grammar"}),
    frozenset({"disable_fallback"}),
    {
        "disable_any_whitespace": (False,),
        "disable_additional_properties": (False,),
        **_nothing("structural_tag whitespace_pattern backend"),
    },
)
# `name` and `reasoning_content` reach the chat template, which may show them.
MESSAGE = Fields(
    frozenset({"role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id"}),
    frozenset({"cache_control"}),
    {
        "refusal": ("",),
        "annotations": ([],),
        "images": ([],),
        "prefix": (False,),
        "partial": (False,),
        "reasoning_details": ([],),
        **_nothing(
            "function_call audio weight reasoning thinking tool_responses tool_plan documents citations "
            "tool_name thinking_blocks provider_specific_fields"
        ),
    },
)
PART = Fields(frozenset({"type", "text"}), frozenset({"cache_control", "prompt_cache_breakpoint"}), {})


def check(found: Mapping[str, Any], fields: Fields, ignore_unknown: bool, where: str = "") -> None:
    """Raises ApiError naming the first field that is not supported, or not known. where: such as `messages[0].`."""
    for name, value in found.items():
        if name in fields.supported or name in fields.inert:
            continue
        shown = where + name[:100].encode("ascii", "backslashreplace").decode()
        if name in fields.refused:
            if value is not None and not any(_same(value, neutral) for neutral in fields.refused[name]):
                raise ApiError(400, f"{shown} is not supported by this server", shown, "unsupported")
        elif not ignore_unknown:
            raise ApiError(400, f"unknown field {shown!r}: this server does not know it", shown, "unknown_field")


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and not a number that stands for true or false."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
