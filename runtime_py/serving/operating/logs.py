"""What the server says on stderr: lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import datetime, timezone
from typing import Any

from export.contract.errors import printable

FORMATS = ("text", "json")


class Log:
    """One line an event; threads may share it.

    text: notices only, as `[message]`; json: every request, too. A request's texts are never in a line.
    """

    def __init__(self, form: str = "text") -> None:
        """form: one of FORMATS."""
        self._json = form == "json"
        self._lock = threading.Lock()

    def say(self, event: str, message: str, level: str = "info", plain: bool = False, **fields: Any) -> None:
        """event: what happened, in one word; message: for people; plain: without brackets in text."""
        if self._json:
            time = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            found = {"time": time, "level": level, "event": event, "message": message, **fields}
            self._write(json.dumps({name: value for name, value in found.items() if value is not None}))
        else:
            self._write(printable(message) if plain else f"[{printable(message)}]")

    def request(self, fields: dict[str, Any]) -> None:
        """A request that was answered; only in JSON."""
        if self._json:
            self.say("request", f"{fields.get('method')} {fields.get('path')} {fields.get('status')}", **fields)

    def take_over(self) -> None:
        """Let Python's logging, which uvicorn uses, write here from now on."""
        root = logging.getLogger()
        root.handlers[:] = [_Handler(self)]
        root.setLevel(logging.WARNING)

    def _write(self, line: str) -> None:
        with self._lock:
            print(line, file=sys.stderr, flush=True)


class _Handler(logging.Handler):
    """Log records as lines of a Log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        trace = "".join(traceback.format_exception(error)) if error else None
        message = record.getMessage().strip()
        if self._log._json:
            self._log.say("log", message, record.levelname.lower(), logger=record.name, traceback=trace)
        else:
            self._log.say("log", message)
            if trace:
                self._log._write(trace.rstrip())
