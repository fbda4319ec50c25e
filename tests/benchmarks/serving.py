"""Servers under load: tokens a second in all, time to the first token, time between tokens, memory.

    python -m tests.benchmarks.serving FOLDER [--llama-server PATH --gguf FILE] [--clients 1 4 8 16] [--joining 2048]

Real HTTP, streamed `/v1/completions`, every client sends one request after the other with a prompt of its own, so no
server can reuse another request's cache. The servers run side by side, each loaded in turn while the others idle; a
row is the median over the rounds, times are percentiles over all requests of all rounds. llama-server runs with
`-np CLIENTS_AT_MOST -cb`, from the source package of llama-cpp-python as the real model's benchmark says.
--joining: in place of that, what the answers of so many clients see while a prompt of that length joins them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.benchmarks.quality import SHARED
from tests.benchmarks.speed import peers_environment

TEXT = SHARED / "text" / "wikitext2_test.raw.txt"
_START_SECONDS = 600


@dataclass
class Measured:
    """What one request saw."""

    first: float  # seconds to the first token
    gaps: list[float]  # seconds between events that followed
    tokens: int


@dataclass
class Load:
    """One server at one number of clients and one length of prompts."""

    rates: list[float] = field(default_factory=list)  # tokens a second of all clients, by round
    seen: list[Measured] = field(default_factory=list)


class Server:
    """A running program that answers HTTP on `port`."""

    def __init__(self, name: str, words: Sequence[str], port: int, model: str) -> None:
        self.name, self.port, self.model = name, port, model
        silent = subprocess.DEVNULL
        self._process = subprocess.Popen(words, stdout=silent, stderr=silent, env=peers_environment())
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            try:
                with urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2):
                    return
            except (URLError, OSError):
                if self._process.poll() is not None:
                    raise SystemExit(f"{name} ended with code {self._process.returncode}: {' '.join(words)}") from None
                time.sleep(0.2)
        raise SystemExit(f"{name} does not answer")

    def peak_bytes(self) -> int:
        """Most memory that it and its children have had resident, added up."""
        pids, found = [self._process.pid], 0
        while pids:
            pid = pids.pop()
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
            found += next((int(line.split()[1]) for line in status.split("\n") if line.startswith("VmHWM:")), 0)
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        return found * 1024

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


async def ask(server: Server, prompt: str, tokens: int, seen: list[float] | None = None) -> Measured:
    """One streamed completion; the times of its events go to `seen` as they come."""
    body = json.dumps({
        "model": server.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
        "ignore_eos": True, "stream_options": {"include_usage": True},
    }).encode()  # fmt: skip
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"  # noqa: E501
    start = time.perf_counter()
    writer.write(head.encode() + body)
    await writer.drain()
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(
            f"{server.name}: {status.decode().strip()} {(await reader.read(2000)).decode(errors='replace')}"
        )
    times: list[float] = [] if seen is None else seen
    counted = 0
    while line := await reader.readline():
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        found = json.loads(line[6:])
        if found.get("usage"):
            counted = found["usage"]["completion_tokens"]
        if found.get("choices"):
            times.append(time.perf_counter())
    writer.close()
    return Measured(times[0] - start, [b - a for a, b in pairwise(times)], counted or len(times))


async def loaded(server: Server, prompts: Sequence[Sequence[str]], tokens: int) -> tuple[float, list[Measured]]:
    """(tokens a second in all, what every request saw) of one client for each list of prompts."""

    async def client(own: Sequence[str]) -> list[Measured]:
        return [await ask(server, prompt, tokens) for prompt in own]

    start = time.perf_counter()
    found = [one for own in await asyncio.gather(*map(client, prompts)) for one in own]
    return sum(one.tokens for one in found) / (time.perf_counter() - start), found


async def joined(
    server: Server, short: Sequence[str], long: str, tokens: int
) -> tuple[list[float], list[float], float]:
    """Seconds between the tokens of running answers before `long` joins them and while it is read; those it takes."""
    seen: list[list[float]] = [[] for _ in short]
    running = [asyncio.create_task(ask(server, prompt, tokens, own)) for prompt, own in zip(short, seen)]
    while min(map(len, seen)) < tokens // 8:
        await asyncio.sleep(0.01)
    start = time.perf_counter()
    taken = (await ask(server, long, 1)).first
    await asyncio.gather(*running)
    pairs = [pair for own in seen for pair in pairwise(own[2:])]
    alone = [b - a for a, b in pairs if b < start]
    beside = [b - a for a, b in pairs if b > start and a < start + taken]
    return alone, beside, taken


def joining(servers: Sequence[Server], make: Callable[[int], str], given: argparse.Namespace) -> None:
    """Print the table of --joining: medians and 95th percentiles over all rounds."""
    print("| server | answers | between tokens, ms, p50 | p95 | while a prompt joins, p50 | p95 | its first token, s |")
    print("|---|---|---|---|---|---|---|")
    found: dict[tuple[str, int], list[list[float]]] = {}
    for number in range(given.rounds + 1):  # the first warms up
        for clients in given.clients:
            for server in servers:
                short = [make(32) for _ in range(clients)]
                alone, beside, taken = asyncio.run(joined(server, short, make(given.joining), given.tokens))
                if number:
                    lists = found.setdefault((server.name, clients), [[], [], []])
                    for own, new in zip(lists, (alone, beside, [taken])):
                        own += new
    for (name, clients), (alone, beside, taken) in found.items():
        cells = [at(values, part) for values in (alone, beside) for part in (0.5, 0.95)]
        print("| " + " | ".join([name, str(clients), *cells, f"{statistics.median(taken):.1f}"]) + " |")


def at(values: Sequence[float], part: float) -> str:
    """That part of the values in milliseconds, from below."""
    return f"{1000 * sorted(values)[min(int(part * len(values)), len(values) - 1)]:.0f}"


def prompt_maker(folder: Path, seed: int):
    """A function of a number of tokens that gives a text of about that many, another one each time."""
    from runtime_py.text.generator import load_tokenizer

    tokenizer, draw = load_tokenizer(folder), random.Random(seed)
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8")[:1_000_000], add_special_tokens=False).ids

    def make(length: int) -> str:
        at = draw.randrange(len(ids) - length)
        return tokenizer.decode(ids[at : at + length])

    return make


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def row(server: Server, length: int, clients: int, load: Load) -> str:
    first = [one.first for one in load.seen]
    gaps = [gap for one in load.seen for gap in one.gaps]
    cells = [server.name, str(length), str(clients), f"{statistics.median(load.rates):.0f}"]
    cells += [at(values, part) for values in (first, gaps) for part in (0.5, 0.95)]
    return "| " + " | ".join([*cells, f"{server.peak_bytes() / 1e6:.0f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--prompts", type=int, nargs="+", default=[200, 2000], help="tokens of the prompts")
    parser.add_argument("--tokens", type=int, default=128, help="of every answer")
    parser.add_argument("--requests", type=int, default=2, help="of every client, one after the other")
    parser.add_argument("--joining", type=int, default=0, help="tokens of a prompt that joins running answers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--options", nargs="*", default=[], help="more words for `athena-export serve`, without --")
    given = parser.parse_args()
    make = prompt_maker(given.folder, 0)
    most, port = max(given.clients) + bool(given.joining), free_port()
    words = [sys.executable, "-m", "toolchain", "serve", str(given.folder), "--port", str(port), "--model-name", "m"]
    words += ["--sessions", str(most), "--threads", str(given.threads), *(f"--{one}" for one in given.options)]
    servers = [Server("athena-export", words, port, "m")]
    if given.llama_server:
        port, context = free_port(), most * (max(given.joining, *given.prompts) + given.tokens + 64)
        words = [str(given.llama_server), "-m", str(given.gguf), "--port", str(port), "-np", str(most), "-cb", "-c",
                 str(context), "-t", str(given.threads), "--no-webui"]  # fmt: skip
        servers.append(Server("llama-server", words, port, "m"))
    found: dict[tuple[str, int, int], Load] = {}
    try:
        if given.joining:
            joining(servers, make, given)
            return
        for number in range(given.rounds + 1):  # the first warms up, with one client
            for length in given.prompts:
                for clients in given.clients if number else (1,):
                    for server in servers:
                        prompts = [[make(length) for _ in range(given.requests)] for _ in range(clients)]
                        rate, seen = asyncio.run(loaded(server, prompts, given.tokens))
                        if number:
                            load = found.setdefault((server.name, length, clients), Load())
                            load.rates.append(rate)
                            load.seen += seen
                            print(number, server.name, length, clients, f"{rate:.1f}", file=sys.stderr, flush=True)
        print("| server | prompt | clients | tokens/s in all | first token, ms, p50 | p95 | between tokens, ms, p50 | p95 | peak MB |")  # fmt: skip  # noqa: E501
        print("|---|---|---|---|---|---|---|---|---|")
        for length in given.prompts:
            for clients in given.clients:
                for server in servers:
                    print(row(server, length, clients, found[server.name, length, clients]))
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    main()
