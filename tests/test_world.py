"""The pocket world: exact truth, seeded, parts that never overlap, probes as POPE builds them."""

import numpy as np
import pytest

from helpers.world.scenes import (
    ASSOCIATES,
    CONTEXTS,
    FREE,
    NEGATIVES,
    NOUNS,
    PARTS,
    SPLITS,
    Scene,
    Thing,
    cooccurrence,
    describe,
    draw,
    grade,
    probes,
    sample_scene,
    sample_scenes,
)

SCENES = {split: sample_scenes(300, split) for split in SPLITS}


def test_same_seed_same_scene_same_picture():
    first, second = (sample_scene(5, "iid") for _ in range(2))
    assert first == second
    assert np.array_equal(draw(first), draw(second))
    assert sample_scene(6, "iid") != first


def test_scene_survives_json():
    scene = sample_scene(3)
    assert Scene.from_json(scene.to_json()) == scene


def test_association_rate_of_each_split():
    for split, rate in SPLITS.items():
        together = [
            ASSOCIATES[noun] in scene.nouns
            for scene in SCENES[split]
            for noun in scene.nouns
            if noun in ASSOCIATES
        ]
        assert np.mean(together) == pytest.approx(rate, abs=0.04)


def test_contexts_are_zipf_weighted():
    singles, _ = cooccurrence()
    counts = [singles[context] for context in CONTEXTS]
    assert counts == sorted(counts, reverse=True) and counts[0] > 2 * counts[-1]


def test_parts_share_no_scene():
    def contents(part):
        scenes = sample_scenes(500, part=part)
        return {tuple((t.noun, t.colour, t.cells) for t in s.things) for s in scenes}

    parts = [contents(part) for part in PARTS]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_no_two_things_in_one_place():
    for scene in SCENES["iid"]:
        cells = [cell for thing in scene.things for cell in thing.cells]
        assert len(cells) == len(set(cells)) and set(cells) <= set(range(9))


def test_each_thing_is_drawn_where_it_is_and_nowhere_else():
    drawn = _picture(Thing("ball", "red", (4,)))
    changed = np.abs(drawn - _picture()).sum(-1)
    for cell in range(9):
        y, x = 32 * (cell // 3), 32 * (cell % 3)
        assert (changed[y : y + 32, x : x + 32].mean() > 20) == (cell == 4)
        assert changed[y : y + 32, x : x + 32].any() == (cell == 4)


def _picture(*things):
    return np.asarray(draw(Scene(things, seed=1)), dtype=float)


def test_associates_are_fainter_than_anything_coloured():
    def ink(thing):
        return np.abs(_picture(thing) - _picture()).sum()

    pencil = [ink(Thing(noun, None, (4,), 0.3)) for noun in ASSOCIATES.values()]
    coloured = [ink(Thing(noun, "yellow", (4,))) for noun in CONTEXTS + FREE]
    assert max(pencil) < min(coloured)


def test_caption_names_exactly_what_is_there():
    for scene in SCENES["iid"]:
        words = describe(scene).replace(".", "").replace(",", "").split()
        named = {noun for noun in NOUNS if noun in words or noun + "s" in words}
        assert named == scene.nouns


def test_grade_counts_false_and_missed_phrases():
    things = (Thing("cup", "red", (0, 1)), Thing("fork", None, (2,), 0.4))
    scene = Scene(things, 0)
    truth = describe(scene)
    assert truth == "I see two red cups. I also see a fork on the right."
    assert grade(scene, truth) == (0, 0)
    assert grade(scene, "I see two red cups.") == (0, 1)
    assert grade(scene, truth.replace("red", "blue")) == (1, 1)
    assert grade(scene, truth.replace(" on the right", " on the left")) == (1, 1)
    assert grade(scene, "I see two red cups and a bed on the left.") == (1, 1)
    assert grade(scene, "I see two red cups, two red cups and a fork on the right.") == (1, 0)
    assert grade(scene, "") == (1, 2)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_probes_are_true_and_balanced(negatives):
    answers = []
    for scene in SCENES["iid"]:
        for probe in probes(scene, negatives):
            answers.append(probe.answer)
            if probe.kind == "existence":
                noun = probe.question.removesuffix("?").split()[-1]
                assert (noun in scene.nouns) == (probe.answer == "yes")
    assert answers.count("yes") == answers.count("no")
    assert probes(SCENES["iid"][0], negatives) == probes(SCENES["iid"][0], negatives)


def test_popular_and_adversarial_negatives_are_what_they_say():
    singles, together = cooccurrence()
    for scene in SCENES["trap"][:100]:
        absent = {noun for noun in NOUNS if noun not in scene.nouns}
        popular = [_noun(p) for p in probes(scene, "popular") if _negative(p)]
        assert popular[0] == max(absent, key=lambda n: (singles[n], n == popular[0]))
        questions = [p for p in probes(scene, "adversarial") if p.kind == "existence"]
        positive, negative = _noun(questions[0]), _noun(questions[1])
        assert together[positive, negative] == max(together[positive, n] for n in absent)


def _noun(probe):
    return probe.question.removesuffix("?").split()[-1]


def _negative(probe):
    return probe.kind == "existence" and probe.answer == "no"


@pytest.mark.parametrize("kind", ["attribute", "count", "relation"])
def test_other_probes_agree_with_the_scene(kind):
    for scene in SCENES["iid"][:100]:
        by_noun = {thing.noun: thing for thing in scene.things}
        for probe in (p for p in probes(scene) if p.kind == kind):
            assert _holds(kind, probe.question, by_noun) == (probe.answer == "yes"), probe


def _holds(kind, question, by_noun):
    words = question.removesuffix("?").split()
    if kind == "attribute":
        noun = words[2] if words[2] in by_noun else words[2][:-1]
        return by_noun[noun].colour == words[-1]
    if kind == "count":
        number = {"one": 1, "two": 2, "three": 3}[words[3]]
        noun = words[4] if words[4] in by_noun else words[4][:-1]
        return len(by_noun[noun].cells) == number
    left, right = by_noun[words[2]], by_noun[words[-1]]
    return left.cells[0] % 3 < right.cells[0] % 3


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="split 'traps'.*iid, trap, pair"):
        sample_scene(0, "traps")
    with pytest.raises(ValueError, match="part 'dev'.*train, preference, test"):
        sample_scene(0, part="dev")
    with pytest.raises(ValueError, match="negatives 'hard'"):
        probes(sample_scene(0), "hard")
