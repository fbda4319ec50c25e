"""Parts that a block can have beside attention and a plain feed-forward, as data: names and sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SharedExpert:
    """A feed-forward part that every token passes beside the experts picked for it.

    With a `weight`, what it gives is multiplied by the logistic function of the token's product with that.
    """

    down: str
    width: int  # rows of gate and up
    up: str | None = None
    gate: str | None = None  # without one, `up` is activated
    fused_gate_up: str | None = None  # one linear layer whose outputs are gate and up in this order
    weight: str | None = None  # its matrix [1, hidden_size] stays float32

    def linears(self) -> tuple[str, ...]:
        names = (self.gate, self.up, self.fused_gate_up, self.down)
        return tuple(name for name in names if name is not None)


@dataclass(frozen=True)
class DenseBeside:
    """A gated feed-forward part that every token passes beside its experts; norms make both alike in size.

    It reads what the block's norm before it gives; router and experts read the residual stream through norms of their
    own, that of the router without weights but multiplied by `router_scale` and hidden_size ** -0.5.
    """

    gate: str
    up: str
    down: str
    norm: str  # on what it gives
    experts_norm: str  # on what the experts read
    experts_post_norm: str  # on what they give
    router_scale: str  # parameter [hidden_size]

    def linears(self) -> tuple[str, ...]:
        return self.gate, self.up, self.down


@dataclass(frozen=True)
class Experts:
    """A feed-forward part made of many, of which a router picks a few for every token.

    The router's probabilities are the softmax of its products over all experts; the largest `per_token` are taken and
    weight what those experts give.
    """

    count: int
    per_token: int
    normalised: bool  # the weights of a token are divided by their sum
    width: int  # outputs of an expert's gate and up layers
    router: str = "mlp.gate"  # its matrix [count, hidden_size] stays as it is
    sigmoid: bool = False  # a probability is the sigmoid of its product, whatever the others are
    pick_bias: str | None = None  # parameter [count], added to the probabilities where the largest are looked for
    floor: float = 0.0  # added to the sum that weights are divided by
    scale: float = 1.0  # on the weights
    of_picked: bool = False  # the softmax is over the largest products alone, not over all
    together: bool = False  # checkpoints hold the experts of a block in one tensor (source/stacked_experts.py)
    shared: SharedExpert | None = None
    own_scales: str | None = None  # parameter [count]: the weights of an expert are multiplied by its own
    beside: DenseBeside | None = None

    def names(self, template: str) -> tuple[str, ...]:
        """The modules of all experts that a name with {expert} in it stands for."""
        return tuple(template.format(expert=number) for number in range(self.count))


@dataclass(frozen=True)
class ClampedGate:
    """What a gated feed-forward part has between its layers, in place of activation(gate) * up.

    g * sigmoid(alpha * g) * (u + 1), g being the gate, `limit` at most, and u being up within `limit` of 0.
    """

    alpha: float
    limit: float


@dataclass(frozen=True)
class ShortConvolution:
    """What stands in a block in place of attention: a causal convolution of each channel, between two gates.

    The linear layer `input` gives three parts; the product of the first and the third is convolved, that times the
    second goes into the block's `attention_output`.
    """

    input: str
    kernel: str  # [hidden_size, 1, width], and a bias where the checkpoint has one; both stay float32
    width: int  # positions that an output sees, its own among them: columns of the state


@dataclass(frozen=True)
class GatedDeltaNet:
    """What stands in a block in place of attention: the gated delta rule, behind a causal convolution of each channel.

    The linear layer `qkv` gives queries, keys and values, which are convolved and activated; what the rule gives is
    normed by head and multiplied by silu of what `gate` gives, and goes into the block's `attention_output`. The
    layers `decay` and `beta` have one output for each head of values; they and the kernel stay float32.
    """

    qkv: str
    gate: str
    decay: str
    beta: str
    kernel: str  # [channels, 1, width]
    rate: str  # parameter [value_heads]: the logarithm of minus the rate
    bias: str  # parameter [value_heads], added to the decay
    norm: str  # RMSNorm of each head, without an offset
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    width: int  # positions that the convolution sees

    @property
    def keys(self) -> int:
        """Columns of all keys."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Columns of all values."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Columns of queries, keys and values together."""
        return 2 * self.keys + self.values


@dataclass(frozen=True)
class PerLayerEmbedding:
    """A second embedding, whose rows have a part for each layer; every block adds what it makes of its own part.

    The part of a layer is (embedding * scale + norm(projection of the token's first embedding)) / sqrt(2), the norm
    being an RMSNorm of each part. Full names.
    """

    embedding: str
    projection: str  # linear layer from hidden_size to all parts, times hidden_size ** -0.5
    norm: str
    rows: int
    width: int  # of a part


@dataclass(frozen=True)
class PerLayerInput:
    """The last part of a block: projection(activation(gate(x)) * part of the PerLayerEmbedding), normed, is added."""

    gate: str
    projection: str
    norm: str

    def linears(self) -> tuple[str, ...]:
        return self.gate, self.projection


@dataclass(frozen=True)
class AltUp:
    """Several hidden states of every token, of which a block computes with one and corrects all (AltUp, NeurIPS 2023).

    Names in the block: layers without biases, which stay float32, as the norm and the scale do.
    """

    streams: int
    active: int  # number of the one
    projections: tuple[str, ...]  # of the embedding to the streams behind the first; full names
    unembeddings: tuple[str, ...]  # of those behind the last block; full names
    router: str  # [streams, hidden_size], of what `router_norm` gives, times 1 / hidden_size
    router_norm: str
    prediction: str  # [streams ** 2, streams]
    correction: str  # [streams, streams]
    scale: str | None  # parameter [hidden_size]: on the corrected stream that the per-layer input is made from


@dataclass(frozen=True)
class Laurel:
    """A learned residual beside the attention: x + norm(right(left(x))), x being what the attention reads."""

    left: str
    right: str
    norm: str
    rank: int


@dataclass(frozen=True)
class StateSpace:
    """What stands in a block in place of attention or beside it: the selective state space of Mamba-2.

    The linear layer `input` gives the gate, then values, B and C, which are convolved and activated, and at last the
    steps. What the state space gives is multiplied by silu of the gate, normed, and goes into the layer `output`.
    """

    input: str
    output: str
    kernel: str  # [channels, 1, width], and a bias where the checkpoint has one; both stay float32
    rate: str  # parameter [heads]: the logarithm of minus the rate
    bias: str  # parameter [heads], added to the step
    skip: str  # parameter [heads]: what each head adds of its own values
    norm: str | None  # RMSNorm of the values, without an offset
    activation: str
    heads: int
    groups: int  # of heads that share B and C
    head_dim: int
    state_size: int  # numbers of B and of C
    width: int  # positions that the convolution sees
    norm_groups: int = 1  # parts of the values that are normed each alone
    gate_after_norm: bool = False  # the norm comes before the product with silu of the gate
    input_scale: float = 1.0  # on what the layer `input` reads
    output_scale: float = 1.0  # on what the layer `output` gives
    scales: tuple[float, float, float, float, float] = (1.0,) * 5  # on the gate, values, B, C and steps
    least_step: float = 0.0  # limits of a step behind its activation; None: there is none
    most_step: float | None = None

    @property
    def values(self) -> int:
        """Columns of all heads."""
        return self.heads * self.head_dim

    @property
    def states(self) -> int:
        """Columns of B, or of C."""
        return self.groups * self.state_size

    @property
    def channels(self) -> int:
        """Columns that are convolved."""
        return self.values + 2 * self.states

    @property
    def rows(self) -> int:
        """Outputs of the layer `input`."""
        return self.values + self.channels + self.heads


@dataclass(frozen=True)
class SharedFactors:
    """Linear layers whose outputs others read in place of what the block gives them: W = U V, V shared by two.

    Names within the block; None: the two layers there read what they always do.
    """

    query_key: str | None = None  # before the query and key layers
    query_key_rank: int = 0  # its outputs
    gate_up: str | None = None  # before the gate and up layers
    gate_up_rank: int = 0


NOT_SHARED = SharedFactors()
