"""What a model family looks like, as data: everything the graph builder needs to know and nothing it can look up."""

from __future__ import annotations

from dataclasses import dataclass

from export.graph.parts import (
    NOT_SHARED,
    AltUp,
    ClampedGate,
    Experts,
    GatedDeltaNet,
    Laurel,
    PerLayerEmbedding,
    PerLayerInput,
    SharedFactors,
    ShortConvolution,
    StateSpace,
)


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (arXiv 2104.09864); ModelSpec.rope_interleaved says which channels form a pair."""

    inverse_frequencies: tuple[float, ...]  # radians per position, one per rotated pair of channels
    attention_factor: float = 1.0  # multiplies cos and sin


@dataclass(frozen=True)
class QueryGrowth:
    """Factor on the rotated queries, all channels of them: 1 + beta * ln(1 + floor(position / length))."""

    beta: float
    length: float  # positions


@dataclass(frozen=True)
class ScoreHead:
    """From the states of a text or pair to one score: output(norm(activation(dense(pooled state)))). Full names."""

    inside: str  # what names of the model without the head begin with in the one that has it
    dense: str
    output: str
    activation: str = "tanh"
    norm: str | None = None  # of the model's own kind
    pooling: str = "cls"  # or "mean"
    dense_bias: bool = True


@dataclass(frozen=True)
class BlockNames:
    """Module names inside one transformer block, relative to its prefix; None where the family has no such module.

    With experts, gate, up and down are names with {expert} in them.
    """

    attention_norm: str | None  # before the attention, or what stands in its place
    attention_output: str | None  # the last linear layer of that, but for a state space, which has its own
    mlp_norm: str | None  # before the feed-forward part
    down: str | None  # a block without has no feed-forward part
    up: str | None = None
    gate: str | None = None
    fused_gate_up: str | None = None  # one linear layer whose outputs are gate and up in this order
    query: str | None = None
    key: str | None = None
    value: str | None = None
    attention_post_norm: str | None = None  # on what the attention adds to the residual stream
    mlp_post_norm: str | None = None  # on what the feed-forward part adds
    attention_sum_norm: str | None = None  # on the residual stream after the attention was added
    mlp_sum_norm: str | None = None  # on the residual stream after the feed-forward part was added
    query_norm: str | None = None  # RMSNorm on queries, over each head or all of them (ModelSpec.norm_each_head)
    key_norm: str | None = None
    fused_qkv: str | None = None  # one linear layer whose outputs are query, key and value in this order
    experts: Experts | None = None
    convolution: ShortConvolution | None = None  # in place of attention: no query, key and value
    delta_net: GatedDeltaNet | None = None  # in place of attention: no query, key and value
    state_space: StateSpace | None = None  # in place of attention, or beside it where there is a query
    sinks: str | None = None  # parameter [heads]: a score beside those of the keys, of what no value stands for
    value_norm: bool = False  # RMSNorm without weights on each head of the values
    values_are_keys: bool = False  # before their norms: no value layer
    head_dim: int | None = None  # where they are not the model's
    kv_heads: int | None = None
    feed_forward: int | None = None
    per_layer: PerLayerInput | None = None
    laurel: Laurel | None = None
    gate_cut: float | None = None  # gates become relu(gate - mean - cut * deviation), both of the token's gates
    factor: str | None = None  # parameter [1]: what leaves the block is multiplied by it
    shared: SharedFactors = NOT_SHARED  # of low rank (export/graph/low_rank.py)

    @property
    def attends(self) -> bool:
        """Whether the block has attention."""
        return self.query is not None or self.fused_qkv is not None

    @property
    def keeps_state(self) -> bool:
        """Whether the block has a state of one size."""
        return self.convolution is not None or self.delta_net is not None or self.state_space is not None

    def linears(self) -> tuple[str, ...]:
        """The block's linear layers in the order of the forward pass."""
        return (*self.everyones(), *(name for names in self.by_expert() for name in names))

    def everyones(self) -> tuple[str, ...]:
        """The linear layers that read every token."""
        laurel = () if self.laurel is None else (self.laurel.left, self.laurel.right)
        space = None if self.state_space is None else self.state_space.output
        behind = (self.query, self.key) if self.shared.query_key else ()
        attention = (*laurel, *self.first(), *behind, space, self.attention_output)
        inner = (self.gate, self.up) if self.shared.gate_up else ()
        feed_forward: tuple[str | None, ...] = (*self.feed_forward_readers(), *inner, self.down)
        if self.experts is not None:
            beside = self.experts.shared or self.experts.beside
            feed_forward = () if beside is None else beside.linears()
        last = () if self.per_layer is None else self.per_layer.linears()
        return tuple(name for name in (*attention, *feed_forward, *last) if name is not None)

    def first(self) -> tuple[str, ...]:
        """The linear layers that read what the block begins with."""
        convolution = None if self.convolution is None else self.convolution.input
        delta_net = () if self.delta_net is None else (self.delta_net.qkv, self.delta_net.gate)
        space = None if self.state_space is None else self.state_space.input
        queries = (self.shared.query_key,) if self.shared.query_key else (self.query, self.key)
        names = (convolution, *delta_net, space, *queries, self.value, self.fused_qkv)
        return tuple(name for name in names if name is not None)

    def feed_forward_readers(self) -> tuple[str, ...]:
        """The linear layers that read what the feed-forward part begins with."""
        names = (self.shared.gate_up,) if self.shared.gate_up else (self.gate, self.up, self.fused_gate_up)
        return tuple(name for name in names if name is not None)

    def first_floats(self) -> tuple[str, ...]:
        """Linear layers that read the same, and are never quantized."""
        return () if self.delta_net is None else (self.delta_net.decay, self.delta_net.beta)

    def of_experts(self) -> tuple[str, ...]:
        """Those that every expert has one of, with {expert} in their names; none without experts."""
        return () if self.experts is None else tuple(name for name in (self.gate, self.up, self.down) if name)

    def alike(self) -> tuple[tuple[str, ...], ...]:
        """The linear layers, those together that are stored in one form: the same layer of all experts."""
        one_by_one = tuple((name,) for name in self.everyones())
        return one_by_one if self.experts is None else (*one_by_one, *map(self.experts.names, self.of_experts()))

    def by_expert(self) -> tuple[tuple[str, ...], ...]:
        """The linear layers of each expert."""
        if self.experts is None:
            return ()
        return tuple(zip(*(self.experts.names(template) for template in self.of_experts())))


@dataclass(frozen=True)
class HeadSizes:
    """Heads of the queries, those of keys and values, and the columns of each."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def queries(self) -> int:
        """Columns of all queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Columns of all keys, and of all values."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class ModelSpec:
    """A transformer: sizes, the choices its family makes, and the names of its tensors.

    A causal decoder has a final norm and a head; an encoder (`causal` False) makes states: it has no head, may have a
    final norm, and may share stored blocks.
    """

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int  # outputs of gate and up layers; of experts: Experts.width
    vocab_size: int
    context_length: int  # positions the source model was made for
    norm: str  # "rms", "layer" or "layer_without_bias"
    norm_epsilon: float
    activation: str  # "silu", "gelu", "gelu_tanh", "relu" or "relu2"
    block_prefix: str  # with {layer}
    block: BlockNames
    embedding: str
    final_norm: str | None = None
    head: str | None = None  # module name of the vocabulary head; its tensor is absent when tied
    tied_head: bool = False
    head_bias: bool = False  # the head adds a bias of its own, tied or not
    causal: bool = True
    rope: Rope | None = None
    local_rope: Rope | None = None  # of the layers with a sliding window, where it is not that of the others
    rope_interleaved: bool = False  # pairs are neighbours (2 i, 2 i + 1), not (i, i + half)
    query_growth: QueryGrowth | None = None
    position_embedding: str | None = None  # learned positions
    position_offset: int = 0  # rows of the position table before that of position 0; they are not exported
    # Per layer: how near a key must be, its own distance of 0 counted; None or absent: any. A decoder looks back only.
    sliding_window: tuple[int | None, ...] = ()
    looks_back_only: bool = False  # an encoder whose queries see no key behind their own
    scores: ScoreHead | None = None  # of an encoder that scores pairs of texts
    linear_is_transposed: bool = False  # the checkpoint stores linear weights as [in, out] (GPT-2's Conv1D)
    norm_each_head: bool = False  # query and key norms work on each head alone
    norm_after_rope: bool = False  # query and key norms come behind the rotation
    layers_without_rope: frozenset[int] = frozenset()
    embedding_scale: float = 1.0
    attention_input_scale: float = 1.0  # on what query, key and value layers read
    attention_output_scale: float = 1.0  # on what the attention's output layer gives
    gate_scale: float = 1.0  # on the gate of the feed-forward part, before its activation
    feed_forward_scale: float = 1.0  # on what that part gives
    residual_scale: float = 1.0  # on everything added to the residual stream
    attention_scale: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    logit_scale: float = 1.0
    clamped_gate: ClampedGate | None = None
    attention_softcap: float | None = None  # scores become cap * tanh(score / cap)
    logit_softcap: float | None = None
    norm_offset: float = 0.0  # added to the stored weight of every RMSNorm (1 in Gemma)
    parallel_residual: bool = False  # attention and feed-forward part both read the block's input
    query_gate: bool = False  # the query layer gives each head its query and what its output is gated with
    fused_qkv_by_head: bool = False  # rows of fused_qkv: query, key and value of head 0, then of head 1, ...
    token_types: str | None = None  # embedding of the segment a token belongs to
    token_type_count: int = 1
    embedding_norm: str | None = None
    embedding_size: int | None = None  # columns of the embeddings where that is not hidden_size
    embedding_projection: str | None = None  # linear layer from there to hidden_size
    positions_skip_padding: bool = False  # positions count the tokens that are not padding
    layers_without_attention_norm: frozenset[int] = frozenset()
    block_of_layer: tuple[int, ...] = ()  # the stored block each layer uses; empty: each its own
    block_kinds: tuple[BlockNames, ...] = ()  # of each stored block, where not all are as `block` says
    per_layer: PerLayerEmbedding | None = None
    # Per layer: the layer whose keys and values its queries see, itself or an earlier one; empty: each its own.
    cache_of_layer: tuple[int, ...] = ()
    altup: AltUp | None = None

    @property
    def embedding_width(self) -> int:
        return self.embedding_size or self.hidden_size

    @property
    def blocks(self) -> int:
        """Stored blocks; fewer than layers where layers share them."""
        return max(self.block_of_layer) + 1 if self.block_of_layer else self.layers

    @property
    def has_experts(self) -> bool:
        """Whether some block picks experts."""
        return any(names.experts is not None for names in self.kinds())

    @property
    def experts_together(self) -> bool:
        """Whether checkpoints hold the matrices of all experts of a block in one tensor."""
        return any(names.experts is not None and names.experts.together for names in self.kinds())

    def names(self, block: int) -> BlockNames:
        """The modules of a stored block."""
        return self.block_kinds[block] if self.block_kinds else self.block

    def names_of_layer(self, layer: int) -> BlockNames:
        return self.names(self.block_of_layer[layer] if self.block_of_layer else layer)

    def kinds(self) -> tuple[BlockNames, ...]:
        """All kinds of blocks there are, each once, in the order of the first block of each."""
        return tuple(dict.fromkeys(self.block_kinds)) or (self.block,)

    def uses(self, block: int) -> int:
        """How many layers, one after another, a stored block stands for."""
        return self.block_of_layer.count(block) if self.block_of_layer else 1

    def block_name(self, block: int) -> str:
        """Prefix of the module names of a stored block."""
        return self.block_prefix.format(layer=block)

    def prefix(self, layer: int) -> str:
        return self.block_name(self.block_of_layer[layer] if self.block_of_layer else layer)

    def heads_of(self, layer: int) -> HeadSizes:
        """Heads of a layer's attention."""
        return self.heads_of_block(self.block_of_layer[layer] if self.block_of_layer else layer)

    def heads_of_block(self, block: int) -> HeadSizes:
        names = self.names(block)
        return HeadSizes(self.heads, names.kv_heads or self.kv_heads, names.head_dim or self.head_dim)

    def cache_layer(self, layer: int) -> int:
        """The layer whose keys and values this one's queries see."""
        return self.cache_of_layer[layer] if self.cache_of_layer else layer

    def outside(self) -> dict[str, tuple[int, int]]:
        """Matrices outside the blocks: module name and shape [rows, columns] as they are exported."""
        width = self.embedding_width
        shapes = {self.embedding: (self.vocab_size, width)}
        if self.position_embedding:
            shapes[self.position_embedding] = (self.context_length, width)
        if self.token_types:
            shapes[self.token_types] = (self.token_type_count, width)
        if self.embedding_projection:
            shapes[self.embedding_projection] = (self.hidden_size, width)
        if self.head and not self.tied_head:
            shapes[self.head] = (self.vocab_size, self.hidden_size)
        if self.per_layer:
            parts = self.layers * self.per_layer.width
            shapes[self.per_layer.embedding] = (self.per_layer.rows, parts)
            shapes[self.per_layer.projection] = (parts, self.hidden_size)
        if self.altup:
            names = (*self.altup.projections, *self.altup.unembeddings)
            shapes |= dict.fromkeys(names, (self.hidden_size, self.hidden_size))
        return shapes

    def outside_floats(self) -> dict[str, tuple[int, ...]]:
        """What stays float32 outside the blocks: tensor name and shape. A model has every one of them."""
        return {name: (size,) for name, size in self._outside_vectors().items()} | self._score_head()

    def _score_head(self) -> dict[str, tuple[int, ...]]:
        head, width = self.scores, self.hidden_size
        if head is None:
            return {}
        shapes: dict[str, tuple[int, ...]] = {
            f"{head.dense}.weight": (width, width),
            f"{head.output}.weight": (1, width),
        }
        shapes |= {f"{head.dense}.bias": (width,)} if head.dense_bias else {}
        if head.norm:
            shapes |= {f"{head.norm}.{part}": (width,) for part in self._norm_parts()}
        return {**shapes, f"{head.output}.bias": (1,)}

    def _norm_parts(self) -> tuple[str, ...]:
        return ("weight", "bias") if self.norm == "layer" else ("weight",)

    def _outside_vectors(self) -> dict[str, int]:
        """Norm weights and biases."""
        parts = self._norm_parts()
        sizes = {f"{self.final_norm}.{part}": self.hidden_size for part in parts if self.final_norm}
        sizes |= {f"{self.embedding_norm}.{part}": self.embedding_width for part in parts if self.embedding_norm}
        if self.head and self.head_bias:
            sizes[f"{self.head}.bias"] = self.vocab_size
        if self.embedding_projection:
            sizes[f"{self.embedding_projection}.bias"] = self.hidden_size
        if self.per_layer:
            sizes[f"{self.per_layer.norm}.weight"] = self.per_layer.width
        return sizes

    def window(self, layer: int) -> int | None:
        return self.sliding_window[layer] if self.sliding_window else None

    def quantizable(self) -> tuple[str, ...]:
        """Full names (without `.weight`) of the linear layers inside the blocks, in forward order."""
        return tuple(self.block_name(i) + name for i in range(self.blocks) for name in self.names(i).linears())
