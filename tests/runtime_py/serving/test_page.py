"""The chat page: what its headers let in, and a person's minutes with it in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil

import pytest
from starlette.testclient import TestClient

from runtime_py.chat.template import PlainTemplate
from runtime_py.serving.app import Server
from runtime_py.serving.settings import ServeSettings
from runtime_py.text.generator import TextGenerator
from tests.runtime_py.serving.helpers import ServerProcess

BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
ANSWER_MS = 60_000


def application(folder, **settings):
    server = Server(TextGenerator(folder), PlainTemplate(), "m", ServeSettings(**settings))
    return server, TestClient(server.application())


def test_its_policy_admits_its_own_script_and_style_alone(served_folder):
    server, client = application(served_folder, api_key="k3y")
    with client:
        answer = client.get("/")  # needs no key: it holds nothing of the model
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
        assert client.get("/v1/models").status_code == 401
    server.close()
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    (style,), (script,) = (re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", answer.text, re.S) for tag in ("style", "script"))
    for name, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(name) == f"'sha256-{digest}'"
    assert policy == {"connect-src": "'self'", "img-src": "data:"} | dict.fromkeys(
        ("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'"
    )
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)[^"'>\s]""", answer.text), "an outside asset"
    assert not re.findall(r"\.(?:inner|outer)HTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_it_can_be_left_out(served_folder):
    server, client = application(served_folder, page=False)
    with client:
        assert client.get("/").status_code == 404
        assert client.get("/v1/models").status_code == 200
    server.close()


@pytest.fixture(scope="module")
def served(served_folder):
    if BROWSER is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with ServerProcess(served_folder, "--max-tokens", "4096") as server:
        yield server


@pytest.fixture(scope="module")
def browser(served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser, served):
    """The page in a window of its own, with what its console said."""
    window = browser.new_context(viewport={"width": 1280, "height": 800})
    page = window.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(served.url.removesuffix("v1"))
    page.wait_for_selector("#model option", state="attached")
    yield page
    assert said == []
    window.close()


def limit(page, tokens):
    page.click("#open-settings")
    page.fill("#max_tokens", str(tokens))
    page.keyboard.press("Escape")
    assert page.is_hidden("#settings")


def answered(page):
    page.wait_for_selector("#send", state="visible", timeout=ANSWER_MS)
    assert page.is_hidden("#error"), page.inner_text("#error")


def say(page, text):
    page.fill("#input", text)
    page.keyboard.press("Enter")


def roles(page):
    return page.eval_on_selector_all("#log article", "all => all.map(one => one.className)")


def test_a_conversation_goes_on_after_a_reload(page):
    limit(page, 8)
    for text in ("Once upon a time", "And then"):
        say(page, text)
        answered(page)
    assert roles(page) == ["user", "assistant"] * 2
    figures = page.inner_text("article:last-of-type .tools")
    assert re.search(r"8 tokens · (?:[\d.]+ tokens/s · )?first after [\d.]+ s · prompt of \d+", figures)
    assert "cut off at the most tokens" in figures
    before = page.inner_text("#log")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.inner_text("#log") == before and page.input_value("#max_tokens") == "8"
    page.click("#new")
    page.reload()
    assert roles(page) == []


SLOWLY = """() => {
  const quick = window.fetch;
  const wait = { transform: async (part, out) => {
    for (let i = 0; i < part.length; i += 300) {
      await new Promise(go => setTimeout(go, 20));
      out.enqueue(part.slice(i, i + 300));
    }
  } };
  window.fetch = async (...given) => {
    const answer = await quick(...given);
    return new Response(answer.body.pipeThrough(new TransformStream(wait)), answer);
  };
}"""


def test_an_answer_is_stopped_and_kept(page):
    page.evaluate(SLOWLY)  # the bundled model has filled its context before anybody could press a key
    say(page, "Once upon a time")
    while len(page.inner_text("article.assistant .body")) < 20:
        page.wait_for_timeout(10)
    page.keyboard.press("Escape")
    answered(page)
    assert "stopped" in page.inner_text("article.assistant .tools")
    assert len(page.inner_text("article.assistant .body")) > 10
    limit(page, 4)
    say(page, "Go on")  # the server takes the next request at once
    answered(page)
    assert roles(page) == ["user", "assistant"] * 2


def test_a_message_is_changed_and_sent_again(page):
    limit(page, 4)
    for text in ("first", "second"):
        say(page, text)
        answered(page)
    page.keyboard.press("ArrowUp")  # in the empty field: the last message
    assert page.input_value(".editor") == "second"
    page.keyboard.press("Escape")
    assert page.query_selector(".editor") is None
    page.click("article.user >> nth=0 >> text=Edit")
    page.fill(".editor", "another")
    page.click("text=Send again")
    answered(page)
    assert roles(page) == ["user", "assistant"] and page.inner_text("article.user .body") == "another"
    page.click("text=Regenerate")
    answered(page)
    assert roles(page) == ["user", "assistant"]


def test_what_a_model_writes_is_text(page):
    text = "<img src=x onerror=alert(1)> **bold** `code`\n\n# Head\n- one\n- two\n```html\n<script>1</script>\n```\nend"
    messages = [{"role": "user", "content": "<b>me</b>"}, {"role": "assistant", "content": text}]
    page.evaluate("text => localStorage.setItem('athena.conversation', text)", json.dumps(messages))
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.query_selector("#log img, #log script, #log b") is None
    assert page.inner_text("article.user .body") == "<b>me</b>"
    body = page.query_selector("article.assistant .body")
    assert [one.inner_text() for one in body.query_selector_all("strong, code, h3, li, pre")] == [
        "bold", "code", "Head", "one", "two", "<script>1</script>", "<script>1</script>",
    ]  # fmt: skip
    assert "<img src=x onerror=alert(1)>" in body.inner_text()


@pytest.mark.parametrize("kept", ["{", "null", "[1, {}]", '[{"role": "system", "content": 3}]', '"text"', "{}"])
def test_what_the_browser_kept_is_not_trusted(page, kept):
    for name in ("athena.conversation", "athena.settings"):
        page.evaluate("([name, text]) => localStorage.setItem(name, text)", [name, kept])
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert roles(page) == []


def within(page, width, *names):
    boxes = [page.locator(name).bounding_box() for name in names]
    return all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)


@pytest.mark.parametrize("width, scheme", [(390, "dark"), (390, "light"), (1280, "dark"), (1280, "light")])
def test_it_fits(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    long = [
        {"role": "user", "content": "w" * 300},
        {"role": "assistant", "content": "```\n" + "x" * 300 + "\n```\n" + "y" * 300},
    ]
    page.evaluate("text => localStorage.setItem('athena.conversation', text)", json.dumps(long))
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    measure = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(measure) == 0
    for length in (8, 80):  # names of other models
        page.evaluate("name => document.querySelector('#model').append(new Option(name))", "n" * length)
        assert within(page, width, "#model", "#new", "#open-settings", "#input", "#send")
    page.click("#open-settings")
    assert page.evaluate(measure) == 0
    assert within(page, width, "#input", "#send", "#settings")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    page.select_option("#theme", "dark" if scheme == "light" else "light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground


def test_a_key_is_asked_for(browser, served_folder):
    with ServerProcess(served_folder, "--api-key", "k3y") as server:
        page = browser.new_page()
        page.goto(server.url.removesuffix("v1"))
        page.wait_for_selector("#error", state="visible")
        assert "API key" in page.inner_text("#error") and page.is_visible("#settings")
        page.fill("#key", "k3y")
        page.keyboard.press("Tab")
        page.wait_for_selector("#model option", state="attached")
        assert page.is_hidden("#error")
        page.fill("#max_tokens", "3")
        page.click("#close-settings")
        say(page, "Once")
        answered(page)
        assert roles(page) == ["user", "assistant"]
        page.close()
