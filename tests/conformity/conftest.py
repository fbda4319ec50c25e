"""Collects the outcome of every test by folder and tool, for the table in README."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_OUTCOMES: dict[str, dict[str, str]] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    params = getattr(getattr(item, "callspec", None), "params", {})
    if "folder" in params and (report.when == "call" or report.skipped or report.failed):
        _OUTCOMES.setdefault(params["folder"], {})[item.originalname] = report.outcome


def pytest_sessionfinish(session):
    path = os.environ.get("ATHENA_CONFORMITY_RESULTS")
    if path and _OUTCOMES:
        Path(path).write_text(json.dumps(_OUTCOMES, indent=1))
