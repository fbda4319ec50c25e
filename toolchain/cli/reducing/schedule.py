"""`schedule`: for how long an answer needs more bits, learned from a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import guarded, print_json, print_table
from toolchain.cli.signature import with_options
from toolchain.settings.scheduling.schedule import ScheduleSettings
from toolchain.system.units import figure


@guarded
@with_options
def schedule(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder made by `export --nested`.")],
    text: Annotated[Path, typer.Option("--text", help="UTF-8 text, or .gz of one, like what will be asked and said.")],
    settings: ScheduleSettings,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Learn when an answer of OUT may go to fewer bits; `run OUT --schedule learned` does so from then on.

    A small classifier reads it off the prompt's keys and values. It is kept in OUT, and replaces an earlier one.
    """
    import numpy as np

    from export.contract.errors import InputError
    from export.files.access import read_json
    from export.files.lock import locked
    from export.graph.archs import model_spec
    from runtime_py.text.generator import load_tokenizer
    from runtime_py.widths.learned import FILE, write_switch
    from toolchain.calibrate.text import read_text
    from toolchain.evaluate.perplexity import windows_of
    from toolchain.scheduling.measure import measure, open_both, widths
    from toolchain.scheduling.training import train

    pair = widths(folder, settings)
    window = settings.prompt + settings.answer
    positions = model_spec(read_json(folder / "config.json")).context_length
    if window > positions:
        raise InputError(f"--prompt and --answer are {window} tokens; the model has {positions} positions")
    every = windows_of(read_text(text), load_tokenizer(folder), window, None, str(text))
    if len(every) < settings.windows:
        raise InputError(
            f"{text}: has {len(every)} windows of {window} tokens, fewer than --windows {settings.windows}; give more "
            "text or fewer windows"
        )
    chosen = every[np.linspace(0, len(every) - 1, settings.windows).astype(int)]
    with locked(folder.resolve()):
        runner, layer = open_both(folder, *pair)
        prompts = measure(runner, chosen, settings, pair, layer, json)
        trained = train(prompts, settings.quality, pair, settings.answer, settings.seed)
        write_switch(folder, trained.switch)
    if json:
        print_json({"output": str(folder / FILE), "answers": trained.answers, "rows": trained.rows})
        return
    rows = [[row["step"], figure(row["ratio"], 4), f"{row['width']:.2f}"] for row in trained.rows]
    print_table("", ["an answer is at", f"perplexity, times that at {pair[0]} bits", "bits a token"], rows)
    print(f"means over {trained.answers} answers that the classifier has not seen")
    print(f"{folder / FILE}: use it with --schedule learned")
