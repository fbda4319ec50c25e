"""The table of README from the outcomes that `make test-conformity` wrote.

python -m tests.conformity.table RESULTS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.conformity.folders import ENCODERS, FAMILIES, PLAIN
from tests.conformity.test_conformity import OPTIMUM_LACKS, OPTIMUM_REFUSES

COLUMNS = {
    "transformers": ("test_equals_transformers",),
    "onnx checker": ("test_checker_and_shape_inference",),
    "onnx.reference": ("test_reference_evaluator",),
    "onnxruntime": ("test_onnxruntime_at_every_optimization_level",),
    "genai": ("test_genai_generates_the_same_tokens",),
    "optimum": ("test_optimum_generates_the_same_tokens",),
    "runtime_py": ("test_our_runtime",),
}


def cell(name: str, tests: tuple[str, ...], outcomes: dict[str, dict[str, str]]) -> str:
    found = {outcomes.get(name, {}).get(test, "not run") for test in tests}
    if found != {"passed"}:
        lacks = name in ENCODERS or ("optimum" in tests[0] and name in OPTIMUM_LACKS)
        return "-" if found == {"skipped"} and lacks else ", ".join(sorted(found))
    if "optimum" in tests[0] and name in OPTIMUM_REFUSES:
        plain = f"{name} plain"
        assert plain in PLAIN
        return "partly (1)" if outcomes.get(plain, {}).get(tests[0]) == "passed" else "no"
    return "yes"


def table(outcomes: dict[str, dict[str, str]]) -> str:
    names = [*sorted(FAMILIES), *(name for name in outcomes if name not in FAMILIES and name not in PLAIN)]
    rows = [f"| family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in names:
        cells = [cell(name, tests, outcomes) for tests in COLUMNS.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
