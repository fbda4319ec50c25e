"""What the server answers instead of a result, in the form of the OpenAI API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from export.contract.errors import printable

_PATH = re.compile(r"(?<![\w/.~])(?:~|\.{1,2})?(?:/[^\s/:'\"()<>]+)+/([^\s/:'\"()<>]+)")


class ApiError(Exception):
    """An answer with an HTTP status and the API's error object."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object that clients expect."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def for_clients(message: str, folder: Path) -> str:
    """A message about the model's files with their names, but not where they lie on this machine."""
    for place in sorted({str(folder), str(folder.absolute()), str(folder.resolve())}, key=len, reverse=True):
        message = re.sub(rf"(?<![\w/.]){re.escape(place)}/", "", message)
    return printable(_PATH.sub(r"\1", message))
