"""The chat page as one answer: style and script stand inside it, and its policy allows no others."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_SCRIPTS = ("conversation.js", "server.js", "markdown.js", "messages.js", "page.js")  # each uses those before it
_STYLE_PLACE, _SCRIPT_PLACE = "/* page.css */", "/* scripts */"


@cache
def document() -> tuple[str, str]:
    """The page, and its content security policy: its own style and script by their hashes, and calls to this server.

    Addresses stand in the policy of nothing but the server the page came from: what a model writes can load no picture
    and send nothing away.
    """
    folder = files(__package__)
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    script = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS)
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace(_STYLE_PLACE, style).replace(_SCRIPT_PLACE, script)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return page, "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def chat_page(request: Request) -> Response:
    """GET /: the page. It holds nothing of the model: what it shows it asks for, with the key where one is needed."""
    page, policy = document()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return Response(page, media_type="text/html", headers=headers)
