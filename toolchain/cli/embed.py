"""`embed`: texts to vectors with an encoder folder. Needs no torch."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Optional

import typer

from toolchain.cli.common import announce_compilation, guarded, print_json
from toolchain.cli.signature import with_options
from toolchain.settings.execution import EVERY_THREAD, INT8, NO_ADAPTER, Adapted, Arithmetic, Threads


@guarded
@with_options
def embed(
    folder: Annotated[Path, typer.Argument(help="Folder of an encoder made by `export`.")],
    text: Annotated[Optional[list[str]], typer.Option(help="A text; may be repeated.")] = None,
    file: Annotated[Optional[Path], typer.Option(help="Text file, one text a line.")] = None,
    prompt_name: Annotated[
        Optional[str], typer.Option(help="Prompt of the model before each text; default: its own.")
    ] = None,
    output: Annotated[Optional[Path], typer.Option("--output", "-o", help="Write the vectors here (.npy).")] = None,
    threads: Threads = EVERY_THREAD,
    arithmetic: Arithmetic = INT8,
    adapted: Adapted = NO_ADAPTER,
    json: Annotated[bool, typer.Option("--json", help="Vectors and similarities as one JSON object.")] = False,
) -> None:
    """Print the vector of one text, or how similar several are (cosine)."""
    import numpy as np

    from export.contract.errors import InputError
    from runtime_py.text.encoder import TextEncoder
    from runtime_py.text.tokenizing import encode
    from runtime_py.text.typed_text import typed_text

    texts = [typed_text(one, "--text") for one in text or []] + (_lines(file) if file else [])
    if not texts:
        raise InputError("no text: give --text or --file")
    if output is not None and output.suffix != ".npy":
        raise InputError(f"--output {output}: must end in .npy")
    announce_compilation()
    encoder = TextEncoder(folder, arithmetic.activations, threads.threads, adapted.names())
    start = time.perf_counter()
    vectors = encoder.embed(texts, prompt_name)
    seconds = time.perf_counter() - start
    if output is not None:
        _write(output, vectors)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similar = unit @ unit.T
    if json:
        print_json({"texts": texts, "vectors": vectors.tolist(), "similarities": similar.tolist()})
    elif len(texts) == 1 and output is None:
        print(" ".join(f"{value:.6g}" for value in vectors[0]))
    elif output is None:
        _table(texts, similar)
    cut = sum(len(encode(encoder.tokenizer, encoder.prompted(t, prompt_name)).overflowing) > 0 for t in texts)
    notes = [f"{len(texts)} texts", f"{vectors.shape[1]} dimensions", f"{1000 * seconds / len(texts):.1f} ms each"]
    notes += [f"{cut} cut at {encoder.limit} tokens"] if cut else []
    print(f"[{', '.join(notes)}]", file=sys.stderr)


def _lines(path: Path) -> list[str]:
    from export.files.access import read_text

    return [line for line in read_text(path).splitlines() if line.strip()]


def _write(path: Path, vectors: object) -> None:
    import io

    import numpy as np

    from export.files.access import write_bytes

    data = io.BytesIO()
    np.save(data, vectors)  # type: ignore[arg-type]
    write_bytes(path, data.getvalue())


def _table(texts: list[str], similar: object, width: int = 80) -> None:
    """The similarities of the texts, the first ones where not all fit the terminal."""
    import numpy as np

    matrix = np.asarray(similar)
    shown = min(len(texts), (width - 34) // 6)
    print(" " * 34 + "".join(f"{i + 1:6d}" for i in range(shown)))
    for i, text in enumerate(texts):
        label = " ".join(text.split())
        label = label if len(label) <= 28 else label[:27] + "\u2026"
        print(f"{i + 1:4d} {label:<29}" + "".join(f"{matrix[i, j]:6.2f}" for j in range(shown)))
    if shown < len(texts):
        print(f"(the first {shown} of {len(texts)} columns; --json has all)", file=sys.stderr)
