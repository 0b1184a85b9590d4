"""A report of a long search: its size, the time to write it, and the time until a browser shows it."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import search as searching
from optuna.trial import TrialState
from sqlalchemy import insert

from dpcdsl.search.records import ATTRIBUTE
from dpcdsl.search.reporting import gather, page
from dpcdsl.search.study import Plan, SearchStudy

TRIALS = 28_000
OPENED = 5  # times


def filled(where: str, trials: int) -> SearchStudy:
    """A study of uniform cells with scores of a table, written at once."""
    from optuna.storages._rdb import models

    study = SearchStudy.begin(where, Plan.of(searching.SPACE, {"objective": "a table"}, "dpc"))
    ranks = searching.CELLS.sample_ranks(trials, seed=1)
    scores = 0.7 + searching.Table(0).scores(searching.CELLS.vectors(ranks)) / 100
    records = [
        study.record_of(rank).but(scores={"score": score}).model_dump(mode="json")
        for rank, score in zip(ranks.tolist(), scores.tolist(), strict=True)
    ]
    with study.storage.engine.begin() as connection:
        rows: list[dict[str, Any]] = [
            {"number": number, "study_id": study.id, "state": TrialState.COMPLETE} for number in range(trials)
        ]
        connection.execute(insert(models.TrialModel), rows)
    with study.storage.engine.begin() as connection:
        rows = [
            {"trial_id": number + 1, "key": ATTRIBUTE, "value_json": json.dumps(record)}
            for number, record in enumerate(records)
        ]
        connection.execute(insert(models.TrialUserAttributeModel), rows)
    return study


def measure() -> list[list[str]] | None:
    """None where there is no Chromium."""
    if (chromium := shutil.which("chromium")) is None:
        return None
    with tempfile.TemporaryDirectory() as name, filled(str(Path(name) / "search.db"), TRIALS) as study:
        began = time.perf_counter()
        findings = gather(study)
        read = time.perf_counter()
        text = page(findings)
        made = time.perf_counter()
        file = Path(name) / "report.html"
        file.write_text(text, encoding="utf-8")
        painted, drawn = opened(file, chromium)
    return [
        [
            "trials",
            "cells shown",
            "file",
            "read and drawn",
            "page made",
            "first contentful paint",
            "first chart",
            "bars",
        ],
        [
            *(f"{TRIALS:,}", f"{len(findings.top)}", f"{len(text.encode()) / 1e6:.2f} MB"),
            *(f"{read - began:.1f} s", f"{made - read:.2f} s", f"{painted:.2f} s", f"{drawn:.2f} s"),
            "≤ 5 MB, paint ≤ 2 s",
        ],
    ]


def opened(file: Path, chromium: str) -> tuple[float, float]:
    """Median seconds from the start of the navigation to the first contentful paint, and to the first chart."""
    from playwright.sync_api import sync_playwright

    paints, charts = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(OPENED):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(file.as_uri())
            tab.wait_for_selector("[data-drawn]")
            charts.append(tab.evaluate("performance.now()") / 1000)
            tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
            paints.append(tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000)
            tab.close()
        browser.close()
    return statistics.median(paints), statistics.median(charts)
