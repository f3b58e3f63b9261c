"""Pairs from a model's own answers: the truth ranks them, and they go on unchanged."""

import json

import pytest

from helpers.feedback import own_samples
from helpers.feedback.own_samples import (
    preference_scenes,
    rank_own_samples,
)
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.pairs.images import RAW_COLUMNS
from helpers.world.scenes import ASSOCIATES, Scene, describe, draw, grade, sample_scenes


@pytest.fixture
def scripted(monkeypatch):
    """Instead of a model: four answers to each scene, the second true, the last the worst."""

    def captions(model, processor, asked, **sampling):
        said = []
        for i, scene in enumerate(asked):
            truth = describe(scene)
            wrong = truth.replace("I see", "I see three purple cups,")
            worse = wrong.replace("I see", "I see two red balls,")
            said.append((wrong, truth, wrong, worse)[i % 4])
        return said

    monkeypatch.setattr(own_samples, "captions", captions)


def test_best_is_chosen_and_worst_is_rejected(scripted):
    scenes = preference_scenes(10)
    pairs = rank_own_samples(None, None, scenes)
    assert len(pairs) == 10 and tuple(pairs.column_names) == RAW_COLUMNS
    for scene, row in zip(scenes, pairs, strict=True):
        assert row["chosen"] == describe(scene)
        assert "two red balls" in row["rejected"]
        truth = json.loads(row["origin_split"])
        assert Scene.from_json(truth["scene"]) == scene
        assert truth["chosen_false_missed"] == [0, 0]
        assert truth["rejected_false_missed"] == list(grade(scene, row["rejected"]))


def test_pairs_are_sound_and_their_pictures_are_the_scenes(scripted):
    scenes = preference_scenes(4)
    pairs = rank_own_samples(None, None, scenes)
    assert check_pairs(to_conversational(pairs)) == []
    for scene, row in zip(scenes, pairs, strict=True):
        assert row["image"].tobytes() == draw(scene).tobytes()


def test_silence_makes_no_pair(monkeypatch):
    def captions(model, processor, asked, **sampling):
        texts = ["", describe(asked[0]), "I see a red bed on the left.", ""]
        return texts + [""] * (len(asked) - 4)

    monkeypatch.setattr(own_samples, "captions", captions)
    pairs = rank_own_samples(None, None, preference_scenes(4))
    assert len(pairs) == 1 and "" not in (pairs[0]["chosen"], pairs[0]["rejected"])


def test_equally_good_answers_make_no_pair(monkeypatch):
    def same(model, processor, asked, **sampling):
        return [describe(scene) for scene in asked]

    monkeypatch.setattr(own_samples, "captions", same)
    with pytest.raises(ValueError, match="no pair from 4 scenes.*raise the temperature"):
        rank_own_samples(None, None, preference_scenes(4))


@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_as_many_scenes_as_asked(count):
    assert len(preference_scenes(count)) == count


def test_half_of_the_scenes_are_traps_and_none_is_a_test_scene():
    scenes = preference_scenes(200, seed=3)
    tempted = [any(ASSOCIATES.get(n) in s.nouns for n in s.nouns) for s in scenes]
    assert not any(tempted[0::2]) and sum(tempted[1::2]) > 80
    tests = {s.things for s in sample_scenes(500, "trap") + sample_scenes(500, "iid")}
    assert not tests & {scene.things for scene in scenes}


def test_real_samples_are_seeded(untrained, processor):
    scenes = preference_scenes(4)
    first, again = (rank_own_samples(untrained, processor, scenes, seed=1) for _ in range(2))
    other = rank_own_samples(untrained, processor, scenes, seed=2)
    assert first["rejected"] == again["rejected"] != other["rejected"]
