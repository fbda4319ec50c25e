"""The way out, the metrics and the logs of a server, as those who operate it see them."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.runtime_py.serving.helpers import ServerProcess
from tests.runtime_py.tiny import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model whose answers do not end by themselves."""
    return write_tiny(tmp_path_factory.mktemp("operated") / "m", {})


LONG = {"prompt": "Once", "max_tokens": 500, "stream": True, "ignore_eos": True, "temperature": 0}


def started_stream(server, **more) -> socket.socket:
    """A stream of which the first bytes have come."""
    connection = socket.create_connection((server.host, server.port), timeout=60)
    connection.sendall(server.post("/v1/completions", json.dumps({**LONG, **more}).encode()))
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


def rest(connection: socket.socket) -> bytes:
    found = bytearray()
    while part := connection.recv(65536):
        found += part
    return bytes(found)


def ask(server, path: str = "/v1/completions", body: dict | None = None) -> tuple[int, dict, dict]:
    """(status, headers, answer) of a new connection."""
    data = json.dumps(body or {"prompt": "Once", "max_tokens": 1}).encode() if path.startswith("/v1/c") else None
    request = urllib.request.Request(f"http://{server.host}:{server.port}{path}", data)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, lowered(answer.headers), json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, lowered(error.headers), json.loads(error.read())


def lowered(headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_running_answers_end_and_new_requests_hear_where_to_go(folder):
    with ServerProcess(folder, "--drain-timeout", "60", "--sessions", "2") as server:
        streams = [started_stream(server, n=8, seed=i) for i in range(3)]  # two choices run, the others wait
        server.signal(signal.SIGTERM)
        time.sleep(0.3)
        status, headers, answer = ask(server)
        assert status == 503 and int(headers["retry-after"]) >= 1
        assert answer["error"]["code"] == "draining" and answer["error"]["type"] == "server_error"
        assert ask(server, "/healthz")[0] == 503
        for connection in streams:
            text = rest(connection)
            assert b"data: [DONE]" in text and text.count(b'"finish_reason":"length"') == 8
        assert server.wait(30) == 0
    assert any("all answers were finished" in line for line in server.lines)


def test_the_way_out_has_an_end(folder):
    with ServerProcess(folder, "--drain-timeout", "0.5") as server:
        connection = started_stream(server, max_tokens=511)
        server.signal(signal.SIGSTOP)  # the answer cannot end in time, however fast this machine is
        server.signal(signal.SIGTERM)
        time.sleep(0.1)
        start = time.monotonic()
        server.signal(signal.SIGCONT)
        text = rest(connection)
        assert server.wait(20) == 0
        assert time.monotonic() - start < 15
        assert b"[DONE]" in text or b"shutting down" in text or text == b""


def test_a_second_signal_ends_at_once(folder):
    with ServerProcess(folder, "--drain-timeout", "600", "--sessions", "1") as server:
        connections = [started_stream(server)]
        for i in range(8):
            connections.append(socket.create_connection((server.host, server.port), timeout=60))
            connections[-1].sendall(server.post("/v1/completions", json.dumps({**LONG, "n": 4, "seed": i}).encode()))
        time.sleep(0.2)
        server.signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.alive()
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait(10) == -signal.SIGTERM
        assert time.monotonic() - start < 5


def test_an_idle_server_ends_with_0_at_once(folder):
    for number in (signal.SIGTERM, signal.SIGINT):
        with ServerProcess(folder) as server:
            server.signal(number)
            assert server.wait(20) == 0


def test_systemd_is_told(folder, tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "notify"))
        found.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with ServerProcess(folder) as server:
            assert found.recv(100) == b"READY=1"
            server.signal(signal.SIGTERM)
            assert found.recv(100) == b"STOPPING=1"
            assert server.wait(20) == 0


@pytest.fixture(scope="module")
def server(folder):
    with ServerProcess(folder, "--model-name", 'a "name"', "--log-format", "json") as process:
        yield process


def families(server) -> dict:
    with urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def value(found: dict, name: str, sample: str = "", **labels: str) -> float:
    return sum(
        one.value
        for one in found[name].samples
        if one.name == name + sample and all(one.labels.get(key) == wanted for key, wanted in labels.items())
    )


def test_metrics_count_what_happened(server):
    before = families(server)
    prompt = "Once upon a time there was a dog. " * 4
    for _ in range(2):
        ask(server, body={"prompt": prompt, "max_tokens": 9, "ignore_eos": True, "n": 2})
    after = families(server)

    def grew(name: str, sample: str = "_total") -> float:
        mine = {"model": 'a "name"'}
        return value(after, name, sample, **mine) - value(before, name, sample, **mine)

    assert grew("athena_generated_tokens") == 36
    assert grew("athena_first_token_seconds", "_count") == 2  # of requests
    assert grew("athena_between_tokens_seconds", "_count") == 4 * 8  # of choices
    assert grew("athena_queue_seconds", "_count") == grew("athena_request_seconds", "_count") == 4
    assert grew("athena_prompt_cache_hits") + grew("athena_prompt_cache_misses") == 2
    assert grew("athena_prompt_cache_hits") >= 1 and grew("athena_prompt_tokens_reused") > 5
    assert value(after, "athena_first_token_seconds", "_sum") < value(after, "athena_request_seconds", "_sum")
    assert value(after, "athena_requests_running") == value(after, "athena_requests_waiting") == 0
    assert value(after, "athena_model_loaded") == 1 and value(after, "athena_draining") == 0
    assert value(after, "athena_model_loads", "_total") == 1
    assert after["athena_between_tokens_seconds"].type == "histogram"


def test_metrics_show_the_queue(server):
    connections = [started_stream(server) for _ in range(4)]
    for _ in range(3):
        connections.append(socket.create_connection((server.host, server.port), timeout=60))
        connections[-1].sendall(server.post("/v1/completions", json.dumps(LONG).encode()))
    deadline, seen = time.monotonic() + 20, 0.0
    while time.monotonic() < deadline and not seen:
        seen = value(families(server), "athena_requests_waiting")
    for connection in connections:
        connection.close()
    assert seen >= 1


def test_logs_are_json_and_hold_no_texts(server):
    secret = "a very secret prompt"
    ask(server, body={"prompt": secret, "max_tokens": 3})
    assert ask(server, body={"prompt": secret, "temperature": 9})[0] == 400
    assert ask(server, "/nothing?secret=1")[0] == 404
    time.sleep(0.3)
    lines = [json.loads(line) for line in server.lines]
    assert all({"time", "level", "event", "message"} <= line.keys() for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    requests = [line for line in lines if line["event"] == "request"]
    good = [line for line in requests if line["status"] == 200 and line["path"] == "/v1/completions"][-1]
    assert good["model"] == 'a "name"' and good["completion_tokens"] == 3 and good["prompt_tokens"] > 3
    assert 0 < good["first_token_seconds"] <= good["seconds"]
    assert {line["status"] for line in requests} >= {200, 400, 404}
    assert secret not in json.dumps(lines) and "secret=1" not in json.dumps(lines)


def test_every_answer_has_an_id_that_the_log_has_too(server):
    _, headers, _ = ask(server)
    time.sleep(0.2)
    assert any(headers["x-request-id"] in line for line in server.lines)


def test_a_log_line_is_one_line_whatever_is_in_it(capfd):
    from runtime_py.serving.operating.logs import Log

    for form in ("text", "json"):
        log = Log(form)
        threads = [threading.Thread(target=log.say, args=("x", "a\nb\x1b[31m\u2028")) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = capfd.readouterr().err.split("\n")
        assert len(lines) == 21 and "\x1b" not in "".join(lines)
