"""KL of model folders on the source's own chat answers: `python -m tests.benchmarks.real.chat FOLDER SOURCE OUT...`.

As the page's column "chat KL" (quality.py), for folders that are no row of it. FOLDER is that of the benchmark.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.real.quality import Yard
from toolchain.evaluate.perplexity import evaluate_spans, open_scorer


def main() -> None:
    folder, source, *outs = map(Path, sys.argv[1:])
    yard = Yard(folder, source)
    for out in outs:
        found = evaluate_spans(open_scorer(str(out)), yard.answers, yard.reference, quiet=True)
        print(f"{out}: {found.to_json()}", flush=True)


if __name__ == "__main__":
    main()
