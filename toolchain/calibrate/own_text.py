"""Text that the model writes itself: as much calibration data as wanted, all in the model's own domain.

A model that is calibrated and tuned on one text follows the source model closely there and less closely elsewhere.
Continuations sampled at temperature one come from the very distribution that is to be kept (LLM-QAT,
arXiv 2305.17888, section 3.1), and no window is seen twice. Needs the whole model in memory, 4 bytes a parameter.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.utils import logging

from export.contract.errors import InputError
from export.graph.archs import model_spec
from toolchain.numerics.low_rank import factor_names, multiplied
from toolchain.numerics.plain_modules import plain_modules
from toolchain.numerics.products import FLOAT32, with_precision
from toolchain.source.checkpoint import SourceModel
from toolchain.source.config import as_transformers, transformers_config
from toolchain.source.empty_model import check_shapes
from toolchain.source.transforms.folding import FoldedSource
from toolchain.system.device import CPU, each
from toolchain.system.threads import pieces

PROMPT = 16  # tokens of the calibration text that each window begins with
_WITH_STATE = frozenset({"conv", "linear_attention", "hybrid"})  # kinds of layers in transformers' `layer_types`
WINDOWS = 64  # windows written together at most: enough to share the weights' way through memory
CHUNK = 4 * WINDOWS  # windows made at a time


def whole_model(source: SourceModel, precision: str = FLOAT32, device: torch.device = CPU) -> PreTrainedModel:
    """The source model in float32, with everything that is folded into its weights, without gradients.

    precision: of the linear layers' products (toolchain/numerics/products.py); device: where it is.

    transformers builds it from the tensors that the source gives, not from the files, which may be quantized.
    """
    logging.disable_progress_bar()
    base = source
    while isinstance(base, FoldedSource):
        base = base.inner
    tensors = base.packable()
    spec = model_spec(source.config)
    factors = factor_names(spec)
    if factors:
        tensors = multiplied(tensors, spec)
    config = as_transformers(lambda: transformers_config(source.config), source.folder / "config.json")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    if factors:
        _check_products(source, tensors, empty)
    else:
        check_shapes(base, empty)
    try:
        model, report = type(empty).from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
        )
    except RuntimeError as error:  # a tensor of another shape
        raise InputError(f"{source.folder}: transformers refuses the checkpoint ({_last_line(error)})") from None
    if report["missing_keys"]:  # it would have made them up
        raise InputError(f"{source.folder}: the checkpoint has no tensor {min(report['missing_keys'])}")
    plain_modules(model.eval().requires_grad_(False))
    names = factors | (source.folded() if isinstance(source, FoldedSource) else set())
    if names:
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.copy_(source.tensor(name, tuple(parameter.shape)))
    with_precision(model, precision)
    if device.type != "cpu":
        model.to(device)
        model.tie_weights()
    return model


def _check_products(source: SourceModel, tensors: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Raises InputError for a product of factors, or another tensor, that is no tensor of the model."""
    for name, parameter in model.named_parameters():
        if name in tensors and tensors[name].shape != parameter.shape:
            found, wanted = list(tensors[name].shape), list(parameter.shape)
            raise InputError(f"{source.folder}: {name} has shape {found}, config.json asks for {wanted}")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def mixed(
    source: SourceModel, tokens: np.ndarray, share: float, seed: int, precision: str = FLOAT32,
    device: torch.device = CPU,
) -> np.ndarray:  # fmt: skip
    """Sequences int64 [count, length] with the first `share` of them replaced by the model's own text."""
    count = round(share * len(tokens))
    if count == 0:
        return tokens
    own = OwnText(whole_model(source, precision, device), tokens.reshape(-1), tokens.shape[1], seed, chunk=count)
    return np.concatenate([own.windows(0, count), tokens[count:]])


class OwnText:
    """An endless list of windows written by a model; window i depends on the seed, the text and the model alone."""

    def __init__(self, model: nn.Module, text: np.ndarray, length: int, seed: int, chunk: int = CHUNK) -> None:
        """text: token ids int64 [n], more than `length` of them; length: tokens a window, at most the context."""
        self._model, self._text, self._length, self._seed, self._count = model, text, length, seed, chunk
        self._device = next(model.parameters()).device
        self._place, self._chunk = -1, np.empty((0, length), np.int64)

    def windows(self, first: int, count: int) -> np.ndarray:
        """Windows first to first + count, int64 [count, length]; earlier chunks than the last asked for are redone."""
        found = []
        for i in range(first, first + count):
            if i // self._count != self._place:
                self._place = i // self._count
                self._chunk = self._write(self._place)
            found.append(self._chunk[i % self._count])
        return np.stack(found) if found else np.empty((0, self._length), np.int64)

    def _write(self, place: int) -> np.ndarray:
        prompt = min(PROMPT, self._length)
        starts = np.random.default_rng((self._seed, place)).integers(0, len(self._text) - prompt + 1, self._count)
        prompts = np.stack([self._text[start : start + prompt] for start in starts])

        def write(batch: slice) -> np.ndarray:
            draws = torch.Generator().manual_seed((self._seed + place * self._count + batch.start) % 2**63)
            return continued(self._model, prompts[batch], self._length, draws)

        parts = pieces(self._count, min(WINDOWS, -(-self._count // 2)))  # what they draw depends on where they begin
        return np.concatenate(list(each(write, parts, self._device)))


class _RoomyLayer(DynamicLayer):
    """Keys and values in arrays with room for more tokens, where transformers copies all of them for each."""

    _room: list[torch.Tensor] | None = None  # keys and values [batch, heads, room, head dim]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        past, fresh = self.get_seq_length(), (key_states, value_states)
        count = past + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < count:
            room = [x.new_empty(*x.shape[:-2], 2 * count, x.shape[-1]) for x in fresh]
            for larger, smaller in zip(room, self._room or ()):
                larger[:, :, :past] = smaller[:, :, :past]
            self._room, self.is_initialized = room, True
            self.dtype, self.device = key_states.dtype, key_states.device
        for array, x in zip(self._room, fresh):
            array[:, :, past:count] = x
        self.keys, self.values = (array[:, :, :count] for array in self._room)
        return self.keys, self.values


def _empty_cache(model: nn.Module) -> Cache:
    """Room for keys and values of every layer of attention, and what transformers keeps for layers with a state."""
    config: Any = model.config
    kinds = getattr(config, "layer_types", None) or ()
    if _WITH_STATE.isdisjoint(kinds):
        return Cache(layer_class_to_replicate=_RoomyLayer)
    layers = DynamicCache(config=config).layers
    return Cache(layers=[_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in layers])


def _cache_argument(model: nn.Module) -> str:
    """What the model's forward calls its cache; others it would swallow."""
    names = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in names else "past_key_values"


def drawn(shares: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """One token of each row's distribution, int64 [count, 1]; shares: float32 [count, vocabulary], of any sum.

    Where a uniform number falls among the running sums. torch.multinomial draws a number for every token instead,
    which is a fifth of the time of writing with a vocabulary of 49,152.
    """
    sums = shares.cumsum(dim=1)
    points = torch.rand(len(sums), 1, generator=draws) * sums[:, -1:]
    # a product that rounds up to the last sum is below none
    return torch.searchsorted(sums, torch.minimum(points, sums[:, -1:].nextafter(sums.new_zeros(()))), right=True)


def continued(model: nn.Module, prompts: np.ndarray, length: int, draws: torch.Generator) -> np.ndarray:
    """Prompts int64 [count, prompt length] with tokens drawn from the model's full distribution up to `length`."""
    rows = fresh = torch.from_numpy(prompts)
    cache, device = {_cache_argument(model): _empty_cache(model)}, next(model.parameters()).device
    with torch.no_grad():
        while rows.shape[1] < length:
            ids = fresh.to(device)
            logits = model(input_ids=ids, **cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            fresh = drawn(torch.softmax(logits, dim=-1).cpu(), draws)  # a device would draw others from the same seed
            rows = torch.cat([rows, fresh], dim=1)
    return rows.numpy()
