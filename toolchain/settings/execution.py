"""How a model folder is computed: what `run`, `chat`, `serve`, `bench`, `eval` and `embed` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from toolchain.settings.option import check_limits, option

EXECUTION = "Execution"


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
class Arithmetic:
    """What activations are."""

    PANEL: ClassVar[str] = EXECUTION

    activations: str = option("int8", "Activations; float32 is slow, for comparison", choices=("int8", "float32"))

    def __post_init__(self) -> None:
        """Raises InputError on an unknown name."""
        check_limits(self)


@dataclass(frozen=True)
class Adapted:
    """Whose low-rank terms are added to the shared weights."""

    PANEL: ClassVar[str] = EXECUTION

    adapter: str = option("", "Adapter of the folder, see `adapter list`", unset="none", common=True)

    def names(self) -> list[str]:
        """What the runtime is to load."""
        return [self.adapter] if self.adapter else []


NO_ADAPTER = Adapted()
EVERY_THREAD, AS_IT_IS, INT8 = Threads(), Execution(), Arithmetic()
