"""The tables of docs/validation.md: the headline over rows that the model never saw, then every row by its class."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles

from hw_model.validation import boards, chips, parts, systems
from hw_model.validation.row import FITTED, HELD_OUT, ORIGINS, RE_ADDED, Row

_MEANING = {
    HELD_OUT: "Held out: no constant was chosen with these in view",
    FITTED: "Fitted: a constant of the model comes from these, or from who had them in view",
    RE_ADDED: "Re-added: tables put together, rules checked; no constant of a target",
}


def rows() -> list[Row]:
    """Every row, whole systems first."""
    groups = (boards.rows, systems.rows, chips.unseen, chips.seven, chips.not_modelled, parts.isaac, parts.puma,
              parts.arithmetic, parts.laws, parts.parts)  # fmt: skip
    return [row for group in groups for row in group()]


def headline(found: Sequence[Row]) -> str:
    """Median, 90th percentile and worst error by class, held out first, in one table."""
    lines = ["| rows | compared | whole systems | median | 90th percentile | worst | within the aim |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for origin in reversed(ORIGINS):
        errors = sorted(abs(row.error) for row in found if row.origin == origin and row.error is not None)
        whole = sum(row.system for row in found if row.origin == origin and row.error is not None)
        within = sum(not row.misses for row in found if row.origin == origin and row.error is not None)
        tenth = quantiles(errors, n=10, method="inclusive")[-1]
        shown = " | ".join(f"{100 * error:.0f} %" for error in (median(errors), tenth, errors[-1]))
        lines.append(f"| {origin} | {len(errors)} | {whole} | {shown} | {within} |")
    return "\n".join(lines)


def table(found: Sequence[Row]) -> str:
    """One class of rows."""
    lines = [
        "| chip | quantity | published | modelled | error | aim | why it misses |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        if row.modelled is None:
            cells = ["-", "-", "-", row.why]
        else:
            error = 100 * (row.error or 0.0)
            cells = [f"{row.modelled:.4g} {row.unit}", f"{error:+.1f} %", f"{100 * row.aim:g} %", row.why]
        lines.append(f"| {row.chip} | {row.quantity} | {row.published:.4g} {row.unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown() -> str:
    """Headline and tables."""
    found = rows()
    sections = [headline(found)]
    for origin in reversed(ORIGINS):
        sections += [f"### {_MEANING[origin]}", table([row for row in found if row.origin == origin])]
    return "\n\n".join(sections)
