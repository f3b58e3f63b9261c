"""The pipeline: killed anywhere it makes the same pairs, nothing twice; faults are named."""

import json
import os
import random
import shutil
import signal
import time
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from helpers.feedback import calling, store
from helpers.feedback.filters import Filters
from helpers.feedback.items import Drawn, Prompt, Score, SynthesisError, text_only
from helpers.feedback.pairing import rlaifv_pairs
from helpers.feedback.pipeline import run
from helpers.feedback.plan import Parts, Settings
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.pairs.images import RAW_COLUMNS
from helpers.vlm.load import ModelError

PROMPTS = [Prompt(f"scene {i}", "What is there?", {"number": i}) for i in range(6)]
SETTINGS = Settings(seed=3, candidates=3, samples=2, batch_size=4)
NOUNS = ("cup", "bed", "plate", "fork", "boat")


# --- stages without models, which are quick and hang on the seed alone ----------------------------


def draw(items):
    assert all(item.image is None and item.answer is None for item in items)
    return [Drawn(_noise(item.seed), {"seed": item.seed}) for item in items]


def _noise(seed, size=(9, 7)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def brightness(items):
    return [float(np.asarray(item.image).mean()) for item in items]


def speaker(name, words):
    def stage(items):
        texts = []
        for item in items:
            assert item.image.size == (9, 7) and item.about["number"] == int(item.key[0])
            rng = random.Random(item.seed)
            texts.append(" ".join(rng.choices(NOUNS, k=rng.randint(1, words))))
        return texts

    stage.name = name
    return stage


def cups(items):
    return [item.answer.split().count("cup") for item in items]


PARTS = Parts(draw, brightness, [speaker("short", 3), speaker("long", 8)], cups)


def logged(stage, file):
    """The stage, which writes the keys of its items to a file when their call is done."""

    def called(items):
        results = list(stage(items))
        with open(file, "a") as lines:
            lines.write(" ".join([called.name, *(i.key.replace(" ", "_") for i in items)]) + "\n")
        return results

    called.name = getattr(stage, "name", stage.__name__)
    return called


def all_logged(parts, file, wait=0.0):
    def slow(stage):
        def called(items):
            time.sleep(wait)
            return stage(items)

        called.name = getattr(stage, "name", stage.__name__)
        return logged(called, file)

    return Parts(
        slow(parts.generator), slow(parts.image_reward), [slow(a) for a in parts.answerers],
        slow(parts.answer_reward), parts.pairing,
    )  # fmt: skip


def calls(file):
    """[(stage, key)] in the order in which the calls were done."""
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(stage, key) for stage, *keys in lines for key in keys]


def made(folder):
    """{name: bytes} of all that a finished run leaves behind."""
    names = [
        "pairs.parquet",
        "README.md",
        "funnel.json",
        *(p.name for p in folder.glob("images/*")),
    ]
    folders = [folder, folder / "images"]
    return {n: (f / n).read_bytes() for n in names for f in folders if (f / n).exists()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, in a folder called like those of the others: it stands in the card."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(PROMPTS, PARTS, SETTINGS, folder)


# --- what comes out -------------------------------------------------------------------------------


def test_pairs_are_raw_and_sound(whole):
    _, pairs = whole
    assert tuple(pairs.column_names) == RAW_COLUMNS and len(pairs) >= 4
    assert check_pairs(pairs) == [] == check_pairs(to_conversational(pairs))
    assert pairs["idx"] == list(range(len(pairs)))


def test_every_pair_tells_how_it_came_to_be(whole):
    folder, pairs = whole
    for row in pairs:
        told = json.loads(row["origin_split"])
        prompt, number = map(int, told["picture"]["key"].split("/"))
        assert told["prompt"] == PROMPTS[prompt].text and told["number"] == prompt
        assert row["image"].tobytes() == _noise(told["picture"]["seed"]).tobytes()
        for side in ("chosen", "rejected"):
            answer = told[side]
            assert answer["score"] == row[side].split().count("cup")
            rng = random.Random(answer["seed"])
            words = {"short": 3, "long": 8}[answer["answerer"]]
            assert row[side] == " ".join(rng.choices(NOUNS, k=rng.randint(1, words)))
        assert told["chosen"]["score"] > told["rejected"]["score"]
        assert row["image_path"] == f"images/{prompt}-{number}.png"


def test_the_brightest_picture_of_each_prompt_is_asked_about(whole):
    _, pairs = whole
    for told in map(json.loads, pairs["origin_split"]):
        prompt = told["picture"]["key"].split("/")[0]
        folder = whole[0] / "images"
        means = {p.stem: np.asarray(Image.open(p)).mean() for p in folder.glob(f"{prompt}-*.png")}
        assert len(means) == 3 and max(means, key=means.get) == told["picture"]["key"].replace(
            "/", "-"
        )


def test_the_table_accounts_for_every_item(whole):
    steps = json.loads((whole[0] / "funnel.json").read_text())
    by_stage = {step["stage"]: step for step in steps}
    left = {s["stage"]: s["entered"] - sum(s["dropped"].values()) for s in steps}
    assert by_stage["draw"]["entered"] == 18 == by_stage["rank"]["entered"]
    assert by_stage["rank"]["dropped"] == {"not among the best": 12} and left["rank"] == 6
    assert by_stage["answer"]["entered"] == 6 * 2 * 2
    assert left["answer"] == by_stage["score"]["entered"]
    assert left["pair"] == by_stage["filter"]["entered"]
    assert left["check_pairs"] == len(whole[1])
    assert min(left.values()) > 0


def test_the_card_names_all_that_was_at_work(whole):
    card = (whole[0] / "README.md").read_text()
    facts = ("seed is 3", "not among the best", "chosen is longer in", "No item was skipped")
    stages = ("`draw`", "`brightness`", "`short`", "`long`", "`cups`", "`best_worst`")
    for name in (*stages, *facts):
        assert name in card, name
    assert load_dataset(str(whole[0]), split="train").num_rows == len(whole[1])


def test_candidates_and_scores_are_in_the_folder(whole):
    keys = [pq.read_table(p)["key"].to_pylist() for p in (whole[0] / "pictures").glob("*")]
    assert sorted(sum(keys, [])) == sorted(f"{i}/{c}" for i in range(6) for c in range(3))
    scores = [pq.read_table(p) for p in (whole[0] / "image_scores").glob("*")]
    assert sum(table.num_rows for table in scores) == 18


def test_other_seeds_make_other_pairs(whole, tmp_path):
    other = run(PROMPTS, PARTS, replace(SETTINGS, seed=4), tmp_path / "run")
    assert set(other["image_path"]) != set() and other["chosen"] != whole[1]["chosen"]


def test_rlaifv_rule_takes_more_pairs_of_a_picture(tmp_path):
    parts = replace(PARTS, pairing=rlaifv_pairs)
    pairs = run(PROMPTS, parts, replace(SETTINGS, samples=4), tmp_path / "run")
    count = Counter(pairs["image_path"])
    assert max(count.values()) == 2 and check_pairs(pairs) == []


def test_jpeg_pictures_are_what_later_stages_see(tmp_path):
    seen = {}

    def look(items):
        seen.update({item.key: item.image.tobytes() for item in items})
        return brightness(items)

    settings = replace(SETTINGS, image_format="JPEG")
    pairs = run(PROMPTS, replace(PARTS, image_reward=look), settings, tmp_path / "run")
    for row, told in zip(pairs, map(json.loads, pairs["origin_split"]), strict=True):
        assert row["image_path"].endswith(".jpg")
        assert row["image"].tobytes() == seen[told["picture"]["key"]]


# --- killed and gone on with ----------------------------------------------------------------------


def fork(work):
    """Do it in a process of its own, quietly; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.dup2(2, 1)
            work()
        finally:
            os._exit(0)
    return pid


def child(work):
    """The wait status of a process that does it."""
    return os.waitpid(fork(work), 0)[1]


def killed_at(write_number, when, folder, file):
    """Run, and be killed at this write of a file: before it, in the middle of it, or after it."""
    written, replaced, count = Path.write_bytes, os.replace, iter(range(10**6))

    def write_or_die(path, data):
        now = next(count)
        if now == write_number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        written(path, data[:7] if (now, when) == (write_number, "torn") else data)
        if now == write_number and when == "torn":
            os.kill(os.getpid(), signal.SIGKILL)
        store.os.replace = replace_and_die if now == write_number else replaced

    def replace_and_die(new, path):
        replaced(new, path)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.write_bytes = write_or_die
    run(PROMPTS, all_logged(PARTS, file), SETTINGS, folder)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@needs_fork
def test_killed_at_every_write(whole, tmp_path):
    run(PROMPTS, all_logged(PARTS, tmp_path / "log"), SETTINGS, tmp_path / "run")
    once, number = Counter(calls(tmp_path / "log")), 0
    while True:
        folder, file = tmp_path / f"{number}" / "run", tmp_path / f"log-{number}"
        when = ("before", "torn", "after")[number % 3]
        status = child(lambda n=number, w=when, d=folder, f=file: killed_at(n, w, d, f))
        if not os.WIFSIGNALED(status):
            break
        before, kept = Counter(calls(file)), stored(folder)
        run(PROMPTS, all_logged(PARTS, file), SETTINGS, folder)
        assert made(folder) == made(whole[0]), (number, when)
        twice = Counter(calls(file)) - once
        assert not twice.keys() & kept and twice <= before, (number, when)
        assert len(twice) <= SETTINGS.batch_size  # the call whose results were being written
        number += 4  # with three ways to die, every kind of write sees each of them
    assert number > 30


def stored(folder):
    """{(stage, key)} of the results that are in a run's folder."""
    names = {"pictures": "draw", "image_scores": "brightness", "answer_scores": "cups"}
    return {
        (names.get(kind) or key.split("/")[2], key)
        for kind in store.STAGES
        for key in (store.read_parts(folder, kind) if folder.exists() else ())
    }


@needs_fork
@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(seed, whole, tmp_path):
    rng, folder, file, kills = random.Random(seed), tmp_path / "run", tmp_path / "log", 0
    while True:
        kept, start = stored(folder), len(calls(file))
        parts = all_logged(PARTS, file, wait=0.05)
        pid = fork(lambda p=parts: run(PROMPTS, p, SETTINGS, folder))
        time.sleep(rng.uniform(0.1, 0.3))
        os.kill(pid, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        assert not set(calls(file)[start:]) & kept  # what is in the folder is not done again
        if not killed:
            break
        kills += 1
    assert made(folder) == made(whole[0]) and kills
    repeated = Counter(calls(file)) - Counter(set(calls(file)))
    assert repeated.total() <= SETTINGS.batch_size * kills


@needs_fork
def test_a_stage_that_yields_is_kept_item_by_item(whole, tmp_path):
    file = tmp_path / "log"

    def one_by_one(items, die_at=None):
        for item in items:
            if item.key == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            with open(file, "a") as lines:
                lines.write(f"draw {item.key}\n")
            yield draw([item])[0]

    one_by_one.name = "draw"

    def fatal(items):
        return one_by_one(items, die_at="2/1")

    fatal.name = "draw"
    folder = tmp_path / "run"
    status = child(lambda: run(PROMPTS, replace(PARTS, generator=fatal), SETTINGS, folder))
    assert os.WIFSIGNALED(status) and len(calls(file)) == 7  # in the middle of the second batch
    run(PROMPTS, replace(PARTS, generator=one_by_one), SETTINGS, folder)
    assert made(folder) == made(whole[0]) and len(calls(file)) == 18 == len(set(calls(file)))


def test_a_finished_run_calls_nothing(whole, tmp_path):
    folder, pairs = whole
    before = made(folder)
    again = run(PROMPTS, all_logged(PARTS, tmp_path / "log"), SETTINGS, folder)
    assert calls(tmp_path / "log") == [] and again.to_list() == pairs.to_list()
    assert made(folder) == before


def test_an_interrupt_from_the_keyboard_loses_nothing(whole, tmp_path):
    def interrupted(items):
        if any(item.key.startswith("3/") for item in items):
            raise KeyboardInterrupt
        return cups(items)

    interrupted.name, folder, file = "cups", tmp_path / "run", tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        run(PROMPTS, replace(PARTS, answer_reward=interrupted), SETTINGS, folder)
    kept = stored(folder)
    run(PROMPTS, all_logged(PARTS, file), SETTINGS, folder)
    assert made(folder) == made(whole[0])
    assert {stage for stage, _ in calls(file)} == {"cups"} and not set(calls(file)) & kept


# --- another run's folder -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"seed": 4}, "seed: 3 there, 4 now"),
        ({"candidates": 2}, "candidates: 3 there, 2 now"),
        ({"samples": 3}, "samples: 2 there, 3 now"),
        ({"size": (9, 7)}, r"size: null there, \[9, 7\] now"),
        ({"filters": Filters(least_margin=2)}, "least_margin: 0.0 there, 2 now"),
        ({"keep": 2, "least_image_score": 1.5}, "keep: 1 there, 2 now; least_image_score: null"),
    ],
)
def test_a_run_of_other_settings_is_refused(changed, named, whole):
    before = made(whole[0])
    with pytest.raises(SynthesisError, match=f"other settings .{named}.*choose another folder"):
        run(PROMPTS, PARTS, replace(SETTINGS, **changed), whole[0])
    assert made(whole[0]) == before


def test_a_run_of_other_parts_or_prompts_is_refused(whole):
    renamed = replace(PARTS, answer_reward=lambda items: cups(items))
    with pytest.raises(SynthesisError, match='answer_reward.name: "cups" there, "<lambda>" now'):
        run(PROMPTS, renamed, SETTINGS, whole[0])
    fewer = replace(PARTS, answerers=[PARTS.answerers[0]])
    with pytest.raises(SynthesisError, match="answerers.long: .* there, None now"):
        run(PROMPTS, fewer, SETTINGS, whole[0])
    for prompts in (PROMPTS[:5], PROMPTS[::-1], [*PROMPTS[:5], Prompt("other", "What?")]):
        with pytest.raises(SynthesisError, match="prompts: .6, digest .* there, "):
            run(prompts, PARTS, SETTINGS, whole[0])


def test_stages_are_told_apart_by_their_settings(tmp_path):
    def judge(items):
        return cups(items)

    judge.settings = {"threshold": 1}
    run(PROMPTS, replace(PARTS, answer_reward=judge), SETTINGS, tmp_path / "run")
    judge.settings = {"threshold": 2}
    with pytest.raises(SynthesisError, match="answer_reward.threshold: 1 there, 2 now"):
        run(PROMPTS, replace(PARTS, answer_reward=judge), SETTINGS, tmp_path / "run")


def test_answerers_in_another_order_are_another_run(whole):
    other = replace(PARTS, answerers=PARTS.answerers[::-1])
    with pytest.raises(SynthesisError, match=r'order: \["short", "long"\] there, \["long"'):
        run(PROMPTS, other, SETTINGS, whole[0])


def test_what_a_partial_binds_is_a_setting_of_the_stage(tmp_path):
    def blank(color, items, size):
        return [Image.new("RGB", size, color) for _ in items]

    def parts(*bound, **settings):
        return replace(PARTS, generator=partial(blank, *bound, **settings))

    run(PROMPTS, parts("red", size=(9, 7)), SETTINGS, tmp_path / "run")
    for other in (parts("red", size=(90, 70)), parts("blue", size=(9, 7))):
        with pytest.raises(SynthesisError, match="generator.(size|argument 0): .* there, "):
            run(PROMPTS, other, SETTINGS, tmp_path / "run")
    two, eight = named(partial(cups), "two"), named(partial(cups), "eight")
    assert len(replace(PARTS, answerers=[two, eight]).answerers) == 2


@pytest.mark.parametrize("settings", [None, "dark", {"path": Path("x")}])
def test_settings_of_a_stage_are_plain(settings, tmp_path):
    def judge(items):
        return cups(items)

    judge.settings = settings
    with pytest.raises(SynthesisError, match="of 'judge'"):
        run(PROMPTS, replace(PARTS, answer_reward=judge), SETTINGS, tmp_path / "run")


def test_text_alone_is_text_alone(whole, tmp_path):
    def spy(items):
        assert all(item.image is None and item.prompt == "" and not item.about for item in items)
        assert not any("/" in item.key for item in items)
        return likes_length(items)

    spy.release = lambda: released.append(1)
    released = []
    run(PROMPTS, replace(PARTS, answer_reward=text_only(spy)), SETTINGS, tmp_path / "run")
    assert released


def test_on_error_may_change(whole):
    assert len(run(PROMPTS, PARTS, replace(SETTINGS, on_error="skip"), whole[0])) == len(whole[1])


def test_folders_that_are_no_run_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SynthesisError, match="holds thesis.txt and is no run"):
        run(PROMPTS, PARTS, SETTINGS, tmp_path)
    with pytest.raises(SynthesisError, match="cannot write to .*thesis.txt.*choose another"):
        run(PROMPTS, PARTS, SETTINGS, tmp_path / "thesis.txt" / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(SynthesisError, match="run.json cannot be read"):
        run(PROMPTS, PARTS, SETTINGS, tmp_path / "run")


def test_a_disk_that_is_full_loses_nothing(whole, tmp_path, monkeypatch):
    count = iter(range(100))

    def full(new, path):
        if next(count) > 9:
            raise OSError(28, "No space left on device")
        os.rename(new, path)

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "replace", full)
        with pytest.raises(SynthesisError, match="cannot write .*No space left on device.*is kept"):
            run(PROMPTS, PARTS, replace(SETTINGS, on_error="skip"), tmp_path / "run")
    run(PROMPTS, PARTS, SETTINGS, tmp_path / "run")
    assert made(tmp_path / "run") == made(whole[0])


def test_damage_is_named(whole, tmp_path):
    run(PROMPTS, PARTS, SETTINGS, tmp_path / "run")
    part = tmp_path / "run" / "answers" / "0-00000.parquet"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(SynthesisError, match="0-00000.parquet is damaged.*remove it"):
        run(PROMPTS, PARTS, SETTINGS, tmp_path / "run")
    part.unlink()
    run(PROMPTS, PARTS, SETTINGS, tmp_path / "run")
    assert made(tmp_path / "run") == made(whole[0])
    image = tmp_path / "run" / whole[1][0]["image_path"]
    image.write_bytes(b"something else")
    with pytest.raises(SynthesisError, match=f"{image.name} is gone or was changed"):
        run(PROMPTS, PARTS, SETTINGS, tmp_path / "run")


def test_another_reward_judges_the_same_answers(whole, tmp_path):
    file = tmp_path / "log"
    parts = replace(all_logged(PARTS, file), answer_reward=text_only(likes_length))
    pairs = run(PROMPTS, parts, SETTINGS, tmp_path / "blind", reuse=whole[0])
    assert calls(file) == []
    run(PROMPTS, parts, SETTINGS, tmp_path / "alone" / "blind")
    assert made(tmp_path / "blind") == made(tmp_path / "alone" / "blind")
    assert all(len(row["chosen"].split()) > len(row["rejected"].split()) for row in pairs)
    with pytest.raises(SynthesisError, match="nothing in .* can be used again .seed: 3 there, 5"):
        run(PROMPTS, parts, replace(SETTINGS, seed=5), tmp_path / "new", reuse=whole[0])


def test_what_a_run_made_itself_is_not_mixed_with_what_another_made(whole, tmp_path):
    """Two runs whose generator gives another picture each time, as on a GPU."""
    again = iter(range(10**6))

    def draws_anew(items):
        return [_noise(next(again)) for _ in items]

    def unplugged(items):
        raise KeyboardInterrupt

    def sees(items):
        return [f"{brightness([i])[0]:.3f} {i.key[-1]} {'bed ' * (i.seed % 5)}" for i in items]

    parts = Parts(draws_anew, brightness, [sees], likes_length)
    run(PROMPTS, parts, SETTINGS, tmp_path / "first")
    with pytest.raises(KeyboardInterrupt):
        run(PROMPTS, replace(parts, answerers=[named(unplugged, "sees")]), SETTINGS,
            tmp_path / "second")  # fmt: skip
    for _ in range(2):
        pairs = run(PROMPTS, parts, SETTINGS, tmp_path / "second", reuse=tmp_path / "first")
        for row in pairs:
            seen = f"{np.asarray(row['image']).mean():.3f}"
            assert row["chosen"].startswith(seen) and row["rejected"].startswith(seen)


def named(stage, name):
    stage.name = name
    return stage


def test_a_damaged_part_is_named_where_it_is_and_not_copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "torn")
    part = tmp_path / "torn" / "answers" / "0-00000.parquet"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(SynthesisError, match="torn/answers/0-00000.parquet is damaged"):
        run(PROMPTS, PARTS, SETTINGS, tmp_path / "run", reuse=tmp_path / "torn")
    part.unlink()
    run(PROMPTS, PARTS, SETTINGS, tmp_path / "run", reuse=tmp_path / "torn")
    assert made(tmp_path / "run") == made(whole[0])


@pytest.mark.parametrize("stage", ["answers", "answer_scores", "pictures"])
def test_no_flipped_bit_goes_unseen(stage, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    path, known = min((folder / stage).glob("*")), store.read_parts(folder, stage)
    data = path.read_bytes()
    for place in range(4, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            assert store.read_parts(folder, stage) == known
        except SynthesisError as error:
            assert "is damaged" in str(error)


# --- stages that fail -----------------------------------------------------------------------------


def likes_length(items):
    return [len(item.answer.split()) for item in items]


def spoiled(stage, keys, how):
    """The stage, which gives `how(result)` for these keys; what it raises fails the whole call."""

    def bad(items):
        results = list(stage(items))
        return [how(r) if i.key in keys else r for i, r in zip(items, results, strict=True)]

    bad.name = getattr(stage, "name", stage.__name__)
    return bad


def raising(result):
    raise RuntimeError("out of paint")


PICTURE_FAULTS = {
    "RuntimeError: out of paint": raising,
    "it gave None, not a PIL image": lambda drawn: None,
    "it gave a str .*not a PIL image": lambda drawn: "a picture",
    "it gave a ndarray .*not a PIL image": lambda drawn: np.asarray(drawn.image),
    "10 x 7 pixels, not 9 x 7": lambda drawn: _noise(0, (10, 7)),
    "mode L, not RGB": lambda drawn: drawn.image.convert("L"),
    "mode RGBA, not RGB": lambda drawn: Drawn(drawn.image.convert("RGBA")),
    "its `about` is no JSON": lambda drawn: Drawn(drawn.image, {"scene": object()}),
    "its `about` is a list": lambda drawn: Drawn(drawn.image, [1]),
    "its `about` has 'chosen', which": lambda drawn: Drawn(drawn.image, {"chosen": 1}),
}
TEXT_FAULTS = {
    "RuntimeError: out of paint": raising,
    "it gave None, not a text": lambda text: None,
    "it gave a int": lambda text: 7,
    "it gave a bytes": lambda text: text.encode(),
    "its text cannot be written": lambda text: "\ud800",
}
SCORE_FAULTS = {
    "RuntimeError: out of paint": raising,
    "it gave nan, not a finite number": lambda score: float("nan"),
    "it gave -?inf, not a finite number": lambda score: np.float32("-inf"),
    "it gave None, not a number": lambda score: None,
    "it gave a str .'3'., not a number": lambda score: "3",
    "it gave a list": lambda score: [score],
    "it gave a ndarray": lambda score: np.array([1.0, 2.0]),
    "it gave nan": lambda score: Score(float("nan")),
    "it gave a complex": lambda score: 1j,
    "its `about` is no JSON": lambda score: Score(1.0, {"why": "\ud800"}),
}


def failing(kind, how, keys):
    """PARTS with one spoiled stage."""
    if kind == "pictures":
        return replace(PARTS, generator=spoiled(draw, keys, how)), "image generator 'draw'"
    if kind == "image_scores":
        return replace(PARTS, image_reward=spoiled(brightness, keys, how)), "image reward"
    if kind == "answers":
        bad = [PARTS.answerers[0], spoiled(PARTS.answerers[1], keys, how)]
        return replace(PARTS, answerers=bad), "answerer 'long'"
    return replace(PARTS, answer_reward=spoiled(cups, keys, how)), "answer reward 'cups'"


FAULTS = [
    (kind, told, how)
    for kind, faults in (
        ("pictures", PICTURE_FAULTS), ("image_scores", SCORE_FAULTS),
        ("answers", TEXT_FAULTS), ("answer_scores", SCORE_FAULTS),
    )
    for told, how in faults.items()
]  # fmt: skip


faults = pytest.mark.filterwarnings("ignore:the .* failed on the")


@faults
@pytest.mark.parametrize("kind, told, how", FAULTS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_faulty_result_stops_the_run_and_loses_nothing(kind, told, how, whole, tmp_path):
    bad = keys_of(kind, whole[0])[5]
    parts, who = failing(kind, how, [bad])
    folder, file = tmp_path / "run", tmp_path / "log"
    with pytest.raises(SynthesisError, match=f"the {who}.* on item {bad} .*{told}.*on_error=.skip"):
        run(PROMPTS, parts, SETTINGS, folder)
    kept = stored(folder)
    assert (STAGE_OF[kind], bad) not in kept
    run(PROMPTS, all_logged(PARTS, file), SETTINGS, folder)  # mended
    assert made(folder) == made(whole[0]) and not set(calls(file)) & kept


@faults
@pytest.mark.parametrize("kind", store.STAGES)
@pytest.mark.parametrize("how", [raising, lambda result: None])
def test_a_faulty_result_is_skipped_and_told(kind, how, whole, tmp_path):
    bad = keys_of(kind, whole[0])[5]
    parts, who = failing(kind, how, [bad])
    folder, skip = tmp_path / "run", replace(SETTINGS, on_error="skip")
    pairs = run(PROMPTS, parts, skip, folder)
    assert check_pairs(pairs) == [] and len(pairs) > 1
    steps = json.loads((folder / "funnel.json").read_text())
    assert [s["dropped"]["error"] for s in steps if "error" in s["dropped"]] == [1]
    card = (folder / "README.md").read_text()
    assert "1 items were skipped because of an error" in card and f"on item {bad} " in card
    (error,) = store.read_errors(folder).values()
    assert who in error
    before = made(folder)
    run(PROMPTS, all_logged(PARTS, tmp_path / "log"), skip, folder)
    assert made(folder) == before and calls(tmp_path / "log") == []
    (folder / "errors.jsonl").unlink()  # mended: tried again
    kept = stored(folder)
    run(PROMPTS, PARTS, skip, folder)
    assert made(folder) == made(whole[0]) and kept <= stored(folder)


@faults
def test_trying_again_replaces_nothing(whole, tmp_path):
    """Without the best pictures others are asked about, in batches of the same numbers."""
    best = {json.loads(text)["picture"]["key"] for text in whole[1]["origin_split"]}
    parts, _ = failing("image_scores", raising, best)
    folder, skip = tmp_path / "run", replace(SETTINGS, on_error="skip")
    run(PROMPTS, parts, skip, folder)
    (folder / "errors.jsonl").unlink()
    kept = stored(folder)
    run(PROMPTS, PARTS, skip, folder)
    assert made(folder) == made(whole[0]) and kept < stored(folder)


@faults
@pytest.mark.parametrize("said", ["'a\u2028b'", "half of \ud83d", "line\nline"])
def test_an_error_may_quote_anything(said, whole, tmp_path):
    def fails(result):
        raise ValueError(f"bad reply {said}")

    bad = keys_of("answers", whole[0])[5]
    parts, _ = failing("answers", fails, [bad])
    folder, skip = tmp_path / "run", replace(SETTINGS, on_error="skip")
    pairs = run(PROMPTS, parts, skip, folder)
    ((_, key),) = store.read_errors(folder)
    assert key == bad and len(run(PROMPTS, parts, skip, folder)) == len(pairs)


def keys_of(kind, folder):
    return sorted(key for stage, key in stored(folder) if stage == STAGE_OF[kind])


STAGE_OF = {
    "pictures": "draw", "image_scores": "brightness", "answers": "long", "answer_scores": "cups",
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong, told",
    [
        (lambda items: [], "0 results for 1 items"),
        (lambda items: cups(items) * 2, "2 results for 1 items"),
        (lambda items: None, "it returned None, not a list"),
        (lambda items: {"a": 1}, "not a list of results"),
        (lambda items: {1.0}, "not a list of results"),
        (lambda items: 5, "not iterable"),
    ],
)
@faults
def test_a_wrong_number_of_results_is_named(wrong, told, tmp_path):
    with pytest.raises(SynthesisError, match=f"on item 0/[012]/short/0 .*{told}"):
        run(PROMPTS, replace(PARTS, answer_reward=wrong), SETTINGS, tmp_path / "run")


def test_a_batch_that_fails_as_a_whole_is_done_one_by_one(whole, tmp_path):
    def small(items):
        if len(items) > 1:
            raise MemoryError("too many")
        return cups(items)

    small.name = "cups"
    with pytest.warns(UserWarning, match="'cups' failed on the 4 items .*MemoryError: too many"):
        run(PROMPTS, replace(PARTS, answer_reward=small), SETTINGS, tmp_path / "run")
    assert made(tmp_path / "run") == made(whole[0])


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_model_that_cannot_be_read_stops_the_run_at_once(on_error, whole, tmp_path):
    asked = []

    def missing(items):
        asked.append(len(items))
        raise ModelError("some/judge cannot be read (404): check the name")

    settings, folder = replace(SETTINGS, on_error=on_error), tmp_path / "run"
    missing.name = "cups"
    with pytest.raises(SynthesisError, match="answer reward 'cups': some/judge .* is kept in"):
        run(PROMPTS, replace(PARTS, answer_reward=missing), settings, folder)
    assert len(asked) == 1 and store.read_errors(folder) == {}
    run(PROMPTS, PARTS, settings, folder)  # mended
    assert made(folder) == made(whole[0])


def test_a_stage_that_yields_too_little_or_too_much_is_named(tmp_path):
    def cut(items):
        yield from cups(items[:-1])

    def more(items):
        yield from [*cups(items), 0.0]

    for stage in (cut, more):
        with pytest.raises(SynthesisError, match="results for 1 items"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(PROMPTS[:1], replace(PARTS, answer_reward=stage), replace(SETTINGS, batch_size=1),
                tmp_path / stage.__name__)  # fmt: skip


@needs_fork
def test_killed_while_skipping(tmp_path):
    parts, _ = failing("answers", raising, ["1/0/long/0", "2/1/long/1", "3/2/long/0"])
    settings = replace(SETTINGS, on_error="skip", keep=3)
    with pytest.warns(UserWarning, match="failed on the 4 items"):
        run(PROMPTS, parts, settings, tmp_path / "whole" / "run")

    def dying():
        kept, count = calling.write_error, iter(range(9))

        def write(*error):
            if next(count) == 1:
                with open(tmp_path / "run" / "errors.jsonl", "a") as file:
                    file.write('{"stage": "answ')
                    file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            kept(*error)

        calling.write_error = write
        run(PROMPTS, parts, settings, tmp_path / "run")

    assert os.WIFSIGNALED(child(dying))
    with pytest.warns(UserWarning, match="failed on the 4 items"):
        run(PROMPTS, parts, settings, tmp_path / "run")
    assert made(tmp_path / "run") == made(tmp_path / "whole" / "run")
    assert len(store.read_errors(tmp_path / "run")) == 3


def test_stages_are_released_also_after_an_error(tmp_path):
    released = []

    class Heavy:
        name = "cups"

        def __call__(self, items):
            raise RuntimeError("broken")

        def release(self):
            released.append(self.name)

    with pytest.raises(SynthesisError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(PROMPTS, replace(PARTS, answer_reward=text_only(Heavy())), SETTINGS, tmp_path / "run")
    assert released == ["cups"]


# --- what is handed to a stage --------------------------------------------------------------------


def test_a_blind_reward_is_blind(tmp_path):
    seen = []

    def nosy(items):
        seen.extend(items)
        return likes_length(items)

    run(PROMPTS, replace(PARTS, answer_reward=text_only(nosy)), SETTINGS, tmp_path / "run")
    assert seen and all(i.image is None and i.about == {} and i.prompt == "" for i in seen)
    assert all(i.answer and i.question == "What is there?" for i in seen)


def test_a_stage_that_scribbles_on_its_items_changes_nothing(whole, tmp_path):
    def vandal(items):
        scores = brightness(items)
        for item in items:
            item.about.clear()
            item.image.paste(0, (0, 0, 9, 7))
        return scores

    def vandal_draw(items):
        made = draw(items)
        for item in items:
            item.about["number"] = -1
        return made

    vandal.name, vandal_draw.name = "brightness", "draw"
    parts = replace(PARTS, generator=vandal_draw, image_reward=vandal)
    run(PROMPTS, parts, SETTINGS, tmp_path / "run")
    assert made(tmp_path / "run") == made(whole[0])


def test_nothing_to_score_is_no_zero(tmp_path):
    def beds(items):
        return [
            Score(-item.answer.count("bed"), {"beds": 1}) if "bed" in item.answer else Score(None)
            for item in items
        ]

    parts = replace(PARTS, answer_reward=beds)
    pairs = run(PROMPTS, parts, replace(SETTINGS, samples=6), tmp_path / "run")
    for row, told in zip(pairs, map(json.loads, pairs["origin_split"]), strict=True):
        assert "bed" in row["chosen"] and "bed" in row["rejected"]
        assert told["chosen"]["about"] == {"beds": 1}
    steps = json.loads((tmp_path / "run" / "funnel.json").read_text())
    assert steps[3]["dropped"]["nothing to score"] > 0


# --- the published pipeline's faults --------------------------------------------------------------


def test_the_published_pipelines_faults_are_caught(tmp_path, capsys):
    """Answerers of which one says nothing, or a word, and a blind scorer that likes length."""

    def silent(items):
        return ["" if item.seed % 3 else "Yes." for item in items]

    parts = replace(
        PARTS, answerers=[silent, *PARTS.answerers], answer_reward=text_only(likes_length)
    )
    filters = Filters(least_words=2, most_times_longer=2)
    pairs = run(PROMPTS, parts, replace(SETTINGS, filters=filters, samples=4), tmp_path / "run")
    assert all(len(row["rejected"].split()) > 1 for row in pairs)
    told = capsys.readouterr().out
    assert "empty" in told and "under 2 words" in told and "more than 2 times as long" in told
    assert f"chosen is longer in {len(pairs)} of {len(pairs)} pairs" in told


def test_no_pair_is_an_error_that_shows_where_they_went(tmp_path, capsys):
    parts = replace(PARTS, answer_reward=lambda items: [1.0] * len(items))
    with pytest.raises(SynthesisError, match="no pair is left of 6 prompts"):
        run(PROMPTS, parts, SETTINGS, tmp_path / "run")
    assert "6 tie" in capsys.readouterr().out


def test_what_check_pairs_would_refuse_is_dropped(tmp_path):
    def still(items):
        return [_noise(int(item.key.split("/")[0]) // 2) for item in items]  # two prompts share it

    def same(items):
        return ["a cup" if i.key.endswith("0") else "<image> bed" for i in items]

    other = [PARTS.answerers[0], same]
    parts = Parts(still, brightness, other, lambda items: [-len(i.answer) for i in items])
    pairs = run(PROMPTS, parts, SETTINGS, tmp_path / "run")
    assert check_pairs(pairs) == [] and not any("<image>" in row["rejected"] for row in pairs)


# --- what cannot be run ---------------------------------------------------------------------------


def test_settings_and_parts_are_checked():
    for wrong in ({"candidates": 0}, {"keep": 1.5}, {"samples": -1}, {"batch_size": 0},
                  {"on_error": "go"}, {"image_format": "GIF"}, {"seed": 1.5}, {"size": 9},
                  {"size": (9,)}, {"size": "9x7"}, {"size": (0, 9)}):  # fmt: skip
        with pytest.raises(ValueError, match=f"{list(wrong)[0]} is "):
            Settings(**wrong)
    with pytest.raises(ValueError, match="two answerers are called 'long'"):
        replace(PARTS, answerers=[PARTS.answerers[1]] * 2)
    with pytest.raises(ValueError, match="there is no answerer"):
        replace(PARTS, answerers=[])
    with pytest.raises(ValueError, match="'draw' is no stage"):
        replace(PARTS, generator="draw")


def test_prompts_are_checked(tmp_path):
    for wrong, told in (([], "no prompts"), (["a cup"], "prompt 0 is a str")):
        with pytest.raises(SynthesisError, match=told):
            run(wrong, PARTS, SETTINGS, tmp_path / "run")
    for wrong in (("", "What?"), ("a cup", " "), (None, "What?")):
        with pytest.raises(ValueError, match="write a sentence"):
            Prompt(*wrong)
    for wrong in (("a cup", "What?", {"scene": object()}), ("half \ud800", "What?")):
        with pytest.raises(SynthesisError, match="no JSON"):
            Prompt(*wrong)
    with pytest.raises(ValueError, match="`about` has 'picture', under which"):
        Prompt("a cup", "What?", {"picture": 1})
    one = replace(PARTS, answerers=PARTS.answerers[:1])
    with pytest.raises(SynthesisError, match="no two answers to compare: raise samples"):
        run(PROMPTS, one, replace(SETTINGS, samples=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
