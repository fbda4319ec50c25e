"""Scripts of web pages that call the server: allowed by origin, and by no other."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from export.contract.errors import InputError
from runtime_py.chat.template import PlainTemplate
from runtime_py.serving.app import Server
from runtime_py.serving.origins import check_page
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.scheduler import Busy
from runtime_py.serving.settings import ServeSettings
from runtime_py.text.generator import TextGenerator
from tests.runtime_py.serving.helpers import ServerProcess

PAGE = "https://page.example"
HEADERS = "authorization,content-type,x-stainless-os,x-stainless-retry-count,x-custom"


@pytest.fixture(scope="module")
def generator(served_folder):
    return TextGenerator(served_folder)


@pytest.fixture(scope="module", params=[(PAGE, "http://localhost:3000"), ("*",), ()], ids=["two", "all", "none"])
def served(request, generator):
    """(client, origins allowed) of a server that also asks for a key and takes few requests."""
    settings = ServeSettings(
        sessions=1, queue=0, max_body=2000, api_key="k3y", allow_origins=request.param, read_seconds=5
    )
    server = Server(generator, PlainTemplate(), "m", settings)
    with TestClient(server.application(), raise_server_exceptions=False) as client:
        yield client, request.param, server
    server.close()


def allowed(answer) -> str | None:
    return answer.headers.get("access-control-allow-origin")


def preflight(client, origin=PAGE, path="/v1/chat/completions", method="POST", **more):
    headers = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": HEADERS}
    return client.options(path, headers={**headers, **more})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models", "/healthz"])
def test_a_preflight_needs_no_key(served, path):
    client, origins, _ = served
    answer = preflight(client, path=path)
    if not origins:
        assert answer.status_code in (401, 405) and allowed(answer) is None
        return
    assert answer.status_code == 200
    assert allowed(answer) == ("*" if "*" in origins else PAGE)
    assert {"GET", "POST"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert set(HEADERS.split(",")) <= set(answer.headers["access-control-allow-headers"].lower().split(","))
    assert "access-control-allow-credentials" not in answer.headers
    assert preflight(client, **{"Access-Control-Request-Private-Network": "true"}).status_code == 200
    assert preflight(client, method="DELETE").status_code == 400


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://page.example",
        "https://page.example:8443",
        "https://page.example.evil",
        "null",
        "",
    ],
)
def test_other_origins_are_not_allowed(served, origin):
    client, origins, _ = served
    if "*" in origins:
        assert allowed(preflight(client, origin)) == "*"
        return
    answer = preflight(client, origin)
    assert answer.status_code in (400, 401, 405) and allowed(answer) is None
    assert allowed(client.get("/healthz", headers={"Origin": origin})) is None


def test_answers_and_refusals_carry_the_header(served):
    client, origins, server = served
    expected = None if not origins else "*" if "*" in origins else PAGE
    page = {"Origin": PAGE, "Authorization": "Bearer k3y"}
    body = {"model": "m", "prompt": "Once", "max_tokens": 3}

    def post(headers=page, **more):
        return client.post("/v1/completions", json={**body, **more}, headers=headers)

    def failing(fault):
        def submit(*_):
            raise fault

        return submit

    answers = {
        200: post(),
        400: post(nonsense=1),
        401: post({"Origin": PAGE}),
        404: client.get("/v1/nowhere", headers=page),
        413: post(user="x" * 3000),
    }
    streamed = post(stream=True)
    assert streamed.status_code == 200 and streamed.text.endswith("data: [DONE]\n\n")
    assert allowed(streamed) == expected
    kept = server.scheduler.submit
    for status, fault in ((429, Busy(3)), (500, ZeroDivisionError())):
        server.scheduler.submit = failing(fault)
        answers[status] = post()
    server.scheduler.submit = kept
    assert {status: answer.status_code for status, answer in answers.items()} == {s: s for s in answers}
    assert {status: allowed(answer) for status, answer in answers.items()} == dict.fromkeys(answers, expected)
    if origins:
        assert "retry-after" in answers[429].headers["access-control-expose-headers"].lower()
    if PAGE in origins:
        assert "Origin" in answers[200].headers["vary"]
    assert allowed(client.get("/healthz")) in (None, "*")  # a program that is no browser


def test_a_plain_options_request_is_no_preflight(served):
    client, _, _ = served
    headers = {"Authorization": "Bearer k3y"}
    assert client.options("/v1/completions", headers=headers).status_code == 405
    assert client.options("/v1/completions", headers={**headers, "Origin": PAGE}).status_code == 405


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("https://page.example", "https://page.example"),
        ("HTTPS://Page.Example", "https://page.example"),
        ("https://page.example:443", "https://page.example"),
        ("http://page.example:80", "http://page.example"),
        ("http://page.example:443", "http://page.example:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("https://a_b.example", "https://a_b.example"),
        ("*", "*"),
    ],
)
def test_origins_are_written_as_browsers_do(given, meant):
    assert ServeSettings(allow_origins=(given,)).origins() == (meant,)


@pytest.mark.parametrize(
    "given",
    [
        "", "page.example", "https://", "https://page.example/", "https://page.example/path", "https://page.example?x",
        "https://user@page.example", "https://page.example:0", "https://page.example:99999", "https://page.example:x",
        "https://page example", "https://*.example", "null", "**", " https://page.example", "https://page.example\n",
        "https://p\u00e4ge.example", "https://\u212apage.example", "file://", "https://.", "https://[::1", "a,b", "://x",
        "https://page.example,https://other.example", "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_origin_is_refused(given):
    with pytest.raises(InputError, match="--allow-origin must be") as caught:
        ServeSettings(allow_origins=("https://page.example", given))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


FOREIGN = ["https://evil.example", "http://evil.example:8000", "null", "http://localhost:3000", "file://", "x" * 5000]


@pytest.mark.parametrize(
    ("address", "host", "origin", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", None, 200),  # a program that is no browser
        ("127.0.0.1", "evil.example:8000", None, 200),
        ("127.0.0.1", "127.0.0.1:8000", "http://127.0.0.1:8000", 200),
        ("127.0.0.1", "localhost:8000", "http://localhost:8000", 200),
        ("127.0.0.1", "LocalHost:8000", "http://localhost:8000", 200),
        ("::1", "[::1]:8000", "http://[::1]:8000", 200),
        ("127.0.0.1", "0.0.0.0:8000", "http://0.0.0.0:8000", 200),  # what --host 0.0.0.0 shows
        ("127.0.0.1", "chat.localhost:8000", "http://chat.localhost:8000", 200),
        ("127.0.0.1", "0.0.0.0:8000", "https://evil.example", 403),
        ("127.0.0.1", "127.0.0.1:8000", PAGE, 200),  # named
        ("192.168.1.5", "pi.local:8000", "http://pi.local:8000", 200),
        ("192.168.1.5", "192.168.1.5:8000", "http://192.168.1.5:8000", 200),
        ("127.0.0.1", "evil.example:8000", "http://evil.example:8000", 403),  # a name made to lead here
        ("192.168.1.5", "pi.local:8000", "http://evil.example", 403),
        ("127.0.0.1", "localhost.evil.example", "http://localhost.evil.example", 403),
        *(("127.0.0.1", "127.0.0.1:8000", origin, 403) for origin in FOREIGN),
        *(("192.168.1.5", "192.168.1.5:8000", origin, 403) for origin in FOREIGN),
    ],
)
def test_pages_from_elsewhere_may_not_call_a_server_without_a_key(address, host, origin, status):
    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    scope = {"headers": headers, "server": (address, 8000)}
    check_page(scope, ("*",))
    if status == 200:
        check_page(scope, (PAGE,))
        return
    with pytest.raises(ApiError, match="--allow-origin") as caught:
        check_page(scope, (PAGE,))
    assert caught.value.status == 403 and len(str(caught.value.body())) < 400


def test_a_page_needs_its_own_server_or_a_key(generator):
    foreign, own = {"Origin": "https://evil.example", "Content-Type": "text/plain"}, {"Origin": "http://127.0.0.1:8000"}
    for key, expected in (("", 403), ("k3y", 400)):  # 400: the body is no request
        server = Server(generator, PlainTemplate(), "m", ServeSettings(api_key=key))
        with TestClient(server.application(), base_url="http://127.0.0.1:8000") as client:
            client.headers["Authorization"] = f"Bearer {key}"
            assert client.post("/v1/completions", content=b"{}", headers=foreign).status_code == expected
            assert client.post("/v1/completions", content=b"{}", headers=own).status_code == 400
            assert client.get("/", headers=foreign).status_code == 200
        server.close()


def test_over_http_with_hostile_preflights(served_folder):
    with ServerProcess(served_folder, "--model-name", "m", "--allow-origin", PAGE, "--ignore-unknown") as server:
        head = f"OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\nOrigin: {PAGE}\r\nConnection: close\r\n"
        ask = head + "Access-Control-Request-Method: POST\r\n"
        answer = server.raw((ask + "Access-Control-Request-Headers: content-type\r\n\r\n").encode())
        assert answer.startswith(b"HTTP/1.1 200") and f"access-control-allow-origin: {PAGE}".encode() in answer
        endless = ask + "Content-Length: 60000000\r\n\r\n"
        assert server.status_of(endless.encode() + b"a" * 60_000_000) in (0, 200)
        assert server.status_of((ask + f"Access-Control-Request-Headers: {'x,' * 3_000_000}\r\n\r\n").encode()) in (
            0,
            400,
        )
        body = json.dumps({"model": "m", "prompt": "x", "max_tokens": 1, "whatever": 1}).encode()
        answer = server.raw(server.post("/v1/completions", body, f"Origin: {PAGE}\r\n"))
        assert answer.startswith(b"HTTP/1.1 200") and f"access-control-allow-origin: {PAGE}".encode() in answer
        body = json.dumps({"model": "m", "prompt": "x", "mirostat": 2}).encode()
        assert server.status_of(server.post("/v1/completions", body)) == 400
        assert server.alive()
