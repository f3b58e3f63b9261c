"""The README's figures are those of the stored results, and the stored results keep the promise."""

import json
from pathlib import Path

import numpy as np

from benchmarks import pocket_dpo, report

ROOT = Path(__file__).resolve().parent.parent
ROWS = json.loads(pocket_dpo.RESULTS.read_text())["rows"]


def mean(method, name):
    return np.mean([row[name] for row in ROWS if row["method"] == method])


def test_readme_shows_the_stored_results():
    assert pocket_dpo.table(ROWS) in (ROOT / "README.md").read_text()


def test_readme_shows_the_steps_of_the_benchmark():
    rows = json.loads((ROOT / "benchmarks" / "results" / "bench.json").read_text())["rows"]
    assert report.summary(rows) in (ROOT / "README.md").read_text()


def test_base_sees_well_and_falls_into_traps():
    assert mean("base", "iid_cover") >= 88 and mean("base", "iid_hal") <= 15
    assert 30 <= mean("base", "trap_hal") <= 55 and mean("base", "probes_random") >= 90


def test_dpo_halves_trap_hal_and_keeps_cover():
    assert len({row["seed"] for row in ROWS if row["method"] == "DPO"}) == 3
    assert mean("DPO", "trap_hal") <= mean("base", "trap_hal") / 2
    assert mean("DPO", "trap_cover") >= mean("base", "trap_cover") - 2
    assert mean("DPO", "iid_cover") >= mean("base", "iid_cover") - 4
