"""Runs a checkpoint one transformer block at a time with transformers' own layers, holding one block in memory.

The model is created on the meta device; a block's weights are read from the checkpoint when it is its turn and dropped
afterwards. Only hidden states are kept between blocks.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from export.contract.errors import InputError
from export.graph.parts import StateSpace
from export.graph.spec import BlockNames, ModelSpec
from toolchain.calibrate.carried import Carried
from toolchain.calibrate.moments import gram, token_shares
from toolchain.calibrate.stand_ins import Given, Recorder, Stop, moved, tensors_in, with_cache
from toolchain.numerics.experts import tokens_at_hand
from toolchain.numerics.plain_modules import plain_modules
from toolchain.numerics.products import FLOAT32, with_precision
from toolchain.source.checkpoint import SourceModel
from toolchain.source.config import as_transformers, transformers_config
from toolchain.source.empty_model import model_class
from toolchain.system.device import CPU, batches, each, summed


class BlockRunner:
    """Embeds token sequences and pushes them through one block after another."""

    def __init__(
        self, source: SourceModel, spec: ModelSpec, precision: str = FLOAT32, device: torch.device = CPU,
        maps: bool = False,
    ) -> None:  # fmt: skip
        """precision: of the linear layers' products (toolchain/numerics/products.py); device: where blocks compute.

        maps: attention computes its probabilities where they can be seen, which takes longer.
        """
        self.source, self.spec, self.precision, self.device = source, spec, precision, device
        where = source.folder / "config.json"
        config = as_transformers(lambda: transformers_config(source.config), where)
        if (
            maps or spec.attention_softcap is not None
        ):  # torch's fused attention, the default where a family has it, knows none
            config._attn_implementation = "eager"
        kind = model_class(spec)
        with torch.device("meta"):
            self._model = as_transformers(lambda: kind.from_config(config, dtype=torch.float32), where)
        plain_modules(self._model)
        self._carried = Carried.of(spec, source.config)
        if self._carried is not None:
            self._carried.silence(self._model)
        with_precision(self._model, precision).eval()
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []  # by stored block
        self._number_of: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()

    def _module(self, name: str) -> nn.Module:
        return self._model.get_submodule(name.rstrip("."))

    def embed(self, tokens: np.ndarray) -> torch.Tensor:
        """Inputs of the first block, float32 [sequences, length, state_size], for tokens int64 [sequences, length].

        Also keeps the arguments (mask, rotary angles) that the model hands to each block for one sequence.
        """
        names = [self.spec.block_name(i).rstrip(".") for i in range(self.spec.blocks)]
        blocks = [self._module(name) for name in names]
        recorders = [Recorder(block, last=block is blocks[-1]) for block in blocks]
        hidden: list[torch.Tensor] = []
        cached = "use_cache" in inspect.signature(self._model.forward).parameters or self.spec.causal
        settings = {"use_cache": False} if cached else {}
        with self._outside_weights(), torch.no_grad():
            try:
                for name, recorder in zip(names, recorders):
                    self._model.set_submodule(name, recorder)
                for row in tokens:
                    recorders[0].hidden = None
                    with contextlib.suppress(Stop):
                        self._model(input_ids=torch.from_numpy(row[None]), **settings)
                    assert recorders[0].hidden is not None
                    first = recorders[0].hidden
                    hidden.append(first if self._carried is None else self._carried.of_model(first))
            finally:
                for name, block in zip(names, blocks):
                    self._model.set_submodule(name, block)
        for recorder in recorders:
            recorder.hidden = None
        self._arguments = [moved((recorder.args, recorder.kwargs), self.device) for recorder in recorders]
        states = torch.cat(hidden)
        return states if self._carried is None else self._carried.behind(states, tokens, self._rows)

    def _rows(self, module: str, rows: np.ndarray, columns: int) -> torch.Tensor:
        """Rows of a matrix outside of the blocks, float32 [rows, columns]; of a vector where there are no columns."""
        if not columns:
            return self.source.tensor(f"{module}.weight", (len(rows),))
        return self.source.rows(f"{module}.weight", (self.spec.outside()[module][0], columns), rows)

    @property
    def state_size(self) -> int:
        """Columns of what passes from block to block."""
        return self.spec.hidden_size if self._carried is None else self._carried.width

    def visible(self, states: torch.Tensor) -> torch.Tensor:
        """The hidden states of what passes from block to block (carried.py)."""
        return states if self._carried is None else self._carried.visible(states)

    def _call(self, block: nn.Module, states: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a block makes of states [few, length, state_size], in that form."""
        if self._carried is not None:
            return self._carried.call(self._number_of[block], block, states, args, kwargs)
        result = block(states, *args, **kwargs)
        return result[0] if isinstance(result, tuple) else result

    @contextlib.contextmanager
    def _outside_weights(self) -> Iterator[None]:
        """Give the embeddings their weights and recompute the buffers that the meta device left empty."""
        spec = self.spec
        names = [n for n in (spec.embedding, spec.position_embedding, spec.token_types, spec.embedding_norm) if n]
        names += [spec.embedding_projection] if spec.embedding_projection else []
        names += spec.altup.projections if spec.altup else ()
        for name in names:
            module = self._module(name)
            for parameter, empty in list(module.named_parameters(recurse=False)):
                values = self.source.tensor(f"{name}.{parameter}", tuple(empty.shape))
                setattr(module, parameter, nn.Parameter(values, requires_grad=False))
            if "embed_scale" in dict(module.named_buffers()):
                module.embed_scale = torch.tensor(spec.embedding_scale)
            self._fill_index_buffers(name)
        for name, module in list(self._model.named_modules()):
            if name.endswith(("rotary_emb", "pos_emb")):
                parent_name, _, child = name.rpartition(".")
                setattr(self._module(parent_name), child, type(module)(config=self._model.config))
        yield
        for name in names:
            self._module(name).to("meta")

    def loss_gradients(self, hidden: torch.Tensor, tokens: np.ndarray) -> torch.Tensor:
        """Gradients of every sequence's mean loss of the next token by the last block's outputs.

        hidden, and what is returned: float32 [sequences, length, state_size]; tokens int64 [sequences, length].
        """
        blocks = {name: self._module(name) for name in map(self.spec.block_name, range(self.spec.blocks))}
        out, running = torch.empty_like(hidden), threading.local()

        def one(i: int) -> torch.Tensor:
            states = hidden[i : i + 1].to(self.device).requires_grad_()
            running.given = states if self._carried is None else self._carried.as_model(self.visible(states))
            ids = torch.from_numpy(tokens[i : i + 1])
            loss = self._model(input_ids=ids, labels=ids, use_cache=False).loss
            return torch.autograd.grad(loss, [states])[0][0]

        def from_given(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self.spec.altup is not None:  # the streams become one in between
                return None
            return (running.given, *inputs[1:])  # the last block's output, in whatever form the model takes that

        assert self.spec.final_norm
        handle = self._module(self.spec.final_norm).register_forward_pre_hook(from_given)
        with self._outside_weights(), self._end_weights():
            try:
                for name, block in blocks.items():
                    self._model.set_submodule(name.rstrip("."), Given(block, running))
                for i, found in enumerate(each(one, range(len(hidden)), self.device)):
                    out[i] = found
            finally:
                handle.remove()
                for name, block in blocks.items():
                    self._model.set_submodule(name.rstrip("."), block)
        return out

    @contextlib.contextmanager
    def _end_weights(self) -> Iterator[None]:
        """Give final norm and head their weights, on the device; to be called inside _outside_weights()."""
        assert self.spec.final_norm and self.spec.head
        # transformers' own name of the head may be another one than checkpoints have
        parts = {self.spec.final_norm: self._module(self.spec.final_norm)}
        parts[self.spec.head] = self._model.get_output_embeddings()
        parts |= {name: self._module(name) for name in (self.spec.altup.unembeddings if self.spec.altup else ())}
        for name, module in parts.items():
            for parameter, empty in list(module.named_parameters(recurse=False)):
                stored = f"{name}.{parameter}"
                if stored == f"{self.spec.head}.weight" and self.spec.tied_head:
                    stored = f"{self.spec.embedding}.weight"
                values = self.source.tensor(stored, tuple(empty.shape)).to(self.device)
                setattr(module, parameter, nn.Parameter(values, requires_grad=False))
        yield
        for module in parts.values():
            module.to("meta")

    def _fill_index_buffers(self, name: str) -> None:
        """Position and segment numbers that BERT-like embeddings keep beside their tables."""
        parent = self._module(name.rpartition(".")[0])
        for buffer, values in list(parent.named_buffers(recurse=False)):
            if buffer == "position_ids":
                parent.position_ids = torch.arange(values.shape[-1]).expand(1, -1)
            elif buffer == "token_type_ids":
                parent.token_type_ids = torch.zeros(values.shape, dtype=torch.long)

    def load_block(self, number: int) -> nn.Module:
        """A stored block with the checkpoint's weights, float32; the caller drops it when done."""
        prefix = self.spec.block_name(number)
        block: nn.Module = copy.deepcopy(self._module(prefix)).to_empty(device="cpu")
        state = {}
        for name, parameter in block.named_parameters():
            state[name] = self.source.tensor(prefix + name, tuple(parameter.shape))
        missing, unexpected = block.load_state_dict(state, strict=False)
        for module in block.modules():  # AltUp's, which no checkpoint holds
            if hasattr(module, "router_input_scale"):
                module.router_input_scale = torch.tensor(1 / self.spec.hidden_size)
        buffers = {name for name, _ in block.named_buffers()}
        if set(missing) - buffers or unexpected:
            raise InputError(f"{self.source.folder}: block {number} lacks {sorted(set(missing) - buffers)}")
        _fill_scales(block, self.spec.names(number).state_space)
        block = block.to(self.device)
        self._number_of[block] = number
        return block.eval().requires_grad_(False)

    def block_bytes(self, number: int) -> int:
        """Bytes of a stored block in float32."""
        return sum(4 * parameter.numel() for parameter in self._module(self.spec.block_name(number)).parameters())

    def run(self, block: nn.Module, hidden: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Outputs of a block for all sequences in the host's memory: float32 [sequences, length, hidden].

        Each runs alone in a thread, or some together on a device. cache: takes the place of the key-value cache, whose
        update() sees keys and values (toolchain/calibrate/ranges.py); then nothing runs in threads.
        """
        out = torch.empty_like(hidden)
        args, kwargs = self._arguments_of(block)
        if cache is not None:
            args, kwargs = with_cache(block, args, kwargs, cache)

        def one(own: slice) -> None:
            with torch.no_grad():
                result = self._call(block, hidden[own].to(self.device), args, kwargs)
            out[own] = result.to(out.device)

        together = self.together(block, hidden)
        for _ in each(one, together, self.device) if cache is None else map(one, together):
            pass
        return out

    def together(self, block: nn.Module, hidden: torch.Tensor) -> list[slice]:
        """The sequences that may pass a block together, where its arguments serve more than one."""
        count, length = hidden.shape[:2]
        shared = all(value.ndim < 2 or value.shape[0] == 1 for value in tensors_in(self._arguments_of(block)))
        return batches(count, length if shared else 1 << 62, self.device)

    def names(self, block: nn.Module) -> BlockNames:
        """The modules of a loaded block."""
        return self.spec.names(self._number_of[block])

    def _arguments_of(self, block: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._arguments[self._number_of[block]]

    def forward(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Outputs of a block for sequences [few, length, hidden], with gradients where they are on; on the device.

        few: one, or as many as together() has at once.
        """
        args, kwargs = self._arguments_of(block)
        found: torch.Tensor = self._call(block, hidden.to(self.device), args, kwargs)
        return found

    def hessians(
        self,
        block: nn.Module,
        names: tuple[str, ...],
        hidden: torch.Tensor,
        token_weights: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[dict[str, np.ndarray], torch.Tensor]:
        """H = 2 / T sum x x^T over all T tokens, float64 [K, K], for each linear layer of the block in `names`.

        token_weights [sequences, length] by name weight the terms of the sum (normalised to mean one); with
        [groups, sequences, length] the Hessians are [groups, K, K]. Without them, layers that read the same input
        share one array. An expert has the terms of its own tokens, and zeros where it has none. Also returns the
        block's outputs.
        """
        sums: dict[str, torch.Tensor] = {}
        owner: dict[str, str] = {}
        running = threading.local()  # the sequences of this thread and what its hooks have found

        def hook(name: str) -> Callable[..., None]:
            def accumulate(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                x = inputs[0]
                if token_weights is None and id(x) in running.seen:  # query, key and value read the same tensor
                    running.owner[name] = running.seen[id(x)][0]
                    return
                running.seen[id(x)] = (name, x)  # holding x keeps its id from being reused within this sequence
                running.owner[name] = name
                rows = x.reshape(-1, x.shape[-1])
                shares = None
                if token_weights is not None:
                    shares = token_shares(token_weights[name], running.sequences, self.device)
                    if (tokens := tokens_at_hand()) is not None:
                        shares = shares[..., tokens]
                running.found[name] = gram(rows, shares)  # float32 products over one sequence, or a device's batch

            return accumulate

        def one(own: slice) -> tuple[slice, dict[str, torch.Tensor], dict[str, str], torch.Tensor]:
            running.sequences, running.seen, running.owner, running.found = own, {}, {}, {}
            output = self.run(block, hidden[own])
            running.seen = {}
            return own, running.found, running.owner, output

        handles = [block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
        outputs = torch.empty_like(hidden)
        try:
            for own, found, owner_of, output in each(one, self.together(block, hidden), self.device):
                outputs[own], owner = output, {**owner, **owner_of}
                for name, term in found.items():  # float64 across batches, in their order
                    sums[name] = summed(sums.get(name), term)
        finally:
            for handle in handles:
                handle.remove()
        tokens = hidden.shape[0] * hidden.shape[1]
        shared = {name: total.mul_(2.0 / tokens).cpu().numpy() for name, total in sums.items()}
        found_of = {name: shared[owner[name]] for name in names if name in owner}
        for name in names:
            if name not in found_of:  # an expert that no token reached
                found_of[name] = np.zeros((get_weight(block.get_submodule(name)).shape[1],) * 2)
        return found_of, outputs


def _fill_scales(block: nn.Module, space: StateSpace | None) -> None:
    """The factors that Falcon-H1 keeps in a buffer of its blocks, and in no checkpoint."""
    for module in block.modules() if space is not None else ():
        buffer = getattr(module, "mup_vector", None)
        if buffer is not None and space is not None:
            sizes = torch.tensor([space.values, space.values, space.states, space.states, space.heads])
            buffer.copy_(torch.repeat_interleave(torch.tensor(space.scales), sizes).reshape(buffer.shape))


def get_weight(module: nn.Module) -> np.ndarray:
    """A linear layer's weight as float32 [out, in], whatever layout the module stores."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return (weight.T if isinstance(module, Conv1D) else weight).detach().cpu().contiguous().numpy()


def set_weight(module: nn.Module, weights: np.ndarray) -> None:
    """Replace a linear layer's weight by float32 [out, in]."""
    value = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))
    target = module.weight
    assert isinstance(target, torch.Tensor)
    with torch.no_grad():
        target.copy_(value.T if isinstance(module, Conv1D) else value)
