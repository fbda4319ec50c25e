"""Which pages of keys a query should read, by several rules: `python -m tests.benchmarks.attention_estimator SOURCE`.

SOURCE is a Hugging Face folder of the Llama kind, run in float32 by transformers; every layer's attention reads --keys
keys at most, in pages of 16, the first and the last two always. Rules:

- `bounds`: the largest product that a key within the page's bounds could have (Quest, arXiv 2406.10774);
- `mean`: the product with the mean of the page's keys (what `sparsify` does);
- `estimator`: SEA's (ICLR 2024) trained part: learned features of queries and keys as in linear attention, their
  products summed over a page, a small decoder over pages (a convolution of three and a bias by distance), trained for
  --steps on the KL to the source's map of pages; its target counts a page's attention as it is, or with `, values`
  times the norms of the values, as oracle does there;
- `oracle`: the pages of the largest attention, which a rule cannot know.

Printed: the perplexity over that of dense attention on the second half of the windows, and the mean share of attention
that is not read. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.calibrate.text import read_text

PAGE, LAST = 16, 2
_HIDDEN = -1e30
Rule = Callable[
    ..., Tensor
]  # queries [heads, R, D], keys [kv, T, D], positions [R], map [heads, R, T] -> [heads, R, P]


def pages_of(keys: Tensor) -> Tensor:
    """[kv, pages, PAGE, D]"""
    return keys.unflatten(1, (-1, PAGE))


def by_bounds(query: Tensor, keys: Tensor, *_: Any) -> Tensor:
    repeat = len(query) // len(keys)
    low, high = (x.repeat_interleave(repeat, 0).mT for x in (pages_of(keys).amin(2), pages_of(keys).amax(2)))
    return (query.clamp(min=0) @ high + query.clamp(max=0) @ low) * query.shape[-1] ** -0.5


def by_mean(query: Tensor, keys: Tensor, *_: Any) -> Tensor:
    return query @ pages_of(keys).mean(2).repeat_interleave(len(query) // len(keys), 0).mT * query.shape[-1] ** -0.5


def by_map(query: Tensor, keys: Tensor, positions: Tensor, given: Tensor) -> Tensor:
    return torch.log(given.unflatten(2, (-1, PAGE)).sum(-1) + 1e-20)


class Estimator(nn.Module):
    """Of one layer."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        start = torch.eye(head_dim) * head_dim**-0.25
        self.query, self.key = (nn.Parameter(start.repeat(n, 1, 1)) for n in (heads, kv_heads))
        self.query_bias, self.key_bias = (nn.Parameter(torch.zeros(n, 1, head_dim)) for n in (heads, kv_heads))
        self.gain = nn.Parameter(torch.ones(heads, 1, 1))
        self.taps = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]).repeat(heads, 1, 1))
        self.distance = nn.Parameter(torch.zeros(heads, 16))

    def forward(self, query: Tensor, keys: Tensor, positions: Tensor, *_: Any) -> Tensor:
        heads, pages = len(query), keys.shape[1] // PAGE
        features = self._features(keys, self.key, self.key_bias).unflatten(1, (-1, PAGE)).mean(2)
        products = (
            self._features(query, self.query, self.query_bias)
            @ features.repeat_interleave(heads // len(keys), 0).mT.clone()
        )
        scores = torch.log(products + 1e-6) * self.gain
        padded = nn.functional.pad(scores, (1, 1)).transpose(0, 1)
        scores = nn.functional.conv1d(padded, self.taps, groups=heads).transpose(0, 1)
        away = (positions[:, None] // PAGE - torch.arange(pages)).clamp(min=1).float().log2().long().clamp(max=15)
        return scores + self.distance[:, away]

    @staticmethod
    def _features(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = x @ weight + bias
        return torch.softmax(torch.cat([y, -y], -1), -1)


def seen(scores: Tensor, positions: Tensor, count: int, kv_heads: int) -> Tensor:
    """bool [kv, R, pages]: `count` pages of each query, shared by heads that share keys."""
    heads, rows, pages = scores.shape
    own, page = positions[:, None] // PAGE, torch.arange(pages)
    always = (page == 0) | ((page > own - LAST) & (page <= own))
    shares = torch.softmax(scores.masked_fill(page >= own, _HIDDEN), -1)
    ranked = shares.view(kv_heads, heads // kv_heads, rows, pages).sum(1).masked_fill(always, 1e9)
    picked = ranked.masked_fill(page > own, -1.0).topk(min(count, pages), -1).indices
    return torch.zeros_like(ranked, dtype=torch.bool).scatter_(-1, picked, True) & (page <= own)


class Watched:
    """The source model, whose attention reads what a rule says."""

    def __init__(self, source: str, count: int) -> None:
        from transformers import AttentionInterface, AutoModelForCausalLM

        AttentionInterface.register("pages", self._attend)
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        self.model.config._attn_implementation = "pages"
        self.count = count
        self.rules: list[Rule] | None = None  # of each layer; None: dense
        self.kept: dict[int, tuple[Tensor, Tensor, Tensor]] | None = None  # queries, keys, norms of values by layer
        self.by_values = False
        self.unread: list[float] = []

    def _attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any) -> Any:
        query, key, value = query[0], key[0], value[0]
        heads, total, head_dim = query.shape
        repeat = heads // len(key)
        if self.kept is not None:
            self.kept[module.layer_idx] = (query, key, value.norm(dim=-1))
        keys, values = key.repeat_interleave(repeat, 0), value.repeat_interleave(repeat, 0)
        out = torch.empty(total, heads, head_dim)
        for start in range(0, total, 512):
            stop = min(start + 512, total)
            positions = torch.arange(start, stop)
            scores = query[:, start:stop] @ keys[:, :stop].mT * head_dim**-0.5
            scores = scores.masked_fill(torch.arange(stop) > positions[:, None], _HIDDEN)
            shares = torch.softmax(scores, -1)
            if self.rules is not None and stop > PAGE * self.count:
                weighed = shares * values[:, :stop].norm(dim=-1)[:, None] if self.by_values else shares
                found = self.rules[module.layer_idx](query[:, start:stop], key[:, :stop], positions, weighed)
                pages = seen(found, positions, self.count, len(key))
                read = pages.repeat_interleave(PAGE, -1).repeat_interleave(repeat, 0)
                self.unread.append((shares * ~read).sum(-1).mean().item())
                shares = torch.softmax(scores.masked_fill(~read, _HIDDEN), -1)
            out[start:stop] = (shares @ values[:, :stop]).transpose(0, 1)
        return out[None], None

    @torch.no_grad()
    def nats(self, windows: Tensor, rules: list[Rule] | None, by_values: bool = False) -> float:
        """Mean loss over the second halves of windows [n, T]."""
        self.rules, self.by_values, self.unread = rules, by_values, []
        losses = []
        for tokens in windows:
            states = self.model.model(tokens[None]).last_hidden_state[0, len(tokens) // 2 : -1]
            losses.append(nn.functional.cross_entropy(self.model.lm_head(states), tokens[len(tokens) // 2 + 1 :]))
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def watch(self, tokens: Tensor) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        self.rules, self.kept = None, {}
        self.model.model(tokens[None])
        kept, self.kept = self.kept, None
        return kept


def trained(texts: list[tuple[Tensor, Tensor, Tensor]], steps: int, by_values: bool) -> Estimator:
    """The estimator of a layer; texts: what watch() kept of it."""
    query, keys, _ = texts[0]
    heads, total, head_dim = query.shape
    repeat, page = heads // len(keys), torch.arange(total // PAGE)
    estimator = Estimator(heads, len(keys), head_dim)
    optimizer = torch.optim.Adam(estimator.parameters(), 1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps) + 1e-4
        query, keys, norms = texts[step % len(texts)]
        positions = torch.randint(total // 4, total, (128,)).sort().values
        with torch.no_grad():
            scores = query[:, positions] @ keys.repeat_interleave(repeat, 0).mT * head_dim**-0.5
            shares = torch.softmax(scores.masked_fill(torch.arange(total) > positions[:, None], _HIDDEN), -1)
            shares = shares * norms.repeat_interleave(repeat, 0)[:, None] if by_values else shares
            between = (page > 0) & (page < positions[:, None] // PAGE - LAST + 1)
            wanted = shares.unflatten(2, (-1, PAGE)).sum(-1) * between
            wanted = wanted / (wanted.sum(-1, keepdim=True) + 1e-9)
        found = estimator(query[:, positions], keys, positions).masked_fill(~between, _HIDDEN)
        loss = -(wanted * torch.log_softmax(found, -1).clamp(min=-50)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return estimator.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--training", type=Path, required=True, help="the text that estimators are trained on")
    parser.add_argument("--window", type=int, default=3072)
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--keys", type=int, default=384)
    parser.add_argument("--steps", type=int, default=80)
    given = parser.parse_args()
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(given.source)
    source = Watched(given.source, given.keys // PAGE)
    layers = source.model.config.num_hidden_layers

    def windows(text: Path, count: int) -> Tensor:
        ids = torch.tensor(tokenizer(read_text(text)[: 8 * count * given.window])["input_ids"])
        return ids[: count * given.window].view(count, given.window)

    tested = windows(given.text, given.windows)
    dense = source.nats(tested, None)
    print(
        f"dense: perplexity {math.exp(dense):.3f}\n\n| rule | perplexity / dense | attention not read |\n|---|---|---|"
    )

    def row(name: str, rules: list[Rule], by_values: bool = False) -> None:
        ratio = math.exp(source.nats(tested, rules, by_values) - dense)
        print(f"| {name} | {ratio:.4f} | {sum(source.unread) / len(source.unread):.3f} |", flush=True)

    for name, rule in (("bounds", by_bounds), ("mean", by_mean), ("oracle", by_map)):
        row(name, [rule] * layers)
    row("oracle, values", [by_map] * layers, by_values=True)
    texts = [source.watch(tokens) for tokens in windows(given.training, 2)]
    for by_values in (False, True):
        rules: list[Rule] = [trained([text[i] for text in texts], given.steps, by_values) for i in range(layers)]
        row("estimator, values" if by_values else "estimator", rules)


if __name__ == "__main__":
    main()
