"""The pipeline: killed anywhere it makes the same pairs, nothing twice; faults are named."""

import json
import os
import random
import signal
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from helpers.feedback.pairing import Filters, rlaifv_pairs
from helpers.feedback.pipeline import Pipeline, Settings, run
from helpers.feedback.stages import Drawn, Prompt, Score, SynthesisError, text_only
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.pairs.images import RAW_COLUMNS
from helpers.setup.storage import PreferenceDataError
from helpers.vlm.load import ModelError

PROMPTS = [Prompt(f"scene {i}", "What is there?", {"number": i}) for i in range(6)]
SETTINGS = Settings(seed=3, candidates=3, samples=2, batch_size=4)
SKIP = replace(SETTINGS, on_error="skip")
NOUNS = ("cup", "bed", "plate", "fork", "boat")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
quiet = pytest.mark.filterwarnings("ignore:the .* failed on the")


# --- stages without models, which are quick and depend on the seed alone --------------------------


def noise(seed, size=(9, 7)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def draw(items):
    assert all(item.image is None and item.answer is None for item in items)
    return [Drawn(noise(item.seed), {"seed": item.seed}) for item in items]


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

    return named(stage, name)


def cups(items):
    return [item.answer.split().count("cup") for item in items]


def likes_length(items):
    return [len(item.answer.split()) for item in items]


def named(stage, name):
    stage.name = name
    return stage


PIPELINE = Pipeline(draw, brightness, [speaker("short", 3), speaker("long", 8)], cups)


def logged(pipeline, file):
    """The pipeline, whose stages write the keys of their items to a file when a call is done."""

    def log(stage):
        def called(items):
            results = list(stage(items))
            with open(file, "a") as lines:
                lines.write(" ".join([called.name, *(i.key.replace(" ", "_") for i in items)]))
                lines.write("\n")
            return results

        return named(called, getattr(stage, "name", stage.__name__))

    return Pipeline(
        log(pipeline.generator), log(pipeline.image_reward), [log(a) for a in pipeline.answerers],
        log(pipeline.answer_reward), pipeline.pairing,
    )  # fmt: skip


def calls(file):
    """[(stage, key)] in the order in which the calls were done."""
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(stage, key) for stage, *keys in lines for key in keys]


def made(folder, name="pairs"):
    """{name: bytes} of all that a finished run leaves behind."""
    files = [*(folder / name).glob("*"), *folder.glob("files/*")]
    return {path.name: path.read_bytes() for path in files if path.suffix != ".part"}


def log_of(folder):
    return [json.loads(line) for line in open(folder / "pairs" / "items.jsonl")]


def funnel(folder):
    return {s["stage"]: s for s in json.loads((folder / "pairs" / "funnel.json").read_text())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run and its pairs."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(PROMPTS, PIPELINE, SETTINGS, folder)


# --- what comes out -------------------------------------------------------------------------------


def test_pairs_are_raw_and_sound_and_tell_how_they_came_to_be(whole):
    folder, pairs = whole
    scores = {i["item"]: i["score"] for i in log_of(folder) if i["stage"] == "image_scores"}
    assert sorted(scores) == sorted(f"{i}/{c}" for i in range(6) for c in range(3))
    assert tuple(pairs.column_names) == RAW_COLUMNS and len(pairs) >= 4
    assert check_pairs(pairs) == [] == check_pairs(to_conversational(pairs))
    assert pairs["idx"] == list(range(len(pairs)))
    for row in pairs:
        told = json.loads(row["origin_split"])
        prompt = int(told["picture"]["key"].split("/")[0])
        assert told["prompt"] == PROMPTS[prompt].text and told["number"] == prompt
        mine = [key for key in scores if int(key[0]) == prompt]
        assert max(mine, key=scores.get) == told["picture"]["key"]  # the brightest
        assert row["image"].tobytes() == noise(told["picture"]["seed"]).tobytes()
        assert Image.open(folder / row["image_path"]).tobytes() == row["image"].tobytes()
        for side in ("chosen", "rejected"):
            answer = told[side]
            assert answer["score"] == row[side].split().count("cup")
            rng = random.Random(answer["seed"])
            words = {"short": 3, "long": 8}[answer["answerer"]]
            assert row[side] == " ".join(rng.choices(NOUNS, k=rng.randint(1, words)))
        assert told["chosen"]["score"] > told["rejected"]["score"]


def test_the_table_accounts_for_every_item(whole):
    steps = funnel(whole[0])
    left = {name: s["entered"] - sum(s["dropped"].values()) for name, s in steps.items()}
    assert steps["draw"]["entered"] == 18 == steps["rank"]["entered"]
    assert steps["rank"]["dropped"] == {"not among the best": 12} and left["rank"] == 6
    assert steps["answer"]["entered"] == 6 * 2 * 2
    assert left["answer"] == steps["score"]["entered"] and min(left.values()) > 0
    assert left["pair"] == steps["filter"]["entered"]
    assert left["check_pairs"] == len(whole[1])


def test_the_card_names_all_that_was_at_work(whole):
    card = (whole[0] / "pairs" / "README.md").read_text()
    facts = ("seed is 3", "not among the best", "chosen is longer in", "No item was skipped")
    stages = ("`draw`", "`brightness`", "`short`", "`long`", "`cups`", "`best_worst`")
    for name in (*stages, *facts):
        assert name in card, name
    assert load_dataset(str(whole[0] / "pairs"), split="train").num_rows == len(whole[1])


def test_rlaifv_rule_takes_more_pairs_of_a_picture(tmp_path):
    pipeline = replace(PIPELINE, pairing=partial(rlaifv_pairs, least=1))
    pairs = run(PROMPTS, pipeline, replace(SETTINGS, samples=4), tmp_path)
    assert max(Counter(pairs["image_path"]).values()) == 2 and check_pairs(pairs) == []
    assert "`rlaifv_pairs` (least 1)" in (tmp_path / "pairs" / "README.md").read_text()


def test_pictures_below_a_floor_are_not_asked_about(tmp_path):
    settings = replace(SETTINGS, keep=3, least_image_score=127.0)
    pairs = run(PROMPTS, PIPELINE, settings, tmp_path)
    assert all(np.asarray(row["image"]).mean() >= 127 for row in pairs)
    assert funnel(tmp_path)["rank"]["dropped"]["score below 127"] > 0


# --- killed and gone on with ----------------------------------------------------------------------


def killed_at(number, when, folder, file):
    """Run, and be killed at this write: before it is on disk, in the middle of it, or after it."""
    sync, count = os.fsync, iter(range(10**6))

    def sync_or_die(descriptor):
        size = os.fstat(descriptor).st_size
        if next(count) == number:
            lost = {"before": size - starts.get(os.fstat(descriptor).st_ino, 0), "torn": 9}
            os.ftruncate(descriptor, size - lost.get(when, 0))
            os.kill(os.getpid(), signal.SIGKILL)
        starts[os.fstat(descriptor).st_ino] = size  # where the next line of this file begins
        sync(descriptor)

    starts, os.fsync = {}, sync_or_die
    run(PROMPTS, logged(PIPELINE, file), SETTINGS, folder)


@needs_fork
def test_killed_at_every_write(whole, tmp_path):
    number = 0
    while True:
        folder, file = tmp_path / f"{number}", tmp_path / f"log-{number}"
        when = ("before", "torn", "after")[number % 3]
        pid = os.fork()
        if pid == 0:
            try:
                killed_at(number, when, folder, file)
            finally:
                os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            break
        before = set(calls(file))
        run(PROMPTS, logged(PIPELINE, file), SETTINGS, folder)
        assert made(folder) == made(whole[0]), (number, when)
        twice = Counter(calls(file)) - Counter(set(calls(file)))
        assert twice.keys() <= before and twice.total() <= SETTINGS.batch_size  # the call at hand
        number += 4  # with three ways to die, every kind of write sees each of them
    assert number > 30


def test_a_stage_that_yields_is_kept_item_by_item(whole, tmp_path):
    file, fatal = tmp_path / "log", ["2/1"]

    def one_by_one(items):
        for item in items:
            if item.key in fatal:
                raise KeyboardInterrupt
            with open(file, "a") as lines:
                lines.write(f"draw {item.key}\n")
            yield draw([item])[0]

    pipeline = replace(PIPELINE, generator=named(one_by_one, "draw"))
    with pytest.raises(KeyboardInterrupt):
        run(PROMPTS, pipeline, SETTINGS, tmp_path / "run")
    assert len(calls(file)) == 7  # in the middle of the second batch
    fatal.clear()
    run(PROMPTS, pipeline, SETTINGS, tmp_path / "run")
    assert made(tmp_path / "run") == made(whole[0])
    assert len(calls(file)) == 18 == len(set(calls(file)))


def test_a_finished_run_calls_nothing(whole, tmp_path):
    before = made(whole[0])
    again = run(PROMPTS, logged(PIPELINE, tmp_path / "log"), SKIP, whole[0])
    assert calls(tmp_path / "log") == [] and again.to_list() == whole[1].to_list()
    assert made(whole[0]) == before


# --- one folder for several runs ------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, again",
    [
        ({"answer_reward": text_only(likes_length)}, {"likes_length"}),
        ({"pairing": rlaifv_pairs}, set()),
        ({"answerers": [*PIPELINE.answerers, speaker("new", 5)]}, {"new", "cups"}),
        ({"image_reward": named(lambda items: [i.seed for i in items], "other")}, {"other", "*"}),
    ],
)
def test_what_did_not_change_is_not_done_again(changes, again, whole, tmp_path):
    """A second judge draws no picture, and its pairs are those of a run of its own."""
    file, pipeline = tmp_path / "log", replace(PIPELINE, **changes)
    run(PROMPTS, PIPELINE, SETTINGS, tmp_path / "both")
    run(PROMPTS, logged(pipeline, file), SETTINGS, tmp_path / "both")
    stages = {stage for stage, _ in calls(file)}
    assert "draw" not in stages and (stages == again or "*" in again)
    run(PROMPTS, pipeline, SETTINGS, tmp_path / "alone")
    assert made(tmp_path / "both").items() >= made(tmp_path / "alone").items()


def test_everything_that_a_result_depends_on_is_in_its_key(tmp_path):
    def judge(items):
        return cups(items)

    def blank(color, items, model):
        return [Image.new("RGB", (9, 7), color) for _ in items]

    file, pipeline = (
        tmp_path / "log",
        logged(replace(PIPELINE, answer_reward=judge), tmp_path / "log"),
    )
    run(PROMPTS, pipeline, SETTINGS, tmp_path / "run")
    other = [*PROMPTS[:5], Prompt("other", "What?", {"number": 5})]
    for prompts, settings, threshold, again in (
        (PROMPTS, SETTINGS, 2, {"judge"}),
        (other, SETTINGS, 2, {"draw", "brightness", "short", "long", "judge"}),
        (other, replace(SETTINGS, seed=4), 2, {"draw", "brightness", "short", "long", "judge"}),
    ):
        file.unlink()
        pipeline.answer_reward.settings = {"threshold": threshold}
        run(prompts, pipeline, settings, tmp_path / "run")
        assert {stage for stage, _ in calls(file)} == again
        assert {key[0] for _, key in calls(file)} == set(
            "5" if again > {"judge"} and settings is SETTINGS else "012345"
        )
    for color in ((255, 0, 0), (0, 0, 255)):  # what a partial binds, but for what is no JSON
        bound = replace(PIPELINE, generator=partial(blank, color, model=object()))
        pairs = run(PROMPTS, bound, SETTINGS, tmp_path / "run")
        assert pairs[0]["image"].getpixel((0, 0)) == color


def test_a_stage_that_samples_a_batch_is_kept_for_that_batch(tmp_path):
    """Otherwise the pairs would depend on what the folder held before."""

    def sampler(items):
        rng = random.Random(str([item.seed for item in items]))
        return [" ".join(rng.choices(NOUNS, k=6)) for _ in items]

    sampler.by_batch = True
    pipeline = replace(PIPELINE, answerers=[sampler])
    for prompts in (PROMPTS[:3], PROMPTS):
        pairs = run(prompts, pipeline, SETTINGS, tmp_path / "grown")
    assert pairs["chosen"] == run(PROMPTS, pipeline, SETTINGS, tmp_path / "new")["chosen"]


def test_what_is_made_from_another_picture_is_not_mixed(tmp_path):
    """A generator that gives another picture each time, as on a GPU."""
    again = iter(range(10**6))

    def draws_anew(items):
        return [noise(next(again)) for _ in items]

    def sees(items):
        return [f"{brightness([i])[0]:.3f} {i.key[-1]} {'bed ' * (i.seed % 5)}" for i in items]

    pipeline = Pipeline(draws_anew, brightness, [sees], likes_length)
    run(PROMPTS, pipeline, SETTINGS, tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    lines = [line for line in lines if "sha256" not in line or "/" in line and next(again) % 2]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    for row in run(PROMPTS, pipeline, SETTINGS, tmp_path):
        seen = f"{np.asarray(row['image']).mean():.3f}"
        assert row["chosen"].startswith(seen) and row["rejected"].startswith(seen)


# --- a disk that fails ----------------------------------------------------------------------------


@pytest.mark.parametrize("room", [3, 20, 40])
def test_a_disk_that_is_full_loses_nothing(room, whole, tmp_path, monkeypatch):
    count, sync = iter(range(100)), os.fsync

    def full(descriptor):
        if next(count) > room:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises((SynthesisError, PreferenceDataError), match="cannot write .*No space"):
            run(PROMPTS, PIPELINE, SKIP, tmp_path)
    run(PROMPTS, PIPELINE, SETTINGS, tmp_path)
    assert made(tmp_path) == made(whole[0])


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"else")])
def test_a_picture_that_was_changed_is_named(damage, whole, tmp_path):
    pairs = run(PROMPTS, PIPELINE, SETTINGS, tmp_path)
    damage(tmp_path / pairs[0]["image_path"])
    with pytest.raises(SynthesisError, match=f"{pairs[0]['image_path']} is gone or was changed"):
        run(PROMPTS, PIPELINE, SETTINGS, tmp_path)


# --- stages that fail -----------------------------------------------------------------------------


def spoiled(stage, keys, how):
    """The stage, which gives `how(result)` for these keys; what it raises fails the whole call."""

    def bad(items):
        results = list(stage(items))
        return [how(r) if i.key in keys else r for i, r in zip(items, results, strict=True)]

    return named(bad, getattr(stage, "name", stage.__name__))


def raising(result):
    raise RuntimeError("out of paint")


PICTURE_FAULTS = {
    "RuntimeError: out of paint": raising,
    "it gave a ndarray .*not a PIL image": lambda drawn: np.asarray(drawn.image),
    "mode L, not RGB": lambda drawn: drawn.image.convert("L"),
    "its `about` is no JSON": lambda drawn: Drawn(drawn.image, {"scene": object()}),
    "its `about` is a list": lambda drawn: Drawn(drawn.image, [1]),
    "its `about` has 'chosen', which": lambda drawn: Drawn(drawn.image, {"chosen": 1}),
}
TEXT_FAULTS = {
    "RuntimeError: out of paint": raising,
    "it gave None, not a text": lambda text: None,
    "its text cannot be written": lambda text: "\ud800",
}
SCORE_FAULTS = {
    "RuntimeError: out of paint": raising,
    "it gave nan, not a finite number": lambda score: float("nan"),
    "it gave -?inf, not a finite number": lambda score: np.float32("-inf"),
    "it gave None, not a number": lambda score: None,
    "it gave a str .'3'., not a number": lambda score: "3",
    "it gave a ndarray": lambda score: np.array([1.0, 2.0]),
    "its `about` is no JSON": lambda score: Score(1.0, {"why": "\ud800"}),
}
FAULTS = {
    "pictures": PICTURE_FAULTS,
    "image_scores": {"its `about` is no JSON": SCORE_FAULTS["its `about` is no JSON"]},
    "answers": TEXT_FAULTS,
    "answer_scores": SCORE_FAULTS,
}
WHO = {
    "pictures": "image generator 'draw'",
    "image_scores": "image reward 'brightness'",
    "answers": "answerer 'long'",
    "answer_scores": "answer reward 'cups'",
}


def failing(kind, how, keys):
    """PIPELINE with one spoiled stage."""
    if kind == "answers":
        short, long = PIPELINE.answerers
        return replace(PIPELINE, answerers=[short, spoiled(long, keys, how)])
    name = {"pictures": "generator", "image_scores": "image_reward"}.get(kind, "answer_reward")
    return replace(PIPELINE, **{name: spoiled(getattr(PIPELINE, name), keys, how)})


def sixth(kind, folder):
    """The key of the sixth item of a stage, in its second batch."""
    keys = [i["item"] for i in log_of(folder) if i["stage"] == kind and i["by"] != "short"]
    return sorted(keys)[5]


@quiet
@pytest.mark.parametrize(
    "kind, told", [(kind, told) for kind, faults in FAULTS.items() for told in faults]
)
def test_a_faulty_result_stops_the_run_and_loses_nothing(kind, told, whole, tmp_path):
    bad = sixth(kind, whole[0])
    folder, file = tmp_path / "run", tmp_path / "log"
    sentence = f"the {WHO[kind]} on item {bad} .prompt 'scene .'.: .*{told}.*on_error=.skip"
    with pytest.raises(SynthesisError, match=sentence):
        run(PROMPTS, logged(failing(kind, FAULTS[kind][told], [bad]), file), SETTINGS, folder)
    run(PROMPTS, logged(PIPELINE, file), SETTINGS, folder)  # mended
    assert made(folder) == made(whole[0])
    twice = Counter(calls(file)) - Counter(set(calls(file)))
    assert twice.keys() <= {(WHO[kind].split("'")[1], bad)}


@quiet
@pytest.mark.parametrize("kind", FAULTS)
def test_a_faulty_result_is_skipped_and_told(kind, whole, tmp_path):
    bad, folder, file = sixth(kind, whole[0]), tmp_path / "run", tmp_path / "log"
    pipeline = failing(kind, raising if kind < "c" else lambda result: None, [bad])
    pairs = run(PROMPTS, pipeline, SKIP, folder)
    assert check_pairs(pairs) == [] and len(pairs) > 1
    dropped = [s["dropped"]["error"] for s in funnel(folder).values() if "error" in s["dropped"]]
    card = (folder / "pairs" / "README.md").read_text()
    (error,) = [item["error"] for item in log_of(folder) if "error" in item]
    assert dropped == [1] and "1 items were skipped because of an error" in card
    assert WHO[kind] in error and f"on item {bad} " in card
    before = made(folder)
    run(PROMPTS, logged(PIPELINE, file), SKIP, folder)
    assert made(folder) == before and calls(file) == []
    run(PROMPTS, PIPELINE, SETTINGS, folder)  # mended, and "stop" tries again
    assert made(folder).items() >= made(whole[0]).items()


@quiet
@pytest.mark.parametrize("said", ["'a\u2028b'", "half of \ud83d", "line\nline"])
def test_an_error_may_quote_anything(said, whole, tmp_path):
    def fails(result):
        raise ValueError(f"bad reply {said}")

    bad = sixth("answers", whole[0])
    pipeline = failing("answers", fails, [bad])
    pairs = run(PROMPTS, pipeline, SKIP, tmp_path)
    assert [item["item"] for item in log_of(tmp_path) if "error" in item] == [bad]
    assert len(run(PROMPTS, pipeline, SKIP, tmp_path)) == len(pairs)


def too_few(items):
    yield from cups(items[:-1])


def too_many(items):
    yield from [*cups(items), 0.0]


@quiet
@pytest.mark.parametrize(
    "wrong, told",
    [
        (lambda items: [], "0 results for 1 items"),
        (lambda items: cups(items) * 2, "2 results for 1 items"),
        (lambda items: None, "it returned None, not a list"),
        (lambda items: {"a": 1}, "not a list of results"),
        (lambda items: 5, "not iterable"),
        (too_few, "0 results for 1 items"),
        (too_many, "2 results for 1 items"),
    ],
)
def test_a_wrong_number_of_results_is_named(wrong, told, tmp_path):
    for size in (1,) if wrong is too_many else (1, 4):
        settings = replace(SETTINGS, batch_size=size)
        with pytest.raises(SynthesisError, match=f"on item ./[012]/(short|long)/. .*{told}"):
            run(PROMPTS, replace(PIPELINE, answer_reward=wrong), settings, tmp_path)


def test_a_batch_that_fails_as_a_whole_is_done_one_by_one(whole, tmp_path):
    def small(items):
        if len(items) > 1:
            raise MemoryError("too many")
        return cups(items)

    pipeline = replace(PIPELINE, answer_reward=named(small, "cups"))
    with pytest.warns(UserWarning, match="'cups' failed on the 4 items .*MemoryError: too many"):
        run(PROMPTS, pipeline, SETTINGS, tmp_path)
    assert made(tmp_path) == made(whole[0])


@pytest.mark.parametrize("settings", [SETTINGS, SKIP], ids=["stop", "skip"])
def test_a_model_that_cannot_be_read_stops_the_run_at_once(settings, whole, tmp_path):
    asked = []

    def missing(items):
        asked.append(len(items))
        raise ModelError("some/judge cannot be read (404): check the name")

    pipeline = replace(PIPELINE, answer_reward=named(missing, "cups"))
    with pytest.raises(SynthesisError, match="answer reward 'cups': some/judge .* is kept in"):
        run(PROMPTS, pipeline, settings, tmp_path)
    assert len(asked) == 1
    run(PROMPTS, PIPELINE, settings, tmp_path)  # mended
    assert made(tmp_path) == made(whole[0])


def test_stages_are_released_also_after_an_error(tmp_path):
    def heavy(items):
        raise RuntimeError("broken")

    released, heavy.release = [], lambda: released.append(1)
    pipeline = replace(PIPELINE, answer_reward=text_only(heavy))
    with pytest.raises(SynthesisError), pytest.warns(UserWarning, match="failed on the 4"):
        run(PROMPTS, pipeline, SETTINGS, tmp_path)
    assert released == [1]


# --- what is handed to a stage --------------------------------------------------------------------


def test_a_blind_reward_is_blind(tmp_path):
    seen = []

    def nosy(items):
        seen.extend(items)
        return likes_length(items)

    run(PROMPTS, replace(PIPELINE, answer_reward=text_only(nosy)), SETTINGS, tmp_path)
    assert seen and all(i.image is None and i.about == {} and i.prompt == "" for i in seen)
    assert all(i.answer and i.question == "What is there?" and "/" not in i.key for i in seen)


def test_a_stage_that_scribbles_on_its_items_changes_nothing(tmp_path):
    def vandal(items):
        scores = brightness(items)
        for item in items:
            item.about["deep"].append(2)
            item.about.clear()
            item.image.paste(0, (0, 0, 9, 7))
        return scores

    def vandal_draw(items):
        drawn = draw(items)
        for item in items:
            item.about["number"] = -1
        return drawn

    stages = {"generator": named(vandal_draw, "draw"), "image_reward": named(vandal, "brightness")}
    prompts = [replace(prompt, about=prompt.about | {"deep": [1]}) for prompt in PROMPTS]
    run(prompts, PIPELINE, SETTINGS, tmp_path / "clean")
    run(prompts, replace(PIPELINE, **stages), SETTINGS, tmp_path / "vandal")
    assert made(tmp_path / "vandal") == made(tmp_path / "clean")


def test_nothing_to_score_is_no_zero(tmp_path):
    def beds(items):
        return [
            Score(-item.answer.count("bed"), {"beds": 1}) if "bed" in item.answer else Score(None)
            for item in items
        ]

    pipeline = replace(PIPELINE, answer_reward=beds)
    pairs = run(PROMPTS, pipeline, replace(SETTINGS, samples=6), tmp_path)
    for row, told in zip(pairs, map(json.loads, pairs["origin_split"]), strict=True):
        assert "bed" in row["chosen"] and "bed" in row["rejected"]
        assert told["chosen"]["about"] == {"beds": 1}
    assert funnel(tmp_path)["score"]["dropped"]["nothing to score"] > 0


# --- what is dropped ------------------------------------------------------------------------------


def test_the_published_pipelines_faults_are_caught(tmp_path, capsys):
    """Answerers of which one says nothing, or a word, and a blind scorer that likes length."""

    def silent(items):
        return ["" if item.seed % 3 else "Yes." for item in items]

    answerers = [silent, *PIPELINE.answerers]
    pipeline = replace(PIPELINE, answerers=answerers, answer_reward=text_only(likes_length))
    filters = Filters(least_words=2, most_times_longer=2)
    pairs = run(PROMPTS, pipeline, replace(SETTINGS, filters=filters, samples=4), tmp_path)
    assert all(len(row["rejected"].split()) > 1 for row in pairs)
    told = capsys.readouterr().out
    assert "empty" in told and "under 2 words" in told and "more than 2 times as long" in told
    assert f"chosen is longer in {len(pairs)} of {len(pairs)} pairs" in told


def test_no_pair_is_an_error_that_shows_where_they_went(tmp_path, capsys):
    pipeline = replace(PIPELINE, answer_reward=lambda items: [1.0] * len(items))
    with pytest.raises(SynthesisError, match="no pair is left of 6 prompts"):
        run(PROMPTS, pipeline, SETTINGS, tmp_path)
    assert "6 tie" in capsys.readouterr().out


def test_what_check_pairs_would_refuse_is_dropped(tmp_path):
    def still(items):
        return [noise(int(item.key.split("/")[0]) // 2) for item in items]  # two prompts share it

    def same(items):
        return ["a cup" if i.key.endswith("0") else "<image> bed" for i in items]

    answerers = [PIPELINE.answerers[0], same]
    pipeline = Pipeline(still, brightness, answerers, lambda items: [-len(i.answer) for i in items])
    pairs = run(PROMPTS, pipeline, SETTINGS, tmp_path)
    assert check_pairs(pairs) == [] and not any("<image>" in row["rejected"] for row in pairs)


# --- what cannot be run ---------------------------------------------------------------------------


def test_settings_and_stages_are_checked(tmp_path):
    for wrong in ({"candidates": 0}, {"keep": 1.5}, {"samples": -1}, {"batch_size": 0},
                  {"on_error": "go"}, {"seed": 1.5}):  # fmt: skip
        with pytest.raises(ValueError, match=f"{list(wrong)[0]} is "):
            Settings(**wrong)
    with pytest.raises(ValueError, match="two answerers are called 'long'"):
        replace(PIPELINE, answerers=[PIPELINE.answerers[1]] * 2)
    with pytest.raises(ValueError, match="there is no answerer"):
        replace(PIPELINE, answerers=[])
    with pytest.raises(ValueError, match="'draw' is no stage"):
        replace(PIPELINE, generator="draw")
    for settings in (None, "dark", {"path": Path("x")}):
        judge = named(lambda items: cups(items), "judge")
        judge.settings = settings
        with pytest.raises(SynthesisError, match="of 'judge'"):
            run(PROMPTS, replace(PIPELINE, answer_reward=judge), SETTINGS, tmp_path)


def test_prompts_are_checked(tmp_path):
    for wrong, told in (([], "no prompts"), (["a cup"], "prompt 0 is a str")):
        with pytest.raises(SynthesisError, match=told):
            run(wrong, PIPELINE, SETTINGS, tmp_path / "run")
    for wrong in (("", "What?"), ("a cup", " "), (None, "What?")):
        with pytest.raises(ValueError, match="write a sentence"):
            Prompt(*wrong)
    for wrong in (("a cup", "What?", {"scene": object()}), ("half \ud800", "What?")):
        with pytest.raises(SynthesisError, match="no JSON"):
            Prompt(*wrong)
    with pytest.raises(ValueError, match="`about` has 'picture', under which"):
        Prompt("a cup", "What?", {"picture": 1})
    one = replace(PIPELINE, answerers=PIPELINE.answerers[:1])
    with pytest.raises(SynthesisError, match="no two answers to compare: raise samples"):
        run(PROMPTS, one, replace(SETTINGS, samples=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
