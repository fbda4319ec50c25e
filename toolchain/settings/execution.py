"""How a model folder is computed: what `run`, `chat`, `serve`, `bench`, `eval` and `embed` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from toolchain.settings.option import check_limits, option

EXECUTION = "Execution"
SPECULATE = (
    "Tokens guessed behind the next one from text that repeats, which changes no answer; auto: as many as pay, N: as "
    "many as that"
)


@dataclass(frozen=True)
class Threads:
    """Threads of a computation."""

    PANEL: ClassVar[str] = EXECUTION

    threads: Optional[int] = option(None, "Threads", low=1, high=1024, unset="every processor", common=True)

    def __post_init__(self) -> None:
        """Raises InputError on a number that makes no sense."""
        check_limits(self)


@dataclass(frozen=True)
class Execution(Threads):
    """Threads, their processors, and where the weights are; runtime_py/load.py says what each is worth."""

    PANEL: ClassVar[str] = EXECUTION

    cpus: tuple[int, ...] = option((), "Processors that keep one thread each, such as 0,2", unset="the system chooses")
    mmap: Optional[bool] = option(None, "Map the weights instead of reading them", unset="what is faster")


@dataclass(frozen=True)
class Guessing:
    """Guessed tokens; runtime_py/speculation checks what is asked for."""

    PANEL: ClassVar[str] = EXECUTION

    speculate: str = option("auto", SPECULATE, metavar="off|auto|N")


@dataclass(frozen=True)
class Arithmetic:
    """What activations are."""

    PANEL: ClassVar[str] = EXECUTION

    activations: str = option("int8", "Activations; float32 is slow, for comparison", choices=("int8", "float32"))

    def __post_init__(self) -> None:
        """Raises InputError on an unknown name."""
        check_limits(self)


EVERY_THREAD, AS_IT_IS, INT8, GUESSING = Threads(), Execution(), Arithmetic(), Guessing()
