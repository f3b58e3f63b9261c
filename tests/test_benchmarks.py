"""The benchmarks that pair each thing with what it beats: in small, interrupted, failing."""

import json
import math
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from benchmarks import (
    bench,
    child,
    collator,
    course,
    dpo_step,
    flops,
    generation,
    report,
    side_by_side,
)
from benchmarks.flops import Pair
from benchmarks.records import Case, Record, code, identity
from benchmarks.side_by_side import Contest, Side, one_round, seconds, spread, times_as_fast
from helpers.dpo.timing import text_flops, vision_flops
from helpers.pairs.format import turns
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
    monkeypatch.setattr(side_by_side, "time", fake)
    monkeypatch.setattr(side_by_side, "peak_flops", lambda device, dtype: 1e9)
    return work, worked


def test_a_ratio_is_of_both_sides_times_in_one_round(hours):
    work, worked = hours
    slow, fast = iter([9.0, 8.0, 20.0]), iter([3.0, 2.0, 4.0])
    contest = Contest(
        {
            "stock": Side(lambda: work("stock", next(slow), 6.0)),
            "ours": Side(lambda: work("ours", next(fast), 1.0)),
        }
    )
    rounds = [one_round(contest, index) for index in range(3)]
    assert worked == ["stock", "ours", "ours", "stock", "stock", "ours"]
    assert all(list(found) == ["peak", "stock", "ours"] for found in rounds)
    assert times_as_fast(rounds, "ours", "stock", "wall") == [3.0, 4.0, 5.0]
    assert times_as_fast(rounds, "ours", "stock", "cpu") == [6.0, 6.0, 6.0]
    assert spread([4.0, 3.0, 5.0]) == "4.00 [3.00, 5.00]"


def test_times_are_those_of_one_item_and_preparation_is_apart(hours):
    work, _ = hours
    made = Side(lambda: work("run", 8.0, 4.0), items=4, prepare=lambda: work("batch", 2.0, 1.0))
    rounds = [one_round(Contest({"made": made}), 0)]
    assert seconds(rounds, "made", "wall") == [2.0]
    assert seconds(rounds, "made", "wall", prepared=True) == [2.5]
    assert seconds(rounds, "made", "cpu", prepared=True) == [1.25]
    with pytest.raises(ValueError, match="does 0 items"):
        Side(print, items=0)


def test_a_peak_is_that_of_the_warm_up_and_of_what_is_held():
    held = torch.ones(1000)
    contest = Contest(
        {
            "large": Side(lambda: torch.zeros(3_000_000).sum(), held=10**9, measure_memory=True),
            "other": Side(print, warm_up=held.clone, measure_memory=True),
            "none": Side(print),
        }
    )
    peaks = side_by_side.warm_up(contest)
    assert peaks["large"] == pytest.approx(1.012, abs=1e-5)
    assert peaks["other"] == pytest.approx(4e-6, rel=0.1) and "none" not in peaks


def test_on_a_gpu_the_peak_is_beyond_what_was_there(monkeypatch):
    found = {"memory_allocated": 5, "reset_peak_memory_stats": None, "max_memory_allocated": 12}
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert side_by_side.extra_memory(lambda: None, "cuda") == 7
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    side_by_side.timed(lambda: None, "cuda")
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


def test_the_sides_of_a_dpo_step_agree_and_ours_takes_less(tmp_path):
    contest = dpo_step.build({**dpo_step.POCKET, "pairs": 3, "checkpointing": False}, tmp_path)
    peaks, found = side_by_side.warm_up(contest), one_round(contest, 0)
    assert list(peaks) == list(dpo_step.SIDES) == list(found)[1:]
    assert found["TRL"]["value"] < math.log(2)  # the warm-up was one step of training
    for side in list(dpo_step.SIDES)[1:]:
        assert found[side]["value"] == pytest.approx(found["TRL"]["value"], abs=1e-6)
        assert peaks[side] < peaks["TRL"] and found[side]["prepare"]["wall"] > 0
    stock, shared, cached, once = (side.flop for side in contest.sides.values())
    assert stock == shared > cached == once > 0
    assert contest.notes["pairs"] == 3 and contest.notes["tiles"] == 1


def test_a_side_that_shares_nothing_is_not_measured():
    name = "shared pictures"
    dpo_step.require_shared("TRL", None)
    dpo_step.require_shared(name, SimpleNamespace(unshared=None, share_prompt=False))
    with pytest.raises(
        RuntimeError, match=f"{name}: the pictures are not shared, as it is trained"
    ):
        dpo_step.require_shared(name, SimpleNamespace(unshared="it is trained"))
    with pytest.raises(RuntimeError, match="the prompt is not shared"):
        apart = SimpleNamespace(unshared=None, share_prompt=False)
        dpo_step.require_shared("and the prompt read once", apart)


def test_checkpointing_is_switched_on_for_every_side(tmp_path):
    contest = dpo_step.build({**dpo_step.POCKET, "pairs": 2, "checkpointing": True}, tmp_path)
    for side in contest.sides.values():
        trainer = side.warm_up.__self__
        trainer.train()
        assert trainer.model.is_activation_checkpointing


def test_lengths_are_those_of_each_pair_and_a_picture_counts_once(processor, images):
    rows = [
        {"images": [image], "prompt": turns("What do you see?"), **answers}
        for image, answers in (
            (images[0], {"chosen": turns("", "I see a dog.")[1:], "rejected": turns("", "A")[1:]}),
            (images[0], {"chosen": turns("", "A dog.")[1:], "rejected": turns("", "I see")[1:]}),
        )
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


def test_an_answer_that_reads_one_token_has_the_least_work():
    settings = {"kind": "probes", "items": 4, "alone": 2, "batch_size": 4}
    sides = generation.build(settings, None).sides
    assert sides["one at a time"].items == 2 and sides["longest first"].items == 4
    assert 0 < sides["first token"].flop < sides["longest first"].flop
    assert "first token" not in generation.build({**settings, "kind": "captions"}, None).sides


def test_a_course_that_stops_says_why(monkeypatch):
    ended = subprocess.CompletedProcess([], 1, stdout="", stderr="\nStopped: cell 3 failed")
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: asked.append(command) or ended)
    contest = course.build({"arguments": ["--quick"]}, "folder")
    with pytest.raises(RuntimeError, match="Stopped: cell 3 failed"):
        contest.sides["make course"].run()
    assert asked[0][1:4] == ["-m", "tools.run_course", "--output"] and asked[0][-1] == "--quick"


def test_every_case_can_be_identified_and_tried_in_small():
    cases = bench.all_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        small = bench.in_small(case)
        assert json.loads(json.dumps(identity(case)))["settings"] == case.settings
        assert small.rounds <= 2 and small.settings.get("edge") != 2048
    pairs = {case.name: case.settings["pairs"] for case in cases if "model" in case.settings}
    assert pairs["dpo_pocket"] == 32 and pairs["dpo_17_tiles_checkpointing"] == 1
    assert "course" not in [case.name for case in bench.choose(cases, bench.parse([]))]


# --- running, keeping, going on ------------------------------------------------------------


def case_of(build, **changes):
    given = {"settings": {}, "sources": (), "rounds": 2, **changes}
    return Case(build.__name__, f"The case that {build.__name__}", build, **given)


def run(tmp_path, cases, *arguments):
    places = ["--kept", str(tmp_path / "kept"), "--out", str(tmp_path)]
    bench.main([*places, *arguments], cases)
    return stored(tmp_path)


def stored(tmp_path):
    rows = json.loads((tmp_path / "results" / "bench.json").read_text())["rows"]
    return {row["name"]: row for row in rows}


@pytest.fixture
def asked(monkeypatch):
    """Children that are not started: what each was asked for. The second round is interrupted."""
    had = []

    def told(case, have, folder, log):
        had.append(have)
        yield {"sides": ["stock", "ours"], "device": "cpu", "memory_gb": {}, "flop": {}}
        for number in range(have, case.rounds):
            if number == 1 and len(had) == 1:
                raise KeyboardInterrupt
            turn = {"wall": 1.0 + number, "cpu": 1.0}
            yield {"round": {"peak": 1e9, "stock": turn, "ours": turn}}

    monkeypatch.setattr(bench, "told_by_a_child", told)
    return had


def test_a_case_that_fails_or_dies_is_named_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(child, "HEAVY", ["tests.contests"])
    with pytest.raises(SystemExit, match="Failed: breaks, dies"):
        run(tmp_path, [case_of(breaks), case_of(dies), case_of(builds)])
    rows = stored(tmp_path)
    assert rows["breaks"]["failed"] == "ValueError: no such thing"
    assert "exit code 9" in rows["dies"]["failed"]
    assert len(rows["builds"]["rounds"]) == 2 and rows["builds"]["failed"] is None
    assert rows["builds"]["rounds"][0]["ours"]["value"] == float(sum(range(10**5)))
    text, said = (tmp_path / "results.md").read_text(), capsys.readouterr().out
    for row in rows.values():
        assert row["title"] in text and row["title"] in said and row["command"] in text
    assert "**failed**: ValueError: no such thing" in text


def test_an_interrupted_benchmark_goes_on_and_repeats_no_round(tmp_path, asked, capsys):
    with pytest.raises(SystemExit, match="Interrupted. The rounds so far are in"):
        run(tmp_path, [case_of(builds, rounds=3)])
    found = run(tmp_path, [case_of(builds, rounds=3)])["builds"]["rounds"]
    assert asked == [0, 1] and [turn["stock"]["wall"] for turn in found] == [1.0, 2.0, 3.0]
    run(tmp_path, [case_of(builds, rounds=3)])
    assert asked == [0, 1]  # all were there
    run(tmp_path, [case_of(builds, rounds=3)], "--rounds", "4")
    assert asked == [0, 1, 3] and len(stored(tmp_path)["builds"]["rounds"]) == 4


def test_other_settings_versions_or_code_are_another_record(tmp_path, monkeypatch):
    one = Record(case_of(builds), tmp_path)
    assert Record(case_of(builds, rounds=7), tmp_path).file == one.file
    others = [Record(case_of(builds, settings={"edge": 512}), tmp_path).file]
    others.append(
        Record(case_of(builds, sources=("helpers/evaluation/objects.py",)), tmp_path).file
    )
    monkeypatch.setattr("benchmarks.records.versions", lambda: {"torch": "0.1"})
    others.append(Record(case_of(builds), tmp_path).file)
    assert len({one.file, *others}) == 4


def test_comments_and_docstrings_are_not_code(tmp_path):
    def written(text):
        (tmp_path / "module.py").write_text(text)
        return code(tmp_path / "module.py")

    plain = written("def double(x):\n    return 2 * x\n")
    assert (
        written('"""Doubles."""\n\ndef double(x):\n    "Twice."\n    return (2 * x)  # x\n')
        == plain
    )
    assert written("def double(x):\n    return 3 * x\n") != plain


def test_an_unknown_case_is_named(tmp_path):
    with pytest.raises(SystemExit, match="No case colator: choose from builds"):
        run(tmp_path, [case_of(builds)], "--only", "colator")


# --- the page ------------------------------------------------------------------------------


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
    files = sorted((bench.OUT / "results").glob("bench*.json"))
    page = bench.OUT / "results.md"
    assert page.exists() == bool(files)
    if files:
        assert page.read_text() == report.page([report.read(file) for file in files])


@pytest.mark.parametrize(
    ("name", "goal"), [("dpo_17_tiles", 2.8), ("dpo_17_tiles_checkpointing", 4)]
)
def test_the_stored_step_keeps_its_promise(name, goal):
    rows = {row["name"]: row for row in report.read(bench.OUT / "results" / "bench.json")}
    if name not in rows:
        pytest.skip("not measured yet: python -m benchmarks.bench")
    found = rows[name]
    ratios = times_as_fast(found["rounds"], "shared pictures", "TRL", "wall")
    assert sorted(ratios)[len(ratios) // 2] >= goal
    assert found["memory_gb"]["shared pictures"] < found["memory_gb"]["TRL"]
