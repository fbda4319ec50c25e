"""Pages as a person sees them: pictures and tables are there, nothing overflows, at desktop and phone width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from targets import load_target, target_names
from tests.conftest import DEMO
from tests.toolchain.cli.test_cli import athena, athena_json

BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
MEASURE = """<script>
const seen = e => { const r = e.getBoundingClientRect(); return r.width > 50 && r.height > 10 };
document.body.dataset.found = JSON.stringify({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  pictures: [...document.querySelectorAll('svg')].filter(seen).length,
  tables: [...document.querySelectorAll('table')].filter(seen).length,
  headings: [...document.querySelectorAll('h2')].map(h => h.textContent),
  outside: [...document.querySelectorAll('[src^=http], link[href^=http]')].length,
});
</script></body>"""


def look(page, width, tmp_path):
    """What a browser window of this width shows."""
    if BROWSER is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    copy = tmp_path / f"page{width}.html"
    copy.write_text(page.read_text().replace("</body>", MEASURE))
    # Chromium's window has a least width of its own; a frame has none.
    frame = tmp_path / f"frame{width}.html"
    frame.write_text(
        f"<iframe src='{copy.name}' width={width} height=900></iframe><p id=out></p><script>"
        "onload = () => out.textContent = frames[0].document.body.dataset.found</script>"
    )
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<p id="out">(\{.*?\})</p>', done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    return json.loads(found[1])


@pytest.fixture(scope="module")
def reported(demo_folder, demo_text, tmp_path_factory):
    out = tmp_path_factory.mktemp("pages") / "OUT"
    shutil.copytree(demo_folder, out)
    source = DEMO
    athena("eval", out, "--text", demo_text, "--part", "0.5:0.52", "--reference", source)
    athena("bench", out, "--rounds", 1, "--tokens", 4, "--prompt-lengths", "32", "--depths", "16")
    return out


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report(reported, width, tmp_path):
    found = look(reported / "report.html", width, tmp_path)
    assert found["overflow"] <= 0
    assert found["pictures"] == 5 and found["tables"] >= 4 and found["outside"] == 0
    assert found["headings"] == [
        "Layer loss and size",
        "Quality",
        "Speed",
        "Cost on other hardware",
        "Tensors",
        "Provenance",
    ]


def test_the_report_says_how_each_figure_was_made(reported):
    page = (reported / "report.html").read_text()
    for command in ("athena-export eval", "athena-export bench", "athena-export cost"):
        assert command in page
    assert "Not measured yet" not in page


@pytest.mark.parametrize("width", [1280, 390])
def test_the_pages_of_cost_sweep_and_compare(reported, width, tmp_path):
    athena("cost", reported, "--target", "all", "--generate", "32:64", "--page", tmp_path / "cost.html", "--no-save")
    varied = ("--vary", "adc.enob=3:6", "--vary", "array.rows=64,128")
    athena("sweep", reported, "--target", "rap", *varied, "--page", tmp_path / "sweep.html")
    athena("compare", reported, reported, "--page", tmp_path / "compare.html")
    accelerators = [name for name in target_names() if load_target(name).kind != "cpu"]
    _every_picture_has(accelerators, (tmp_path / "cost.html").read_text())
    for name, pictures, tables in (("cost", 8, 1 + len(accelerators)), ("sweep", 1, 1), ("compare", 1, 1)):
        found = look(tmp_path / f"{name}.html", width, tmp_path)
        assert found["overflow"] <= 0 and found["pictures"] == pictures and found["tables"] == tables, name


def _every_picture_has(names: list[str], page: str) -> None:
    """AttentionLego's weights lie in its macros: nothing comes from outside, so that a roofline has no place for it."""
    drawn = re.findall(r"<h2[^>]*>([^<]*)</h2>\s*(?:<figure>)?\s*(<svg.*?</svg>)", page, re.DOTALL)
    assert len(drawn) == 8
    for title, picture in drawn:
        missing = {name for name in names if not re.search(rf"[> ]{name}[ <(]", picture)}
        assert missing <= ({"attentionlego"} if title == "Roofline" else set()), title


def test_compare(reported, demo_folder, tmp_path):
    found = athena_json("compare", reported, demo_folder)["figures"]
    assert found["effective bits"][str(reported)] == found["effective bits"][str(demo_folder)]
    assert found["perplexity"][str(reported)] > 1 and found["perplexity"][str(demo_folder)] is None
    text = athena("compare", reported, demo_folder).stdout
    assert "athena-export eval FOLDER" in text and "rap, decode 512: latency" in text.replace("\n", " ")
    assert "needs two folders" in athena("compare", reported, code=2).stderr
    assert "report.json: this file is missing" in athena("compare", reported, tmp_path, code=2).stderr


def test_cost_prices_an_answer_and_everything(reported):
    found = athena_json("cost", reported, "--target", "all", "--generate", "16:8", "--no-save")
    assert len(found["targets"]) == len(found["generations"]) == len(target_names())
    assert all(g["seconds"] > g["prefill_s"] > 0 for g in found["generations"])
    for one in found["targets"]:
        assert one["bound_by"] and one["energy_low_j"] <= one["energy_j"] <= one["energy_high_j"]
        parts = one["components"]
        assert one["area_mm2"] is None or one["area_mm2"] == pytest.approx(sum(part["area_mm2"] for part in parts))
        assert one["area_mm2"] is None or sum(part["leakage_w"] for part in parts) > 0
    assert any(line.startswith("rap takes") and "adc_law" in line for line in found["turns"])
    text = athena("cost", reported, "--target", "rap", "--no-save").stdout
    for words in ("power at rest", "area mm2", "waits for ", "energy from ", ", most by logic_leakage"):
        assert words in text, words
    assert "PROMPT:ANSWER" in athena("cost", reported, "--generate", "5", code=2).stderr
    assert "--objective must be one of" in athena("cost", reported, "--objective", "beauty", code=2).stderr


def test_sweep_lists_every_variant(reported):
    found = athena_json("sweep", reported, "--target", "rap", "--vary", "adc.enob=3:6", "--vary", "adc.law=survey,pow2")
    assert len(found["points"]) == 8 and any(p["best"] for p in found["points"])
    assert {p["adc_law"] for p in found["points"]} == {"survey", "pow2"}
    assert "has no constant 'enob'" in athena("sweep", reported, "--target", "rap", "--vary", "enob=3", code=2).stderr


def test_emulation_reports_the_accelerators_perplexity(reported, demo_text):
    arguments = ("eval", reported, "--text", demo_text, "--part", "0.5:0.52", "--limit", 3, "--no-save")
    plain, rap = (athena_json(*arguments, *more)["perplexity"] for more in ((), ("--emulate", "rap")))
    assert abs(rap / plain - 1) < 0.05  # 8-bit integers and an integer softmax cost little
    noisy = athena_json(*arguments, "--emulate", "rap", "--noise", "0.1")["perplexity"]
    assert noisy > 1.5 * plain
    lego = athena_json(*arguments, "--emulate", "attentionlego")["perplexity"]
    assert lego > 2 * plain  # its softmax spans e**2 and no more
    assert "target 'abacus' is unknown" in athena(*arguments, "--emulate", "abacus", code=2).stderr
