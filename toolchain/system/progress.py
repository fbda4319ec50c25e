"""Progress of long work on stderr: a bar with block, tensor and ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from export.contract.errors import printable

_LINE_INTERVAL = 5.0  # seconds between plain lines
_SLOW_FIRST = 2  # the longest steps, not counted for what is left: kernels are compiled in the first ones


def seconds_left(steps: list[float], left: int) -> float | None:
    """Seconds that `left` more steps take, from the seconds of those before; None while too few are done."""
    usual = sorted(steps)[:-_SLOW_FIRST]
    return left * sum(usual) / len(usual) if usual else None


class Reporter:
    """One task with a known number of steps. Use as a context manager; `quiet` shows nothing but notes."""

    def __init__(self, title: str, total: int, quiet: bool = False) -> None:
        self.title, self.total, self.done = title, total, 0
        self._console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._quiet = quiet
        self._started = self._printed = self._last = time.monotonic()
        self._steps: list[float] = []
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> Reporter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None and not self._quiet:
            self._console.print(
                f"{self.title}: done in {time.monotonic() - self._started:.1f} s", highlight=False, soft_wrap=True
            )

    def step(self, label: str, advance: int = 1) -> None:
        """Report `advance` finished steps; `label` says what was last done."""
        self.done += advance
        if self._bar is not None:
            self._bar.update(self._task, advance=advance, description=f"{self.title} {printable(label)}"[:48])
            return
        now = time.monotonic()
        self._steps.append((now - self._last) / max(advance, 1))
        self._last = now
        if not self._quiet and now - self._printed >= _LINE_INTERVAL:
            self._printed = now
            left = seconds_left(self._steps, self.total - self.done)
            ending = "" if left is None else f", about {left:.0f} s left"
            print(f"{self.title} {self.done}/{self.total} {printable(label)}{ending}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line the user should see, above the bar."""
        self._console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=True)
