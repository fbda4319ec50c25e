"""Which settings go together: every rule about a combination of options that concerns more than one of their rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.contract.errors import InputError
from toolchain.settings.format import CODEBOOK, MIXED, SPARSE_CODES, TRELLIS
from toolchain.settings.preparation import ACTIVATIONS, NONE, RESIDUAL
from toolchain.settings.razor import TOKEN
from toolchain.settings.solver import ABQ, FORMAT_SOLVERS, GRADIENT_METHODS, KEEP, METHOD_FORMATS, PLANNED
from toolchain.settings.tuning import SHORT

if TYPE_CHECKING:
    from export.graph.spec import ModelSpec
    from toolchain.settings.quantize import QuantizeSettings


def check(settings: QuantizeSettings) -> None:
    """Raises InputError naming the options that exclude each other."""
    _check_method(settings)
    settings.check_format()
    settings.check_solver()
    _check_own_solver(settings)
    _check_keep(settings)
    _check_several(settings)
    _check_outliers(settings)
    _check_asymmetric(settings)
    _check_gradients(settings)
    _check_spread(settings)
    _check_integers(settings)


def check_encoder(settings: QuantizeSettings) -> None:
    """What needs the loss of a language model. Raises InputError when it is asked for."""
    asked = {
        "--tune-steps": settings.tune_steps not in (0, SHORT),
        "--guided": settings.guided and settings.gradient_sequences != PLANNED,
        "--own-text": settings.own_text,
        "--budget": settings.is_budget,
        f"--method {settings.method}": settings.method in (*GRADIENT_METHODS, "qrazor", "tender", ABQ),
        "--outliers-by gradient": settings.needs_weight_gradients,
        "--activation-bits": settings.razor.activation_bits,
        "--kv": settings.razor.kv,
        "--nested": settings.nested,
    }
    for name, on in asked.items():
        if on:
            raise InputError(f"{name} needs a model that predicts the next token; this one is an encoder")


def check_experts(settings: QuantizeSettings, spec: ModelSpec) -> None:
    """What the experts of a mixture do not have, or attention sinks. Raises InputError when it is asked for."""
    kept = () if spec.experts_together else (KEEP,)
    if settings.razor.kv and any(names.sinks is not None for names in spec.kinds()):
        raise InputError("--kv is not available for models with attention sinks")
    asked = {
        f"--method {settings.method}": settings.method in ("qrazor", "tender", ABQ, *kept),
        "--activation-bits": settings.razor.activation_bits,
        "--outliers": settings.outliers,
        "--equalize": settings.equalize,
        "--nested": settings.nested,
        "--sparsity": settings.sparsity,
        f"--rotation {RESIDUAL}": settings.rotates(RESIDUAL),
    }
    for name, on in asked.items():
        if on:
            raise InputError(f"{name} is not available for models with a mixture of experts")


def check_shared_keys(settings: QuantizeSettings, spec: ModelSpec) -> None:
    """Raises InputError for what keys and values that layers share cannot be."""
    if settings.razor.kv and spec.cache_of_layer:
        raise InputError("--kv is not available for models whose layers share keys and values")


def check_calibrated(settings: QuantizeSettings, spec: ModelSpec) -> None:
    """Raises InputError for blocks that --method abq does not calibrate."""
    kinds = spec.kinds()
    found = {
        "whose blocks keep a state": any(names.keeps_state or not names.attends for names in kinds),
        "whose layers share blocks": bool(spec.block_of_layer),
        "whose layers share keys and values": bool(spec.cache_of_layer),
        "with inputs for each layer": spec.per_layer is not None or spec.altup is not None,
        "whose layers share factors of low rank": any(n.shared.query_key or n.shared.gate_up for n in kinds),
    }
    for what, there in found.items():
        if there and settings.method == ABQ:
            raise InputError(f"--method {ABQ} is not available for models {what}")


def check_random(settings: QuantizeSettings) -> None:
    """What random codes cannot be. Raises InputError when it is asked for."""
    if settings.method == KEEP:
        raise InputError(f"--random does not go with --method {KEEP}: there is nothing to keep")
    if settings.is_budget:
        raise InputError("--random takes --bits, no --budget")


def _check_method(settings: QuantizeSettings) -> None:
    able = METHOD_FORMATS[settings.method]
    if settings.format not in able:
        others = ", ".join(name for name, formats in METHOD_FORMATS.items() if settings.format in formats)
        raise InputError(f"--format {settings.format} is for --method {others}; {settings.method} has {able[0]}")
    if settings.dimension and settings.method != "athena":
        raise InputError("--dimension is for --method athena")
    if settings.method == "slim" and not 2 <= settings.width <= 7:
        raise InputError(f"--method slim takes --bits 2 to 7, not {settings.width}")
    if settings.method == "tender":
        _check_tender(settings)
    if settings.method == ABQ:
        _check_abq(settings)
    elif settings.bit_balance:
        raise InputError(f"--bit-balance is for --method {ABQ}")
    if settings.razor.activation_groups and settings.method == "qrazor":
        raise InputError("--method qrazor razors its activations: no --activation-groups")
    if settings.method == "qrazor":
        _check_qrazor(settings)
    elif settings.rotates(ACTIVATIONS) or settings.razor.refit:
        raise InputError(f"--rotation {ACTIVATIONS} and --refit are for --method qrazor")


def _check_width(method: str, settings: QuantizeSettings) -> None:
    if settings.is_budget:
        raise InputError(f"--method {method} takes --bits, no --budget")
    if settings.width < 2:
        raise InputError(f"--method {method} takes --bits 2 to 8, not {settings.width}")


def _check_qrazor(settings: QuantizeSettings) -> None:
    _check_width("qrazor", settings)
    if not settings.razor.activation_bits:
        raise InputError("--method qrazor computes on integers: --activation-bits must be 2 to 8, or 16")
    for name in ("group_size", "rank", "block_steps", "tune_steps"):
        if getattr(settings, name):
            hint = "; its groups are set by --razor-group" if name == "group_size" else ""
            raise InputError(f"--{name.replace('_', '-')} is not for --method qrazor{hint}")


def _check_tender(settings: QuantizeSettings) -> None:
    _check_width("tender", settings)
    if not settings.razor.activation_groups:
        raise InputError("--method tender has activations in groups of channels: --activation-groups must be 1 to 16")
    for name in ("group_size", "rank", "block_steps", "tune_steps", "outliers"):
        if getattr(settings, name):
            raise InputError(f"--{name.replace('_', '-')} is not for --method tender")


def _check_abq(settings: QuantizeSettings) -> None:
    razor = settings.razor
    _check_width(ABQ, settings)
    if settings.bit_balance and settings.width != 2:
        raise InputError(f"--bit-balance takes --bits 2, not {settings.width}")
    whole = razor.activation_bits == razor.activation_basis and razor.activation_unit == TOKEN
    if razor.activation_groups or (razor.activation_bits and not whole):
        raise InputError(
            f"--method {ABQ} has whole integers for each token: --activation-unit {TOKEN}, --activation-basis as "
            "--activation-bits, no --activation-groups"
        )
    for name in (
        "group_size", "rows_per_codebook", "scale_bits", "rank", "outliers", "tune_steps", "tune_rate", "guided",
        "asymmetric",
    ):  # fmt: skip
        if getattr(settings, name):
            raise InputError(f"--{name.replace('_', '-')} is not for --method {ABQ}")


def _check_own_solver(settings: QuantizeSettings) -> None:
    """A format with a solver of its own has neither codebooks nor scales to share, and no trainable form."""
    if settings.format not in FORMAT_SOLVERS:
        return
    asked = {name: getattr(settings, name) for name in (
        "group_size", "rows_per_codebook", "scale_bits", "rank", "tune_steps", "block_steps",
    )}  # fmt: skip
    asked |= {"activation_bits": settings.razor.activation_bits, "guided_groups": settings.guided_groups > 1}
    for name, on in asked.items():
        if on and (settings.format, name) != (SPARSE_CODES, "rank"):
            raise InputError(f"--{name.replace('_', '-')} does not go with --format {settings.format}")


def _check_keep(settings: QuantizeSettings) -> None:
    """What is kept as it is has its own widths, and nothing may change it."""
    if settings.method != KEEP:
        return
    asked = {name: getattr(settings, name) for name in (
        "bits", "budget", "group_size", "rows_per_codebook", "scale_bits", "rank", "outliers", "tune_steps",
        "block_steps", "guided", "own_text", "equalize",
    )}  # fmt: skip
    asked |= {"rotation": settings.rotation != NONE, "kv": settings.razor.kv}
    asked |= {"activation_bits": settings.razor.activation_bits}
    for name, on in asked.items():
        if on:
            raise InputError(f"--{name.replace('_', '-')} does not go with --method {KEEP}, which changes nothing")


def _check_outliers(settings: QuantizeSettings) -> None:
    integers = settings.method == "qrazor" or settings.razor.activation_bits
    if settings.outliers and (settings.guided_groups > 1 or integers):
        raise InputError("--outliers does not go with integer activations or --guided-groups")
    asked = {
        "--outliers": settings.outliers > 0,
        "--guided-groups": settings.guided_groups > 1,
        "--nested": settings.nested > 0,
        "integer activations": bool(integers),
        "--budget of time or energy": settings.cost_budget is not None,
        f"--method {settings.method}": settings.method != "athena",
    }
    for name, on in asked.items():
        if settings.columns_apart and on:
            raise InputError(f"--columns-apart does not go with {name}")
    if settings.guided_groups > 1 and settings.rank:
        raise InputError("--guided-groups does not go with --rank")


def _check_gradients(settings: QuantizeSettings) -> None:
    taken = settings.guided or settings.method in GRADIENT_METHODS or settings.needs_weight_gradients
    if settings.gradient_sequences and not taken:
        raise InputError("--gradient-sequences is for --guided, and for what goes by gradients of the weights")


def _check_asymmetric(settings: QuantizeSettings) -> None:
    if settings.asymmetric and settings.guided_groups > 1:
        raise InputError("--asymmetric does not go with --guided-groups")


def _check_spread(settings: QuantizeSettings) -> None:
    if settings.spread and not admits_spread(settings.method, settings.format):
        raise InputError(f"--spread does not go with --method {settings.method} --format {settings.format}")
    if settings.spread and (settings.is_budget or settings.state_bits or settings.razor.activation_bits):
        raise InputError("--spread does not go with --budget, --state-bits or --activation-bits")


def admits_spread(method: str, format_: str | None) -> bool:
    """Whether layers of this method and format can have different widths."""
    return method in ("athena", "gptq") and format_ in (None, CODEBOOK, TRELLIS, MIXED)


def _check_several(settings: QuantizeSettings) -> None:
    """What codes of several weights ask of the other settings."""
    if not settings.uses_vectors and not settings.uses_trellis:
        return
    for name in ("group_size", "rank"):
        if getattr(settings, name):
            raise InputError(f"--{name.replace('_', '-')} does not go with codes of several weights")
    if settings.uses_vectors and settings.is_budget:
        raise InputError("vector codes take --bits, no --budget")
    if settings.razor.activation_bits:
        raise InputError("codes of several weights take float activations")


def _check_integers(settings: QuantizeSettings) -> None:
    """What integer arithmetic asks of the other settings."""
    if settings.nested and (settings.razor.activation_bits or settings.razor.razor_codebook):
        raise InputError("--nested takes float activations and codebooks of its own")
    if settings.razor.activation_bits and settings.group_size and settings.method != "qrazor":
        raise InputError("integer activations need one codebook along a row: no --group-size")
    for name in ("rank", "tune_steps"):  # tuning would move the weights whose products are stored
        if settings.razor.activation_groups and getattr(settings, name):
            raise InputError(f"--{name.replace('_', '-')} does not go with --activation-groups")
    if not settings.razor.razor_codebook:
        return
    if settings.method != "athena":
        raise InputError("--razor-codebook is for --method athena")
    if settings.tune_steps or settings.block_steps:
        raise InputError("--razor-codebook does not go with tuning, which would move the entries")
