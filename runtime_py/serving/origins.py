"""Pages that a browser shows: which of them may ask a server that asks for no key.

Without this every page that its user opens could: a form or a script of text/plain needs no preflight request, and a
page whose name is made to lead to 127.0.0.1 after it was loaded (DNS rebinding) may even read the answers. Browsers
send Origin with every POST, and no page can change it. A key holds both off by itself, because no page knows it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from runtime_py.serving.requests.errors import ApiError


def check_page(scope: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raises ApiError where the request is that of a page from elsewhere, which `allowed` does not name."""
    origin = _header(scope, b"origin")
    if not origin or "*" in allowed or origin in allowed:
        return
    host = _header(scope, b"host")
    address = (scope.get("server") or ("", 0))[0]
    if origin.partition("://")[2] == host and (_cannot_be_made(_name(host)) or not is_local(address)):
        return  # its own page; that a name leads to this machine alone is no proof of that
    raise ApiError(
        403,
        f"the page at {origin[:100]} may not call this server: --allow-origin names those that may, --api-key lets all",
        code="origin_not_allowed",
    )


def is_local(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _cannot_be_made(host: str) -> bool:
    """Whether nobody can make this name lead elsewhere: an address, or one that browsers keep for this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _header(scope: Mapping[str, Any], wanted: bytes) -> str:
    return ", ".join(value.decode("latin-1") for name, value in scope["headers"] if name == wanted).lower()


def _name(host: str) -> str:
    """Without the port and the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
