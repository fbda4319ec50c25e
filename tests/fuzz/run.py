"""Fuzzes the readers of untrusted files: python -m tests.fuzz.run --runs 200000 [--target model] [--coverage]

Inputs are mutations of real files, of their bytes and of their structure; an input that was accepted, or refused in a
new way, becomes a seed for more (so the corpus grows into the code). With --coverage the mutations are guided by
atheris (libFuzzer) instead, one target at a time. A finding is any exception but the two that are one line, an error of
several lines, a crash, a hang of 20 seconds of processor time (or 200 on the clock), or more than 3 GB of memory. It
ends the run and is kept under --findings; tests/fuzz/regressions/ holds those that were mended, and test_fuzz.py
replays them.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.graphs import campaign
from tests.fuzz.targets import WORK, Target, make_folders, mutate

_SHARES = {"model": 0.4, "cost": 0.1, "weights": 0.05, "safetensors": 0.15, "shard": 0.05, "manifest": 0.05,
           "encoder": 0.1, "lower": 0.05, "families": 0.1,
           "razored": 0.2, "razored-manifest": 0.05, "tender": 0.1,
           "tender-manifest": 0.02, "vectors": 0.2, "trellis": 0.2,
           "trellis-manifest": 0.05, "request": 0.1, "grammar": 0.05, "prompt-cache": 0.05,
           "responses": 0.05, "rerank": 0.02, "bottleneck-pickle": 0.0005}  # fmt: skip
_OTHERS = 0.2 / 3  # targets that came later took nothing from the others: the shares add up to more than 2
_INSTRUMENTED = [
    "export",
    "hw_model.graph_work.workload",
    "runtime_py.text.generator",
    "runtime_py.chat",
    "toolchain.source.checkpoint",
]
_COMPILED = ("model", "weights")  # their kernels cannot be compiled in a process that atheris has instrumented
_SECONDS, _MEMORY, _CORPUS = 20, 3 << 30, 400
_CLOCK = 10 * _SECONDS  # other work on the machine is no hang
GRAPHS = "graphs"


class Hang(Exception):
    """The time limit of one input passed."""


def fuzz(target: Target, runs: int, seed: int, findings: Path) -> tuple[int, int]:
    """(accepted inputs, corpus size). Exits with the finding's traceback when there is one."""
    random_ = random.Random(f"{seed} {target.name}")
    corpus, seen, accepted = [target.seed], set(), 0
    assert target(target.seed), f"{target.name}: the seed itself is refused"

    def stop(number: int, frame: object) -> None:
        raise Hang(f"longer than {_SECONDS} s of processor time or {_CLOCK} s")

    def limit(seconds: int) -> None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(seconds * _CLOCK // _SECONDS)

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGPROF, stop)
    last = findings / f"{target.name}.last"
    for run in range(runs):
        data = mutate(target, random_.choice(corpus), random_)
        last.write_bytes(data)  # a crash of the process leaves it behind
        limit(_SECONDS)
        try:
            ok = target(data)
            accepted += ok
            trace = "accepted" if ok else _signature(target)
        except BaseException:
            limit(0)
            name = findings / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            name.write_bytes(data)
            traceback.print_exc()
            print(f"{target.name}: finding after {run + 1} inputs, kept as {name}")
            sys.exit(1)
        limit(0)
        if (trace not in seen or (ok and random_.random() < 0.02)) and len(data) < 4 * len(target.seed) + 1000:
            seen.add(trace)
            corpus.append(data)
            if len(corpus) > _CORPUS:
                del corpus[random_.randrange(1, len(corpus))]
    last.unlink(missing_ok=True)
    return accepted, len(corpus)


def _signature(target: Target) -> str:
    """The refusal's message without its numbers and names: inputs that are refused in a new way are interesting."""
    message = str(target.refusal)
    return "".join(c for c in message if not c.isdigit())[:60]


def fuzz_with_coverage(target: Target, runs: int, seed: int, findings: Path) -> None:
    """The same target under atheris. Ends the process."""
    import atheris

    def one_input(data: bytes) -> None:
        target(data)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        random_ = random.Random(seed)
        if random_.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        return mutate(target, data, random_)[:max_size]

    corpus = findings / f"corpus-{target.name}"
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "seed").write_bytes(target.seed)
    options = [
        f"-runs={runs}",
        f"-seed={seed + 1}",
        f"-timeout={_SECONDS}",
        "-rss_limit_mb=3000",
        "-print_final_stats=1",
    ]
    options += [f"-artifact_prefix={findings}/{target.name}-", f"-max_len={4 * len(target.seed)}", str(corpus)]
    atheris.Setup([sys.argv[0], *options], one_input, custom_mutator=mutator)
    atheris.Fuzz()


def fuzz_graphs(runs: int, seed: int, root: Path, findings: Path) -> int:
    """Composed graphs, in processes with guard pages; how many there were. Exits with the findings if any."""
    folders = [root / name for name in ("model", "razored", "tender", "vectors", "trellis")]
    whole = campaign(runs, seed, folders, log=findings / f"graphs-{seed}.log")
    print(whole.table(), flush=True)
    if whole.findings:
        sys.exit(1)
    return whole.graphs


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="inputs, over all targets")
    parser.add_argument("--target", help=f"only this one, or {GRAPHS}: composed graphs (graphs.py)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", action="store_true", help="guided by atheris; needs --target")
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "athena-fuzz")
    options = parser.parse_args()
    faulthandler.enable()
    options.findings.mkdir(parents=True, exist_ok=True)
    if options.coverage:
        if options.target is None or options.target in _COMPILED:
            parser.error(f"--coverage needs a --target, and not one of {', '.join(_COMPILED)}")
        import atheris

        with atheris.instrument_imports(include=_INSTRUMENTED):
            import runtime_py.load
            import runtime_py.reference.operators  # noqa: F401
    root = WORK / f"athena-fuzz-{options.target or 'all'}-{options.seed}"
    targets = make_folders(root)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY + (8 << 30), resource.RLIM_INFINITY))
    chosen = [targets[options.target]] if options.target in targets else [] if options.target else [*targets.values()]
    if options.coverage:
        fuzz_with_coverage(chosen[0], options.runs, options.seed, options.findings)
    total = 0
    for target in chosen:
        runs = options.runs if options.target else max(round(options.runs * _SHARES.get(target.name, _OTHERS)), 1)
        start = time.monotonic()
        accepted, corpus = fuzz(target, runs, options.seed, options.findings)
        total += runs
        rate = runs / (time.monotonic() - start)
        print(f"{target.name}: {runs} inputs, {accepted} accepted, corpus {corpus}, {rate:.0f} a second", flush=True)
    if not options.target or options.target == GRAPHS:
        total += fuzz_graphs(options.runs, options.seed, root, options.findings)
    print(f"{total} inputs, no finding")


if __name__ == "__main__":
    main()
