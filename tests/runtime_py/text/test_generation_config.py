"""generation_config.json: what is used, what is told to be unsupported, what is refused; no field is forgotten."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from export.contract.errors import InputError
from runtime_py.text.generation_config import RULES, SAMPLING, UNSUPPORTED, recommendation
from runtime_py.text.generator import default_sampling
from runtime_py.text.logit_processors import NEUTRAL, LogitRules
from runtime_py.text.sampling import SamplingSettings

# Fields that cannot change which text a request gets here, and those that other code reads.
ELSEWHERE = {"eos_token_id", "bos_token_id", "pad_token_id", "max_length", "max_new_tokens", "do_sample"}
WITHOUT_EFFECT = {
    "early_stopping", "length_penalty", "diversity_penalty",  # of beam search, which is told itself
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory", "prefill_chunk_size",
    "renormalize_logits", "remove_invalid_values", "decoder_start_token_id", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "transformers_version",
    # speculative decoding: faster, same tokens
    "use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "prompt_lookup_num_tokens",
    "assistant_confidence_threshold", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
    "target_lookbehind", "assistant_ensemble_weight", "speculation_type",
    "compile_config", "disable_compile", "continuous_batching_config",
}  # fmt: skip


def of(tmp_path, **config):
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    return recommendation(tmp_path, [2])


def test_every_field_of_transformers_is_in_exactly_one_class():
    names = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    classes = [SAMPLING, RULES, set(UNSUPPORTED), ELSEWHERE, WITHOUT_EFFECT]
    counts = {name: sum(name in found for found in classes) for name in names}
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_transformers_defaults_ask_for_nothing(tmp_path):
    found = of(tmp_path, **{**GenerationConfig._get_default_generation_params(), "do_sample": True})
    assert found.unsupported == () and found.rules == NEUTRAL
    assert recommendation(tmp_path / "nowhere").rules == NEUTRAL


def test_rules_hold_with_and_without_sampling(tmp_path):
    asked = {
        "repetition_penalty": 1.05, "no_repeat_ngram_size": 3, "bad_words_ids": [[5], [2], [6, 7]], "min_length": 4,
        "suppress_tokens": [1, 99999], "begin_suppress_tokens": [3],
    }  # fmt: skip
    expected = LogitRules(
        repetition_penalty=1.05, no_repeat_ngram_size=3, bad_words_ids=((5,), (6, 7)), min_length=4,
        suppress_tokens=(1, 99999), begin_suppress_tokens=(3,),
    )  # fmt: skip
    for samples in (True, False, None):
        assert of(tmp_path, do_sample=samples, **asked).rules == expected
    both = of(tmp_path, min_length=9, min_new_tokens=3).rules
    assert (both.min_tokens, both.min_length) == (3, 0)  # as in transformers


def test_sampling_values_hold_where_the_model_samples(tmp_path):
    asked = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05}
    assert of(tmp_path, do_sample=True, **asked).sampling == asked
    assert default_sampling(tmp_path, None, None, None, 1) == SamplingSettings(0.6, 20, 0.9, 1, 0.05)
    assert default_sampling(tmp_path, None, None, None, 1, min_p=0.0).min_p == 0.0
    assert of(tmp_path, **asked).sampling == {}
    assert default_sampling(tmp_path, None, None, None, 1) == SamplingSettings(0.7, 0, 0.95, 1)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_missing_is_told(tmp_path, name):
    assert of(tmp_path, do_sample=True, **{name: 0.5}).unsupported == (name,)
    for value in (None, *UNSUPPORTED[name]):
        assert of(tmp_path, do_sample=True, **{name: value}).unsupported == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", "1.1"),
        ("repetition_penalty", True),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("nan")),
        ("repetition_penalty", 10**400),
        ("no_repeat_ngram_size", 2.5),
        ("no_repeat_ngram_size", -1),
        ("min_length", 10**30),
        ("min_new_tokens", [1]),
        ("bad_words_ids", [1]),
        ("bad_words_ids", {"a": 1}),
        ("bad_words_ids", [["x"]]),
        ("suppress_tokens", 5),
        ("suppress_tokens", [1.0]),
        ("begin_suppress_tokens", [None]),
        ("top_k", float("inf")),
        ("top_k", -5),
        ("temperature", -1),
        ("top_p", 0),
        ("min_p", 2),
    ],
)
def test_what_cannot_be_meant_is_refused_naming_file_and_field(tmp_path, name, value):
    with pytest.raises(InputError, match=rf"generation_config.json: {name}".replace("_", "[_-]")) as caught:
        of(tmp_path, do_sample=True, **{name: value})
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted({"do_sample", *SAMPLING, *RULES, *UNSUPPORTED})), JSON, max_size=5))
def test_no_file_is_a_fault(tmp_path_factory, config):
    folder = tmp_path_factory.getbasetemp()
    (folder / "generation_config.json").write_text(json.dumps(config))
    try:
        recommendation(folder)
        default_sampling(folder, None, None, None, 0)
    except InputError as error:
        assert "\n" not in str(error)
