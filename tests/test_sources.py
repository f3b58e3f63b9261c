"""Each source gives the pairs that it says it gives; what cannot give any says why."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import preference_sources as bench
from helpers.evaluation.metrics import scene_hallucination
from helpers.feedback import sources
from helpers.feedback.pairing import rlaifv_pairs
from helpers.feedback.sources import preference_scenes, rank_own_samples
from helpers.feedback.stages import SynthesisError
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.pairs.images import RAW_COLUMNS
from helpers.setup.storage import PreferenceDataError
from helpers.vlm import pocket
from helpers.world.scenes import (
    ASSOCIATES,
    COLUMNS,
    DESCRIBE,
    NOUNS,
    Scene,
    Thing,
    describe,
    draw,
    grade,
    sample_scenes,
)

SCENES = preference_scenes(12, seed="test")


@pytest.fixture(scope="session")
def base():
    return pocket.load()


@pytest.fixture(scope="session")
def said(base):
    return sources.own_answers(*base, SCENES, seed=1)


def scene_of(row):
    return Scene.from_json(json.loads(row["origin_split"])["scene"])


def texts(pairs):
    return pairs["question"], pairs["chosen"], pairs["rejected"]


# --- every source ----------------------------------------------------------------------------


SOURCES = {
    "own samples": lambda base, said, seed: rank_own_samples(*base, SCENES, seed=seed),
    "ranked": lambda base, said, seed: sources.ranked(SCENES, said, sources.fewest_false),
    "noised": lambda base, said, seed: sources.noised_pictures(*base, SCENES, 0.5, seed),
    "truth": lambda base, said, seed: sources.injected_in_truth(SCENES, seed),
    "own": lambda base, said, seed: sources.injected_in_own(*base, SCENES, seed),
    "no": lambda base, said, seed: sources.always_no(SCENES, seed),
    "yes/no": lambda base, said, seed: sources.balanced_yes_no(SCENES, seed),
    "mixed": lambda base, said, seed: sources.mixed(
        sources.injected_in_truth(SCENES, seed), sources.balanced_yes_no(SCENES, seed), seed=seed
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_pairs_are_sound_seeded_and_about_their_own_pictures(name, base, said):
    pairs, again, other = (SOURCES[name](base, said, seed) for seed in (0, 0, 1))
    assert tuple(pairs.column_names) == RAW_COLUMNS and len(pairs) > 1
    assert pairs["idx"] == list(range(len(pairs)))
    assert check_pairs(to_conversational(pairs), base[1]) == []
    for row in pairs:
        assert row["image"].tobytes() == draw(scene_of(row)).tobytes()
    assert texts(pairs) == texts(again)
    assert texts(pairs) != texts(other) or name == "ranked"  # its seed is that of the samples


def test_samples_are_seeded_and_as_many_as_asked(base, said):
    again, other = (sources.own_answers(*base, SCENES, seed=seed) for seed in (1, 2))
    assert said == again != other and {len(few) for few in said} == {4}


# --- scenes, and their samples ranked by the truth ------------------------------------------------


def test_half_of_the_scenes_are_traps_and_none_is_a_test_scene():
    assert [len(preference_scenes(count)) for count in (0, 1, 6)] == [0, 1, 6]
    scenes = preference_scenes(200, seed=3)
    tempted = [any(ASSOCIATES.get(n) in s.nouns for n in s.nouns) for s in scenes]
    assert not any(tempted[0::2]) and sum(tempted[1::2]) > 80
    tests = {s.things for s in sample_scenes(500, "trap") + sample_scenes(500, "iid")}
    assert not tests & {scene.things for scene in scenes}


def test_the_best_sample_is_chosen_and_the_worst_is_rejected(monkeypatch):
    """Of four: the second is true, the last the worst; the last scene is met with silence."""

    def captions(model, processor, asked, **sampling):
        said = []
        for i, scene in enumerate(asked):
            wrong = describe(scene).replace("I see", "I see three purple cups,")
            worse = wrong.replace("I see", "I see two red balls,")
            said.append((wrong, describe(scene), wrong, worse)[i % 4])
        return [*said[:-4], "", said[-3], "", ""]

    monkeypatch.setattr(pocket, "captions", captions)
    pairs = rank_own_samples(None, None, SCENES)
    assert len(pairs) == 11 and tuple(pairs.column_names) == RAW_COLUMNS
    assert check_pairs(to_conversational(pairs)) == []
    for scene, row in zip(SCENES, pairs, strict=False):
        assert row["chosen"] == describe(scene) and "two red balls" in row["rejected"]
        truth = json.loads(row["origin_split"])
        assert Scene.from_json(truth["scene"]) == scene
        assert truth["chosen_false_missed"] == [0, 0]
        assert truth["rejected_false_missed"] == list(grade(scene, row["rejected"]))


def test_equally_good_samples_make_no_pair(monkeypatch):
    monkeypatch.setattr(pocket, "captions", lambda m, p, asked, **how: [*map(describe, asked)])
    with pytest.raises(PreferenceDataError, match="no pair from 12 scenes.*raise the temperature"):
        rank_own_samples(None, None, SCENES)


# --- ranked by a reward --------------------------------------------------------------------------


def words(items):
    return [len(item.answer.split()) for item in items]


def test_chair_counts_false_objects_and_nothing_else():
    scene = Scene((Thing("cup", "red", (0, 1)), Thing("fork", None, (4,))), 5)
    silent, wrong = "I see a fork on the right.", "I see two red cups and a bed on the left."
    pairs = sources.ranked([scene], [[wrong, silent, ""]], sources.fewest_false)
    assert texts(pairs) == ([DESCRIBE], [silent], [wrong])
    known = json.loads(pairs[0]["origin_split"])
    assert known["chosen_false_missed"] == [1, 2] and known["rejected_false_missed"] == [1, 1]


def test_any_reward_ranks_and_small_differences_make_no_pair():
    scenes, given = SCENES[:2], [["a b c", "a", "a b"], ["a b", "b c d"]]
    assert texts(sources.ranked(scenes, given, words))[1:] == (["a b c", "b c d"], ["a", "a b"])
    assert sources.ranked(scenes, given, words, least=2)["chosen"] == ["a b c"]
    pairs = sources.ranked(scenes[:1], [["a", "a cup", "a", "a cup"]], words, rlaifv_pairs)
    assert texts(pairs)[1:] == (["a cup"], ["a"])  # a repeated answer makes no second pair


def test_a_reward_sees_picture_question_answer_and_truth():
    def looks(items):
        for item, scene in zip(items, (SCENES[0], SCENES[0], SCENES[1]), strict=True):
            assert item.image.tobytes() == draw(scene).tobytes()
            assert item.question == DESCRIBE and item.about["scene"] == scene.to_json()
        return range(len(items))

    assert len(sources.ranked(SCENES[:2], [["a", "b"], ["c", ""]], looks)) == 1


@pytest.mark.parametrize(
    ("score", "complaint"),
    [(math.nan, "gave nan, not a finite"), ("good", "'good'.* not a number")],
)
def test_a_score_that_is_none_is_named_with_its_answer(score, complaint):
    def odd(items):
        return [1.0] * (len(items) - 1) + [score]

    with pytest.raises(SynthesisError, match=f"'odd' on 'a cup': .*{complaint}"):
        sources.ranked(SCENES[:1], [["a", "a cup"]], odd)


def test_what_is_no_list_of_scores_is_refused():
    with pytest.raises(SynthesisError, match="gave None, not a list of scores"):
        sources.ranked(SCENES[:1], [["a", "b"]], lambda items: None)
    with pytest.raises(SynthesisError, match="gave 1 scores, not 2"):
        sources.ranked(SCENES[:1], [["a", "b"]], lambda items: [1.0])
    with pytest.raises(SynthesisError, match="answers to 1 scenes, of 2"):
        sources.ranked(SCENES[:2], [["a", "b"]], lambda items: [])


def test_no_difference_is_no_pair_and_says_so():
    with pytest.raises(PreferenceDataError, match=r"no pair from 2 scenes: tie \(2\)"):
        sources.ranked(SCENES[:2], [["a", "b"]] * 2, lambda items: [0.0] * len(items))
    with pytest.raises(PreferenceDataError, match="no pair from 2 scenes: .*fewer than two"):
        sources.ranked(SCENES[:2], [["", ""]] * 2, lambda items: [])


# --- noise -----------------------------------------------------------------------------------


def test_noise_keeps_the_size_and_hides_more_the_stronger_it_is():
    picture = draw(SCENES[0])
    clean = np.asarray(picture, dtype=float)
    alike = []
    for strength in (0.01, 0.25, 0.78, 0.99):
        noisy = sources.noised(picture, strength, seed=3)
        assert noisy.size == picture.size and noisy.mode == picture.mode
        alike.append(np.corrcoef(clean.ravel(), np.asarray(noisy, dtype=float).ravel())[0, 1])
    assert alike == sorted(alike, reverse=True) and alike[0] > 0.9 and abs(alike[-1]) < 0.2
    same, other = sources.noised(picture, 0.5, 1), sources.noised(picture, 0.5, 2)
    assert same == sources.noised(picture, 0.5, 1) != other


def test_noise_has_the_share_of_the_variance_that_it_says():
    grey = Image.new("RGB", (96, 96), (64, 64, 64))  # -0.498 in -1..1
    values = np.asarray(sources.noised(grey, 0.04), dtype=float) / 127.5 - 1
    assert values.std() == pytest.approx(0.2, rel=0.03)
    assert values.mean() == pytest.approx(-0.498 * 0.96**0.5, abs=0.01)


@pytest.mark.parametrize("strength", [0, 1, -0.1, 1.5, 500, math.nan])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ValueError, match=f"strength={strength}: choose one between 0 .* and 1"):
        sources.noised(draw(SCENES[0]), strength)
    with pytest.raises(ValueError, match="strength="):
        sources.noised_pictures(None, None, SCENES[:1], strength)


def test_chosen_is_the_answer_to_the_picture_and_equal_pairs_are_dropped(base):
    pairs = sources.noised_pictures(*base, SCENES, strength=0.25, seed=2)
    clean = dict(zip([s.to_json() for s in SCENES], pocket.captions(*base, SCENES), strict=True))
    assert 1 <= len(pairs) < len(SCENES)
    for row in pairs:
        scene = scene_of(row)
        noisy = sources.noised(draw(scene), 0.25, [2, scene.seed])
        assert row["chosen"] == clean[scene.to_json()] != row["rejected"]
        assert row["rejected"] == sources.answers(*base, [noisy], [DESCRIBE])[0]


def test_noise_that_changes_nothing_or_silences_makes_no_pair(monkeypatch):
    monkeypatch.setattr(pocket, "captions", lambda *a, **k: ["the same", "a cup"])
    monkeypatch.setattr(sources, "answers", lambda *a, **k: ["the same", ""])
    with pytest.raises(PreferenceDataError, match="no pair from 2 scenes: .*raise the strength"):
        sources.noised_pictures(None, None, SCENES[:2])


# --- injection -------------------------------------------------------------------------------


def test_the_truth_is_chosen_and_one_absent_associate_is_added():
    pairs = sources.injected_in_truth(preference_scenes(200, seed="many"))
    columns = set()
    for row in pairs:
        scene, ghost = scene_of(row), json.loads(row["origin_split"])["injected"]
        assert row["chosen"] == describe(scene)
        assert ghost in ASSOCIATES.values() and ghost not in scene.nouns
        assert grade(scene, row["rejected"]) == (1, 0)
        found = scene_hallucination([row["rejected"]], [scene]).per_caption[0]
        assert found.hallucinated == (ghost,)
        columns |= {column for column in COLUMNS if f"{ghost} {column}" in row["rejected"]}
    assert columns == set(COLUMNS)
    for row in sources.injected_in_truth(SCENES[0::2]):  # traps: every context lacks its associate
        ghost = json.loads(row["origin_split"])["injected"]
        assert ghost in {ASSOCIATES.get(noun) for noun in scene_of(row).nouns}


def test_rejected_reads_as_the_world_describes_it():
    """In order of mention, with commas and "and", in a second sentence: no tell but the object."""
    lamp = "a lamp on the left"
    for caption, wanted in {
        "I see a red cup on the left.": f"I see a red cup on the left. I also see {lamp}.",
        "I see two cups. I also see a fork on the right.":
            f"I see two cups. I also see a fork on the right and {lamp}.",
        "I see two cups. I also see a fork in the middle and a tree on the right.":
            f"I see two cups. I also see a fork in the middle, {lamp} and a tree on the right.",
    }.items():  # fmt: skip
        assert sources.with_drawing(caption, lamp) == wanted


def test_its_own_answer_is_chosen_with_its_faults(monkeypatch):
    scene = Scene((Thing("plate", "red", (0,)), Thing("cup", "red", (1,))), 5)
    monkeypatch.setattr(pocket, "captions", lambda *a, **k: ["I see a fork on the left.", ""])
    pairs = sources.injected_in_own(None, None, [scene, scene])
    assert pairs["chosen"] == ["I see a fork on the left."]  # silence is left out
    ghost = json.loads(pairs[0]["origin_split"])["injected"]
    assert ghost != "fork" and scene_hallucination(pairs["rejected"], [scene]).chair_i == 1


def test_what_is_there_is_never_injected_though_the_answer_left_it_out(monkeypatch):
    things = [Thing("plate", "red", (0,)), Thing("fork", None, (4,), 0.1)]
    scenes = [Scene(tuple(things), seed) for seed in range(40)]
    monkeypatch.setattr(pocket, "captions", lambda *a, **k: ["I see a red plate."] * len(scenes))
    pairs = sources.injected_in_own(None, None, scenes)
    ghosts = {json.loads(about)["injected"] for about in pairs["origin_split"]}
    assert ghosts == {"lamp", "fish", "tree"}
    monkeypatch.setattr(pocket, "captions", lambda *a, **k: ["A fork, a lamp, a fish, a tree."])
    with pytest.raises(PreferenceDataError, match="no pair from 1 scenes: .*there or named"):
        sources.injected_in_own(None, None, scenes[:1])


# --- yes/no ----------------------------------------------------------------------------------


def asked_about(row):
    return next(noun for noun in NOUNS if f" {noun}?" in row["question"])


def test_yes_no_pairs_are_right_about_every_scene():
    no, both = sources.always_no(SCENES), sources.balanced_yes_no(SCENES)
    assert set(no["chosen"]) == {"No"} and set(no["rejected"]) == {"Yes"}
    assert both["chosen"] == ["Yes", "No"] * len(SCENES) and len(no) == len(SCENES)
    assert both["rejected"] == ["No", "Yes"] * len(SCENES)
    for row in [*no, *both]:
        assert (asked_about(row) in scene_of(row).nouns) == (row["chosen"] == "Yes")
    for make in (sources.always_no, sources.balanced_yes_no):
        with pytest.raises(PreferenceDataError, match="no pair from 0 scenes"):
            make([])


def test_mixed_pairs_keep_every_row_once_in_another_order():
    captions, probes = sources.injected_in_truth(SCENES), sources.balanced_yes_no(SCENES)
    pairs = sources.mixed(captions, probes)
    both = list(zip(*texts(captions), strict=True)) + list(zip(*texts(probes), strict=True))
    found = list(zip(*texts(pairs), strict=True))
    assert sorted(found) == sorted(both) and found != both


# --- the benchmark ---------------------------------------------------------------------------


def options(folder, **changes):
    sizes = {"scenes": 8, "pairs": 4, "test_scenes": 4, "lr": [8e-5, 4e-4]}
    return SimpleNamespace(
        **{"seeds": [0], "sources": ["inject", "control"], "kept": folder, **sizes, **changes}
    )


def test_finished_runs_are_kept_and_a_killed_benchmark_goes_on(tmp_path, monkeypatch):
    real, made = bench.source_row, []

    def dies_in_the_second(name, *given):
        if made:
            raise KeyboardInterrupt
        made.append(name)
        return real(name, *given)

    monkeypatch.setattr(bench, "source_row", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        bench.run(options(tmp_path))
    monkeypatch.setattr(bench, "source_row", lambda name, *g: made.append(name) or real(name, *g))
    rows = bench.run(options(tmp_path))
    assert made == ["inject", "control"] * 2
    assert [row["source"] for row in rows] == ["base", *made]
    assert [row["lr"] for row in rows] == [None, 8e-5, 8e-5, 4e-4, 4e-4]
    assert all(row["pairs"] == 4 and row["steps"] == 1 for row in rows[1:])
    assert all(0 <= row[name] for row in rows for name in bench.FIGURES)
    assert bench.table(rows).count("\nbase") == 2 and bench.table(rows).count("\n") == 8
    monkeypatch.setattr(bench, "source_row", dies_in_the_second)
    assert bench.run(options(tmp_path)) == rows  # nothing is done twice
    with pytest.raises(KeyboardInterrupt):  # but other settings are another benchmark
        bench.run(options(tmp_path, pairs=3))
