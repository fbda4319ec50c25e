"""What `eval` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from export.contract.errors import InputError
from toolchain.settings.option import check_limits, option


@dataclass(frozen=True)
class EvaluationSettings:
    """A text, questions or tasks, and how much of them."""

    PANEL: ClassVar[str] = "Scored"

    text: Optional[Path] = option(None, "UTF-8 text file, .gz of one, or held-out (built in)", common=True)
    choices: Optional[Path] = option(None, "Multiple-choice questions, JSONL with prompt, choices, answer", common=True)
    task: tuple[str, ...] = option((), "Task of lm-evaluation-harness; may be repeated", common=True)
    task_folder: Optional[Path] = option(None, "Folder with the YAML files of own tasks")
    part: Optional[str] = option(None, "Fraction of the text, such as 0.5:1", unset="all", common=True)
    reference: Optional[str] = option(None, "Source model, for KL and top-1 agreement", common=True)
    window: int = option(256, "Tokens per window", common=True)
    stride: Optional[int] = option(None, "Tokens between overlapping windows", unset="no overlap")
    limit: Optional[int] = option(None, "Most windows or questions to score", low=1, unset="all", common=True)
    emulate: Optional[str] = option(
        None, "With the arithmetic of a target, by name or .toml file; encoders by cosine", unset="the runtime's"
    )
    constants: tuple[str, ...] = option((), "Constant of the emulated target, such as adc_bits=3", flag="--set")
    noise: float = option(0.0, "Noise of analog sums, in least significant bits per root of rows")

    def __post_init__(self) -> None:
        """Raises InputError naming the option that is out of range or missing."""
        if sum((self.text is not None, self.choices is not None, bool(self.task))) != 1:
            raise InputError("one of --text, --choices and --task is needed")
        if self.emulate is None and (self.constants or self.noise):
            raise InputError("--set and --noise go with --emulate")
        if self.emulate is not None and self.text is None:
            raise InputError("--emulate goes with --text")
        check_limits(self)
