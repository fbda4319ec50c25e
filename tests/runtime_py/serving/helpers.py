"""A real `athena-export serve` process for tests, and raw HTTP to treat it badly."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path


class ServerProcess:
    """Use as a context manager; `url` ends in /v1."""

    def __init__(self, folder: Path | str, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "toolchain", "serve", str(folder), "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            found = re.search(r"at (http://(\S+):(\d+)/v1)", line)
            if found:
                self.url, self.host, self.port = found[1], found[2], int(found[3])
                break
        else:
            raise AssertionError("".join(self.lines))
        threading.Thread(target=lambda: self.lines.extend(self._process.stderr), daemon=True).start()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.alive():
            self._process.send_signal(signal.SIGINT)
        try:
            self.status = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit code."""
        return self._process.wait(seconds)

    def resident(self) -> int:
        """Bytes of memory the process has now."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024

    def raw(self, data: bytes, seconds: float = 10.0) -> bytes:
        """Send bytes, return all that comes back until the connection closes or nothing comes any more."""
        with socket.create_connection((self.host, self.port), timeout=seconds) as connection:
            answer = bytearray()
            try:
                connection.sendall(data)
                while part := connection.recv(65536):
                    answer += part
            except (TimeoutError, ConnectionError):
                pass
            return bytes(answer)

    def status_of(self, data: bytes) -> int:
        """HTTP status of the answer to raw bytes; 0 when the connection was closed without one."""
        head = self.raw(data)[:12]
        return int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0

    def post(self, path: str, body: bytes, headers: str = "") -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        ).encode() + body
