"""How a model folder is computed: what `run`, `chat`, `serve`, `bench`, `eval` and `embed` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from export.contract.errors import InputError
from export.files.access import expanded
from toolchain.settings.option import check_limits, option

if TYPE_CHECKING:
    from runtime_py.prompt_cache.store import PromptCache
    from runtime_py.widths.schedule import Schedule

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
class KeyValueCache:
    """How keys and values are kept."""

    PANEL: ClassVar[str] = EXECUTION

    cache_bits: int = option(
        16, "Bits of each cached key and value; fewer take less memory, 4 cost some quality", choices=(16, 8, 4),
        common=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raises InputError on another number."""
        check_limits(self)


@dataclass(frozen=True)
class Width:
    """How much of nested codes is read."""

    PANEL: ClassVar[str] = EXECUTION

    bits: Optional[int] = option(
        None, "Width at which nested codes are read (export --nested); fewer bits are faster and cost quality",
        low=1, high=8, unset="all there are", common=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raises InputError on another number."""
        check_limits(self)


@dataclass(frozen=True)
class Widths(Width):
    """The same, and how it changes while an answer grows."""

    PANEL: ClassVar[str] = EXECUTION

    schedule: Optional[str] = option(
        None, "Widths of nested codes by step of an answer, such as prefill=4,0=4,64=3,256=2 or 0=4,confident=2; "
        "learned: what `schedule` has made", metavar="schedule", unset="one width",
    )  # fmt: skip

    def reading(self) -> int | Schedule | str | None:
        """As runtime_py/load.py takes it. Raises InputError."""
        from runtime_py.widths.learned import LEARNED
        from runtime_py.widths.schedule import Schedule

        if self.schedule is None:
            return self.bits
        if self.bits is not None:
            raise InputError("--bits and --schedule exclude each other")
        if self.schedule == LEARNED:
            return LEARNED
        return Schedule.read(self.schedule)


@dataclass(frozen=True)
class Guessing:
    """Guessed tokens; runtime_py/speculation checks what is asked for."""

    PANEL: ClassVar[str] = EXECUTION

    speculate: str = option("auto", SPECULATE, metavar="number")


@dataclass(frozen=True)
class Arithmetic:
    """What activations are."""

    PANEL: ClassVar[str] = EXECUTION

    activations: str = option("int8", "Activations; float32 is slow, for comparison", choices=("int8", "float32"))

    def __post_init__(self) -> None:
        """Raises InputError on an unknown name."""
        check_limits(self)


@dataclass(frozen=True)
class PromptCaching:
    """Where prompts are kept between runs; runtime_py/prompt_cache."""

    PANEL: ClassVar[str] = EXECUTION

    prompt_cache: Optional[str] = option(
        None, "Keep keys and values of prompts in this folder, for later starts", metavar="folder", common=True,
        unset="in memory only",
    )  # fmt: skip
    prompt_cache_size: str = option("2GB", "Most bytes of that folder, such as 500MB", metavar="size")

    def open(self, model: Path, runner: Any, interpreted: str) -> PromptCache | None:
        """The cache of a model that runs, None where there is none. Raises InputError."""
        from runtime_py.system.sizes import parsed_size
        from runtime_py.text.typed_text import typed_text

        most = parsed_size(self.prompt_cache_size, "--prompt-cache-size")
        if self.prompt_cache is None:
            return None
        from runtime_py.prompt_cache.store import PromptCache

        if hasattr(runner, "schedule"):
            raise InputError("--prompt-cache does not go with --schedule: caches of several widths are no one's prompt")
        if interpreted:
            raise InputError("--prompt-cache needs the compiled engine, which does not run this model here")
        return PromptCache(expanded(typed_text(self.prompt_cache, "--prompt-cache")), most, model, runner)


@dataclass(frozen=True)
class Adapted:
    """Whose low-rank terms are added to the shared weights."""

    PANEL: ClassVar[str] = EXECUTION

    adapter: str = option("", "Adapter of the folder, see `adapter list`", unset="none", common=True)

    def names(self) -> list[str]:
        """What the runtime is to load."""
        return [self.adapter] if self.adapter else []


FULL_WIDTH, FULL_WIDTHS = Width(), Widths()
EVERY_THREAD, AS_IT_IS, INT8 = Threads(), Execution(), Arithmetic()
NO_PROMPT_CACHE, NO_ADAPTER, GUESSING, FLOATS = PromptCaching(), Adapted(), Guessing(), KeyValueCache()
