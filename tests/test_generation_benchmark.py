"""The benchmark of generation, in small, and what its stored result claims."""

import json
import sys

from benchmarks import generation


def test_a_small_run_measures_every_way_on_the_same_items(tmp_path, monkeypatch, capsys):
    file = tmp_path / "generation.json"
    options = ["--items", "6", "--alone", "2", "--rounds", "1", "--out", str(file)]
    monkeypatch.setattr(sys, "argv", ["generation", *options])
    generation.main()
    report = json.loads(file.read_text())
    assert "--items 6 --alone 2 --rounds 1" in report["command"]
    ways = {"one at a time", "in batches", "longest first"}
    assert set(report["items_per_second"]["captions"]) == ways
    assert set(report["items_per_second"]["probes"]) == ways | {"first token"}
    for counts in report["same_answers"].values():
        assert counts["one at a time"] == "2 of 2" and counts["in batches"] == "6 of 6"
    assert all(lowest(clocks["wall"]) > 0 for clocks in report["times_as_fast"].values())


def test_the_stored_result_is_at_least_five_times_as_fast():
    report = json.loads(generation.RESULTS.read_text())
    for kind in ("captions", "mixed"):
        faster = report["times_as_fast"][f"{kind}: longest first / one at a time"]
        assert lowest(faster["wall"]) > 5 and lowest(faster["cpu"]) > 5
    for counts in report["same_answers"].values():
        assert all(len(set(count.split(" of "))) == 1 for count in counts.values())
    assert report["same_answers"]["captions"]["in batches"] == "1000 of 1000"


def lowest(spread):
    return float(spread.split("[")[1].split(",")[0])
