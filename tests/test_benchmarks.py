"""Each thing beside what it beats: in small, interrupted, failing, and what is stored of it."""

import gc
import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Image, List
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from benchmarks import (
    bench,
    collator,
    course,
    dpo_step,
    flops,
    formatting,
    generation,
    harness,
    pocket_dpo,
    report,
)
from benchmarks.flops import Pair
from benchmarks.harness import RESULTS, ROOT, Contest, Side, one_round, read_rows, times_as_fast
from helpers.dpo.timing import text_flops, vision_flops
from helpers.pairs.format import turns
from helpers.setup.storage import Store
from helpers.vlm import smolvlm
from helpers.vlm.load import lora_config
from tests.contests import breaks, builds, dies

PAIR = Pair(tiles=1, prompt=9, chosen=5, rejected=3)


# --- rounds --------------------------------------------------------------------------------


@pytest.fixture
def hours(monkeypatch):
    """A clock that only `work(seconds)` moves, and who worked."""
    clock, worked = SimpleNamespace(wall=0.0, cpu=0.0), []

    def work(name, wall, cpu):
        clock.wall, clock.cpu = clock.wall + wall, clock.cpu + cpu
        worked.append(name)

    fake = SimpleNamespace(perf_counter=lambda: clock.wall, process_time=lambda: clock.cpu)
    monkeypatch.setattr(harness, "time", fake)
    monkeypatch.setattr(harness, "peak_flops", lambda device, dtype: 1e9)
    return work, worked


def test_a_ratio_is_of_both_sides_times_in_one_round(hours):
    work, worked = hours
    slow, fast = iter([9.0, 8.0, 20.0]), iter([3.0, 2.0, 4.0])
    sides = {
        "stock": Side(lambda: work("stock", next(slow), 6.0)),
        "ours": Side(lambda: work("ours", next(fast), 1.0)),
    }
    rounds = [one_round(Contest(sides), index) for index in range(3)]
    assert worked == ["stock", "ours", "ours", "stock", "stock", "ours"]
    assert all(list(found) == ["peak", "stock", "ours"] for found in rounds)
    assert times_as_fast(rounds, "ours", "stock", "wall") == [3.0, 4.0, 5.0]
    assert times_as_fast(rounds, "ours", "stock", "cpu") == [6.0, 6.0, 6.0]
    assert harness.spread([4.0, 3.0, 5.0]) == "4.00 [3.00, 5.00]"


def test_times_are_those_of_one_item_and_preparation_is_apart(hours):
    work, _ = hours
    made = Side(lambda: work("run", 8.0, 4.0), items=4, prepare=lambda: work("batch", 2.0, 1.0))
    rounds = [one_round(Contest({"made": made}), 0)]
    assert harness.seconds(rounds, "made", "wall") == [2.0]
    assert harness.seconds(rounds, "made", "wall", prepared=True) == [2.5]
    assert harness.seconds(rounds, "made", "cpu", prepared=True) == [1.25]


def test_a_peak_is_that_of_the_warm_up_and_of_what_is_held(monkeypatch):
    large = Side(lambda: torch.zeros(3_000_000).sum(), held=10**9, measure_memory=True)
    other = Side(print, warm_up=torch.ones(1000).clone, measure_memory=True)
    peaks = harness.warm_up(Contest({"large": large, "other": other, "none": Side(print)}))
    assert peaks["large"] == pytest.approx(1.012, abs=1e-5)
    assert peaks["other"] == pytest.approx(4e-6, rel=0.1) and "none" not in peaks
    # On a GPU it is beyond what was there, and a clock waits before and after.
    waits, found = [], {"memory_allocated": 5, "reset_peak_memory_stats": 0}
    for name, value in {**found, "max_memory_allocated": 12}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    assert harness.extra_memory(lambda: None, "cuda") == 7
    harness.timed(lambda: None, "cuda")
    assert len(waits) == 2


# --- the least work ------------------------------------------------------------------------


@pytest.fixture
def shapes(untrained):
    return smolvlm.shapes(untrained.config)


def test_the_work_of_a_picture_is_what_torch_counts(untrained, shapes):
    untrained.set_attn_implementation("eager")  # torch counts no fused attention on the CPU
    size = untrained.config.vision_config.image_size
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        untrained.model.get_image_features(torch.rand(1, 2, 3, size, size), return_dict=True)
    assert counted.get_total_flops() == vision_flops(shapes, 2)


def test_the_work_of_a_step_is_what_torch_counts(untrained, shapes):
    """One sequence as long as all distinct tokens of a pair, each looking at all."""
    untrained.set_attn_implementation("eager")
    policy = get_peft_model(untrained, lora_config(untrained, rank=4))
    model = policy.get_base_model()
    read, _, scored = flops.distinct(PAIR)
    tokens = torch.randn(1, read, model.config.text_config.hidden_size)

    def forward():
        hidden = model.model.text_model(inputs_embeds=tokens).last_hidden_state
        return model.lm_head(hidden[:, -scored:]).sum()

    with FlopCounterMode(display=False) as counted:
        forward().backward()
    looked = read * read
    least = text_flops(shapes, read, looked, scored) + flops.adapter(shapes, read, 4)
    least += flops.text_backward(shapes, read, looked, scored)
    least += flops.adapter_backward(shapes, read, 4)
    assert counted.get_total_flops() == least

    with FlopCounterMode(display=False) as reference, torch.no_grad(), policy.disable_adapter():
        forward()
    assert reference.get_total_flops() == text_flops(shapes, read, looked, scored)


def test_a_pair_reads_its_prompt_once_and_looks_back_only():
    prompt = [("prompt", i) for i in range(PAIR.prompt)]
    read, looked, scored = set(), set(), set()
    for side, length in (("chosen", PAIR.chosen), ("rejected", PAIR.rejected)):
        tokens = prompt + [(side, i) for i in range(length)]
        for i, token in enumerate(tokens[:-1]):
            read.add(token)
            looked |= {(token, earlier) for earlier in tokens[: i + 1]}
            if tokens[i + 1][0] == side:
                scored.add(token)
    assert flops.distinct(PAIR) == (len(read), len(looked), len(scored))


def test_a_cached_reference_and_a_shared_picture_are_not_counted(shapes):
    whole = flops.dpo_pair(shapes, PAIR, rank=4)
    assert whole - flops.dpo_pair(shapes, PAIR, 4, cached=True) == text_flops(
        shapes, *flops.distinct(PAIR)
    )
    assert whole - flops.dpo_pair(shapes, replace(PAIR, tiles=0), 4) == vision_flops(shapes, 1)


def test_an_answer_reads_all_but_its_last_token(shapes):
    first, longer = (flops.answer(shapes, 1, 7, tokens) for tokens in (1, 2))
    assert first == vision_flops(shapes, 1) + text_flops(shapes, 7, 28, 1)
    assert longer - first == text_flops(shapes, 1, 8, 1)


# --- what is compared ----------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_sides_of_a_dpo_step_agree_and_ours_takes_less(tmp_path, checkpointing):
    settings = {**dpo_step.POCKET, "pairs": 3, "checkpointing": checkpointing}
    contest = dpo_step.build(settings, tmp_path)
    peaks, found = harness.warm_up(contest), one_round(contest, 0)
    assert list(peaks) == list(dpo_step.SIDES) == list(found)[1:]
    assert found["TRL"]["value"] < math.log(2)  # the warm-up was one step of training
    for name, side in contest.sides.items():
        assert found[name]["value"] == pytest.approx(found["TRL"]["value"], abs=1e-6)
        assert side.warm_up.__self__.model.is_activation_checkpointing == checkpointing
        assert found[name]["prepare"]["wall"] > 0
        assert name == "TRL" or checkpointing or peaks[name] < peaks["TRL"]
    stock, shared, cached, once = (side.flop for side in contest.sides.values())
    assert stock == shared > cached == once > 0
    assert contest.notes["pairs"] == 3 and contest.notes["tiles"] == 1


def test_a_side_that_shares_nothing_is_not_measured():
    name, apart = "shared pictures", SimpleNamespace(unshared=None, share_prompt=False)
    dpo_step.require_shared("TRL", None)
    dpo_step.require_shared(name, apart)
    with pytest.raises(RuntimeError, match=f"{name}: the pictures are not shared, as it is so"):
        dpo_step.require_shared(name, SimpleNamespace(unshared="it is so"))
    with pytest.raises(RuntimeError, match="the prompt is not shared"):
        dpo_step.require_shared("and the prompt read once", apart)


def test_lengths_are_those_of_each_pair_and_a_picture_counts_once(processor, images):
    said = [("I see a dog.", "A"), ("A dog.", "I see")]
    rows = [
        {"images": [images[0]], "prompt": turns("What do you see?")}
        | {"chosen": turns("", chosen)[1:], "rejected": turns("", rejected)[1:]}
        for chosen, rejected in said
    ]
    made = DataCollatorForVisionPreference(processor)
    first, second = dpo_step.lengths(SimpleNamespace(train_dataset=rows, data_collator=made))
    assert (first.tiles, second.tiles) == (1, 0) and first.prompt == second.prompt
    assert first.chosen - second.chosen == 2 and second.rejected - first.rejected == 1


def test_the_collators_sides_make_the_same_tokens_and_half_the_pixels():
    contest = collator.build({"edge": 512, "picture": [64, 64], "pairs": 2}, None)
    stock, ours = (contest.sides[name].run() for name in ("TRL", "shared"))
    assert torch.equal(stock["input_ids"], ours["input_ids"])
    assert stock["pixel_values"].numel() == 2 * ours["pixel_values"].numel()
    assert contest.sides["TRL"].items == 2 and contest.notes["tiles"] == 1


@pytest.mark.parametrize("kind", ["probes", "mixed"])
def test_every_way_to_answer_gives_the_same_answers(kind):
    settings = {"kind": kind, "items": 6, "alone": 2, "batch_size": 4}
    sides = generation.build(settings, None).sides
    same = {way: side.run() for way, side in sides.items()}
    assert same.pop("one at a time") == 2 == sides["one at a time"].items
    assert set(same.values()) == {6} == {sides[way].items for way in same}
    assert ("first token" in sides) == (kind == "probes")
    if kind == "probes":  # which reads one token, and so has the least work
        assert 0 < sides["first token"].flop < sides["longest first"].flop


def test_the_sides_of_formatting_make_the_same_pairs(tmp_path):
    pairs = formatting.photographs(5, tmp_path).cast_column("image", Image(decode=False))
    assert all(80_000 < len(row["image"]["bytes"]) < 250_000 for row in pairs)
    sides = formatting.build({"rows": 5, "slow_rows": 5}, tmp_path).sides
    decoded, undecoded, ours = (bare(side.run()) for side in sides.values())
    assert ours == undecoded != decoded
    assert [row["prompt"] for row in ours] == [row["prompt"] for row in decoded]
    few = formatting.build_stream({"rows": 5, "slow_rows": 2}, tmp_path).sides
    assert [side.items for side in few.values()] == [2, 5, 5]
    assert all(one_round(Contest(few), 0)[name]["wall"] > 0 for name in few)


def bare(pairs):
    """Rows with their pictures as bytes."""
    rows = pairs.cast_column("images", List(Image(decode=False))).to_list()
    for row in rows:
        row["images"] = [image["bytes"] for image in row["images"]]
    return rows


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_the_memory_of_formatting_is_not_that_of_the_pictures(tmp_path):
    formatting.photographs(40, tmp_path)
    gc.collect()  # or what an earlier test left would be freed, and subtracted
    found = formatting.taken(40, tmp_path)
    assert 0 <= found["held by Arrow"] < 0.1 and 4 < found["images"] < 10


def test_a_course_that_stops_says_why(monkeypatch):
    ended = subprocess.CompletedProcess([], 1, stdout="", stderr="\nStopped: cell 3 failed")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ended)
    with pytest.raises(RuntimeError, match="Stopped: cell 3 failed"):
        course.build({"arguments": ["--quick"]}, "folder").sides["make course"].run()


def test_every_case_can_be_identified_and_tried_in_small():
    cases = bench.all_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        small = bench.in_small(case)
        assert json.loads(json.dumps(harness.identity(case)))["settings"] == case.settings
        assert small.rounds <= 2 and small.settings.get("edge") != 2048
        assert all(list(ROOT.glob(pattern)) for pattern in case.sources)
    assert [row["name"] for row in read_rows(RESULTS / "bench.json")] == [c.name for c in cases]
    assert "course" not in [case.name for case in bench.choose(cases, bench.parse([]))]


# --- running, keeping, going on ------------------------------------------------------------


def case_of(build, **changes):
    given = {"settings": {}, "sources": (), "rounds": 2, **changes}
    return harness.Case(build.__name__, f"The case that {build.__name__}", build, **given)


def run(tmp_path, cases, *arguments):
    places = ["--kept", str(tmp_path / "kept"), "--out", str(tmp_path)]
    bench.main([*places, *arguments], cases)
    return stored(tmp_path)


def stored(tmp_path):
    return {row["name"]: row for row in read_rows(tmp_path / "results" / "bench.json")}


def test_a_case_that_fails_or_dies_is_named_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(harness, "HEAVY", ["tests.contests"])
    with pytest.raises(SystemExit, match="Failed: breaks, dies"):
        run(tmp_path, [case_of(breaks), case_of(dies), case_of(builds)])
    rows = stored(tmp_path)
    assert rows["breaks"]["failed"] == "ValueError: no such thing"
    assert "no such thing\nin two lines" in (tmp_path / "kept" / "breaks.log").read_text()
    assert "exit code 9" in rows["dies"]["failed"]
    assert len(rows["builds"]["rounds"]) == 2 and rows["builds"]["failed"] is None
    assert rows["builds"]["rounds"][0]["ours"]["value"] == float(sum(range(10**5)))
    text, said = (tmp_path / "results.md").read_text(), capsys.readouterr().out
    for row in rows.values():
        assert row["title"] in text and row["title"] in said and row["command"] in text
    assert "**failed**: ValueError: no such thing" in text


def test_an_interrupted_benchmark_goes_on_and_repeats_no_round(tmp_path, monkeypatch):
    asked = []

    def from_a_child(work, case, have, folder, log):
        asked.append(have)
        yield {"sides": ["stock", "ours"], "device": "cpu", "memory_gb": {}, "flop": {}}
        for number in range(have, case.rounds):
            if number == 1 and len(asked) == 1:
                raise KeyboardInterrupt
            turn = {"wall": 1.0 + number, "cpu": 1.0}
            yield {"round": {"peak": 1e9, "stock": turn, "ours": turn}}

    monkeypatch.setattr(bench, "from_a_child", from_a_child)
    with pytest.raises(SystemExit, match="Interrupted. The rounds so far are in"):
        run(tmp_path, [case_of(builds, rounds=3)])
    found = run(tmp_path, [case_of(builds, rounds=3)])["builds"]["rounds"]
    assert asked == [0, 1] and [turn["stock"]["wall"] for turn in found] == [1.0, 2.0, 3.0]
    run(tmp_path, [case_of(builds, rounds=3)])
    assert asked == [0, 1]  # all were there
    run(tmp_path, [case_of(builds, rounds=3)], "--rounds", "4")
    assert asked == [0, 1, 3] and len(stored(tmp_path)["builds"]["rounds"]) == 4


def test_an_unknown_case_is_named(tmp_path):
    with pytest.raises(SystemExit, match="No case colator: choose from builds"):
        run(tmp_path, [case_of(builds)], "--only", "colator")


def test_other_settings_versions_or_code_are_another_record(tmp_path, monkeypatch):
    store = Store(tmp_path)
    one = harness.Record(case_of(builds), store)
    assert harness.Record(case_of(builds, rounds=7), store).key == one.key
    keys = {one.key, harness.Record(case_of(builds, settings={"edge": 512}), store).key}
    keys.add(harness.Record(case_of(builds, sources=("benchmarks/flops.py",)), store).key)
    monkeypatch.setattr(harness, "versions", lambda: {"torch": "0.1"})
    assert len({*keys, harness.Record(case_of(builds), store).key}) == 4


def test_comments_and_docstrings_are_not_code(tmp_path):
    def written(text):
        (tmp_path / "module.py").write_text(text)
        return harness.code(tmp_path / "module.py")

    texts = '"""Doubles."""\n\ndef double(x):\n    "Twice."\n    return (2 * x)  # x\n'
    plain = written("def double(x):\n    return 2 * x\n")
    assert written(texts) == plain != written("def double(x):\n    return 3 * x\n")


# --- the page and what is stored -----------------------------------------------------------


def row(name, **changes):
    turns = [
        {"peak": 1e9, "TRL": turn(wall), "ours": turn(wall / ratio)}
        for wall, ratio in ((8.0, 4.0), (6.0, 2.0), (9.0, 3.0))
    ]
    given = {
        "name": name, "title": f"Title of {name}", "unit": "a step", "machine": "a machine",
        "versions": {"torch": "2"}, "command": f"bench --only {name}", "code": "c0de",
        "device": "cpu", "sides": ["TRL", "ours"], "rounds": turns, "notes": {"pairs": 1},
        "memory_gb": {"TRL": 2.0, "ours": 1.0}, "flop": {"TRL": 4e8, "ours": 4e8},
    }  # fmt: skip
    return {**given, **changes}


def turn(wall):
    return {"wall": wall, "cpu": wall / 2, "value": 0.5, "prepare": {"wall": 1.0, "cpu": 0.5}}


def test_the_page_shows_every_row_with_ratios_spread_memory_and_share():
    text = report.page([[row("one"), row("two")], [row("three", machine="another")]])
    for name in ("one", "two", "three"):
        assert f"Title of {name}, a step" in text and f"`bench --only {name}`" in text
    assert text.count("## a machine") == text.count("## another") == 1
    # 4e8 FLOP at 1e9 FLOP/s are 0.4 s; by CPU time the sides took 4 s and 1.5 s (the medians).
    assert "| TRL | 8 |  |  | 2.00 | 0.4 | 10% |" in text
    assert "| ours | 3 | 3.00 [2.00, 4.00] | 3.00 [2.00, 4.00] | 1.00 | 0.4 | 27% |" in text
    assert "| ours, and making the batch | 4 | 2.50 [1.75, 3.00] |" in text
    assert "3 rounds of" in text and "losses: 0.5 (TRL), 0.5 (ours)" in text


def test_a_failure_does_not_replace_a_row_and_a_gpu_has_a_file_of_its_own(tmp_path, monkeypatch):
    failed = row("one", rounds=[], failed="OutOfMemoryError")
    report.publish([row("one")], tmp_path, ["two", "one"])
    report.publish([failed, row("two")], tmp_path, ["two", "one"])
    assert list(stored(tmp_path)) == ["two", "one"] and stored(tmp_path)["one"]["rounds"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    report.publish([row("one", machine="NVIDIA H200")], tmp_path, ["one"])
    assert (tmp_path / "results" / "bench_nvidia_h200.json").exists()
    text = (tmp_path / "results.md").read_text()
    assert "## a machine" in text and "## NVIDIA H200" in text


def test_the_stored_page_is_that_of_the_stored_rounds():
    files = [read_rows(file) for file in sorted(RESULTS.glob("bench*.json"))]
    assert (bench.OUT / "results.md").read_text() == report.page(files)


def test_the_stored_steps_keep_their_promise_and_are_those_of_the_readme():
    rows = [row for row in read_rows(RESULTS / "bench.json") if row["name"].startswith("dpo_")]
    medians = {
        row["name"]: np.median(times_as_fast(row["rounds"], "shared pictures", "TRL", "wall"))
        for row in rows
    }
    assert medians["dpo_17_tiles"] >= 2.8 and medians["dpo_17_tiles_checkpointing"] >= 4
    assert all(row["memory_gb"]["shared pictures"] < row["memory_gb"]["TRL"] for row in rows)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pocket = medians.pop("dpo_pocket")
    for ratio in (pocket, min(medians.values()), max(medians.values())):
        assert f"{ratio:.2f}" in readme


def lowest(ratio):
    return min(float(ratio[clock].split("[")[1].split(",")[0]) for clock in ("wall", "cpu"))


def test_stored_formatting_and_generation_keep_their_promise():
    made = json.loads((RESULTS / "formatting.json").read_text())
    assert lowest(made["times_as_fast"]["dataset: to_conversational / decoded rows"]) > 100
    small, large = (made["memory_mb"][f"{count} rows"] for count in (5000, 20000))
    more = {name: large[name] - small[name] for name in large}
    assert more["images"] > 1500 and more["more at the peak"] < 50
    made = json.loads((RESULTS / "generation.json").read_text())
    for kind in ("captions", "mixed"):
        assert lowest(made["times_as_fast"][f"{kind}: longest first / one at a time"]) > 5
    counts = [count for counts in made["same_answers"].values() for count in counts.values()]
    assert counts and all(len(set(count.split(" of "))) == 1 for count in counts)


def test_stored_dpo_halves_trap_hal_keeps_cover_and_is_in_the_readme():
    rows = read_rows(RESULTS / "pocket_dpo.json")
    assert pocket_dpo.table(rows) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len({row["seed"] for row in rows if row["method"] == "DPO"}) == 3
    base, dpo = (
        {name: np.mean([row[name] for row in rows if row["method"] == method]) for name in rows[0]
         if name.count("_")}
        for method in ("base", "DPO")
    )  # fmt: skip
    assert base["iid_cover"] >= 88 and base["iid_hal"] <= 15 and base["probes_random"] >= 90
    assert 30 <= base["trap_hal"] <= 55 and dpo["trap_hal"] <= base["trap_hal"] / 2
    assert dpo["trap_cover"] >= base["trap_cover"] - 2 and dpo["iid_cover"] >= base["iid_cover"] - 4
