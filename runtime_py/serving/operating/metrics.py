"""What the server counts, as Prometheus metrics in a registry of its own; what belongs to a model has its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from runtime_py.system.memory import peak_rss

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)  # between the tokens of an answer
_MODEL = ("model",)


@dataclass(frozen=True)
class ModelState:
    """A model at the moment of a scrape. memory: the most it takes, in bytes, while it is loaded."""

    loaded: bool
    running: int
    waiting: int
    memory: int
    guessed: int = 0  # tokens behind the next one, since it was loaded
    accepted: int = 0  # of these, those that were right


States = Callable[[], Mapping[str, ModelState]]


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "athena_requests", "Answered HTTP requests.", ["path", "status"], registry=self.registry
        )
        self.loads = self._counter("athena_model_loads", "Times a model was loaded.")
        self.evictions = self._counter("athena_model_evictions", "Times a model left to make room for another.")
        self.load_seconds = self._histogram("athena_model_load_seconds", "Loading a model.", _SECONDS)
        self.prompt_tokens = self._counter("athena_prompt_tokens", "Tokens of prompts.")
        self.reused_tokens = self._counter("athena_prompt_tokens_reused", "Tokens of prompts found in a cache.")
        self.cache_hits = self._counter("athena_prompt_cache_hits", "Prompts of which a cache held some tokens.")
        self.cache_misses = self._counter("athena_prompt_cache_misses", "Prompts of which no cache held any token.")
        self.generated_tokens = self._counter("athena_generated_tokens", "Generated tokens.")
        self.seconds = self._histogram("athena_request_seconds", "From arrival to the last token.", _SECONDS)
        self.queue_seconds = self._histogram(
            "athena_queue_seconds", "From arrival to the start of computing.", _SECONDS
        )
        self.first_token = self._histogram("athena_first_token_seconds", "From arrival to the first token.", _SECONDS)
        self.between_tokens = self._histogram(
            "athena_between_tokens_seconds", "From a token of an answer to its next one.", _SHORT
        )
        Gauge("athena_peak_memory_bytes", "Most memory resident so far.", registry=self.registry).set_function(peak_rss)

    def watch(self, states: States, limit: int | None, draining: Callable[[], bool]) -> None:
        """Show what changes by itself. limit: bytes that all models may take, None for none."""
        self.registry.register(_Gauges(states, limit, draining))

    def of(self, model: str) -> ModelMetrics:
        """The counters of one model."""
        return ModelMetrics(self, model)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, _MODEL, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, about, _MODEL, buckets=buckets, registry=self.registry)


class ModelMetrics:
    """What one model counts: metrics of the server with its name. Any thread may."""

    def __init__(self, whole: Metrics, model: str) -> None:
        self.prompt_tokens = whole.prompt_tokens.labels(model)
        self.reused_tokens = whole.reused_tokens.labels(model)
        self.cache_hits, self.cache_misses = whole.cache_hits.labels(model), whole.cache_misses.labels(model)
        self.generated_tokens = whole.generated_tokens.labels(model)
        self.seconds, self.queue_seconds = whole.seconds.labels(model), whole.queue_seconds.labels(model)
        self.first_token = whole.first_token.labels(model)
        self.between_tokens = whole.between_tokens.labels(model)


class _Gauges:
    """Read at every scrape."""

    def __init__(self, states: States, limit: int | None, draining: Callable[[], bool]) -> None:
        self._states, self._limit, self._draining = states, limit, draining

    def describe(self) -> Iterable[Metric]:
        """Nothing: names would have to be collected to be described."""
        return ()

    def collect(self) -> Iterator[Metric]:
        states = self._states()
        for name, about, value in (
            ("athena_model_loaded", "1 while the model is loaded.", lambda s: float(s.loaded)),
            ("athena_model_memory_bytes", "Most memory a loaded model takes, caches full.", lambda s: float(s.memory)),
            ("athena_requests_running", "Requests being computed.", lambda s: float(s.running)),
            ("athena_requests_waiting", "Requests in the queue, those for a model to load included.",
             lambda s: float(s.waiting)),
        ):  # fmt: skip
            family = GaugeMetricFamily(name, about, labels=_MODEL)
            for model, state in states.items():
                family.add_metric((model,), value(state))
            yield family
        for name, about, count in (
            ("athena_guessed_tokens", "Tokens guessed ahead.", lambda s: s.guessed),
            ("athena_guessed_tokens_accepted", "Guessed tokens that were right.", lambda s: s.accepted),
        ):
            counter = CounterMetricFamily(name, about, labels=_MODEL)
            for model, state in states.items():
                counter.add_metric((model,), count(state))
            yield counter
        if self._limit is not None:
            yield GaugeMetricFamily("athena_memory_limit_bytes", "What all models together may take.", self._limit)
        yield GaugeMetricFamily("athena_draining", "1 once the server is on its way out.", float(self._draining()))
