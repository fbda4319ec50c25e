"""Peers run in an environment without what our packages set for themselves."""

from __future__ import annotations

import os
import sys

import runtime_py
from tests.benchmarks.serving import Server, free_port


def test_servers_do_not_inherit_our_openmp_settings(tmp_path):
    """Passive waiting takes half or two thirds of llama-server's speed."""
    assert runtime_py and "OMP_WAIT_POLICY" in os.environ
    program = (
        "import http.server, os, sys; open(sys.argv[1], 'w').write(' '.join(os.environ)); "
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[2])), type('H', (http.server.BaseHTTPRequestHandler,), "
        "{'do_GET': lambda self: self.send_response(200) or self.end_headers()})).serve_forever()"
    )
    port, seen = free_port(), tmp_path / "names"
    server = Server("peer", [sys.executable, "-c", program, str(seen), str(port)], port, "m")
    server.stop()
    names = seen.read_text().split()
    assert "PATH" in names and not [name for name in names if name.startswith("OMP_")]
