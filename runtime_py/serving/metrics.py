"""What the server counts, as Prometheus metrics in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from runtime_py.system.memory import peak_rss

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counters of one server."""

    def __init__(self, load: Callable[[], tuple[int, int]]) -> None:
        """load: (running, waiting) requests now."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "athena_requests", "Answered HTTP requests.", ["path", "status"], registry=self.registry
        )
        self.prompt_tokens = Counter("athena_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.reused_tokens = Counter(
            "athena_prompt_tokens_reused", "Tokens of prompts found in a cache.", registry=self.registry
        )
        self.generated_tokens = Counter("athena_generated_tokens", "Generated tokens.", registry=self.registry)
        self.seconds = Histogram(
            "athena_request_seconds", "From arrival to the last token.", buckets=_SECONDS, registry=self.registry
        )
        self.first_token = Histogram(
            "athena_first_token_seconds", "From arrival to the first token.", buckets=_SECONDS, registry=self.registry
        )
        running = Gauge("athena_requests_running", "Requests being computed.", registry=self.registry)
        running.set_function(lambda: load()[0])
        waiting = Gauge("athena_requests_waiting", "Requests in the queue.", registry=self.registry)
        waiting.set_function(lambda: load()[1])
        Gauge("athena_peak_memory_bytes", "Most memory resident so far.", registry=self.registry).set_function(peak_rss)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
