"""Probes of all tracks have one form, true labels, balance, and groups that are pictures."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest

from helpers.evaluation import amber
from helpers.evaluation import probes as probing
from helpers.evaluation.probes import PHOTOS, amber_queries, photo_probes, probes_for
from helpers.pairs.images import image_bytes, image_digest, rows
from helpers.setup.storage import PreferenceDataError
from helpers.vlm import pocket
from helpers.vlm.answers import yes_no_answers
from helpers.world import scenes as world
from tests.test_hub_pope import NAME, pope_files

POCKET, T4 = SimpleNamespace(name="pocket"), SimpleNamespace(name="t4")
COLUMNS = ["image", "question", "label", "kind", "group"]


@pytest.fixture
def pope(hub):
    hub.add("datasets", NAME, pope_files(6))
    return hub


@pytest.fixture(params=("pocket", "t4", "ampere"))
def probes(request, pope, tmp_path):
    return probes_for(SimpleNamespace(name=request.param), 24, folder=tmp_path)


def digests(dataset):
    return [image_digest(row["image"]) for row in rows(dataset)]


# --- every track -------------------------------------------------------------------------------


def test_one_form_on_every_track(probes):
    assert probes.column_names == COLUMNS
    assert probes["kind"][:] == [kind for kind in world.NEGATIVES for _ in range(24)]
    assert all(text.endswith("?") for text in probes["question"])
    assert probes[0]["image"].width > 0
    counts = Counter(zip(probes["kind"], probes["label"], strict=True))
    assert set(probes["label"]) == {"yes", "no"} and set(counts.values()) == {12}  # half are true


def test_a_group_is_a_picture_and_every_kind_asks_about_the_same(probes):
    pairs = set(zip(probes["group"], digests(probes), strict=True))
    assert len(pairs) == len(set(probes["group"])) == len({digest for _, digest in pairs}) > 1
    groups = [probes["group"][i : i + 24] for i in range(0, 72, 24)]
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups[0])) <= 6, "the questions of a picture do not stand together"


def test_a_model_is_asked_with_the_columns_as_they_are(probes, untrained, processor):
    some = probes.select(range(0, 72, 9))
    if "scene" not in some["group"][0]:
        some = some.map(lambda row: {"image": row["image"].resize((96, 96))})
    said = yes_no_answers(untrained, processor, some["image"], some["question"])
    assert len(said) == 8 and set(said) <= {"yes", "no"}


@pytest.mark.parametrize("track", (POCKET, T4))
@pytest.mark.parametrize("count", (0, -3))
def test_at_least_one_question(track, count):
    with pytest.raises(ValueError, match=f"count={count}: ask for at least one"):
        probes_for(track, count)


# --- pocket ------------------------------------------------------------------------------------


def test_pocket_probes_are_those_of_the_world():
    scenes = world.sample_scenes(9, seed=5)
    found = probes_for(POCKET, 24, seed=5)
    for kind in world.NEGATIVES:
        expected = [
            (probe.question, probe.answer, image_digest(world.png(scene)))
            for scene in scenes
            for probe in world.probes(scene, kind)
            if probe.kind == "existence"
        ]
        some = found.filter(lambda k, kind=kind: k == kind, input_columns="kind")
        said = zip(some["question"], some["label"], digests(some), strict=True)
        assert list(said) == expected[:24]


@pytest.mark.parametrize("count", (1, 5, 31))
def test_pocket_probes_are_as_many_as_asked_for_and_begin_alike(count):
    few, more = probes_for(POCKET, count, seed=1), probes_for(POCKET, 60, seed=1)
    assert len(few) == 3 * count
    assert few["question"][:count] == more["question"][:count]
    assert digests(few) == digests(probes_for(POCKET, count, seed=1))
    assert not {*digests(few)} & {*digests(probes_for(POCKET, count, seed=2))}


def test_the_pocket_model_knows_these_pictures():
    """Drawn as it learned them: it answers almost all of the easy questions."""
    model, processor = pocket.load()
    found = probes_for(POCKET, 60).select(range(60))
    said = yes_no_answers(model, processor, found["image"], found["question"])
    assert sum(a == b for a, b in zip(said, found["label"], strict=True)) > 54


# --- POPE --------------------------------------------------------------------------------------


def test_pope_ignores_the_seed(pope, tmp_path):
    one, other = (probes_for(T4, 12, seed=seed, folder=tmp_path) for seed in (0, 3))
    assert one[:]["question"] == other[:]["question"]


# --- photographs -------------------------------------------------------------------------------


def test_photo_probes_are_the_annotations():
    found = photo_probes()
    records = json.loads((PHOTOS / "annotations.json").read_text(encoding="utf-8"))
    expected = [
        (record["file"], probe["question"], probe["answer"], probe["kind"])
        for record in records
        for probe in record["probes"]
    ]
    names = ("group", "question", "label", "kind")
    assert list(zip(*(found[name] for name in names), strict=True)) == expected
    assert found.column_names == COLUMNS and len(found) == 160
    for row in rows(found.select(range(0, 160, 20))):
        assert image_bytes(row["image"]) is not None


@pytest.mark.parametrize(
    ("gone", "message"),
    (("probes.parquet", "probes.parquet cannot be read"), ("images/cat.jpg", "cat.jpg is missing")),
)
def test_photographs_that_are_gone_can_be_restored(tmp_path, monkeypatch, gone, message):
    shutil.copytree(PHOTOS, tmp_path / "photos")
    (tmp_path / "photos" / gone).unlink()
    monkeypatch.setattr(probing, "PHOTOS", tmp_path / "photos")
    with pytest.raises(PreferenceDataError, match=f"{message}.*git checkout -- data"):
        photo_probes()


# --- AMBER -------------------------------------------------------------------------------------

QUERIES = [
    (1, "AMBER_1.jpg", "Describe this image."),
    (2, "AMBER_2.jpg", "Describe this image."),
    (3, "AMBER_1.jpg", "Is the sky sunny in this image?"),
    (4, "AMBER_1.jpg", "Is there a dog in this image?"),
    (5, "AMBER_2.jpg", "Is there direct contact between the cup and wall?"),
]
TRUTHS = [
    {"type": "generative", "truth": ["sky"], "hallu": ["dog"]},
    {"type": "generative", "truth": ["dog"], "hallu": []},
    {"type": "discriminative-attribute-state", "truth": "yes"},
    {"type": "discriminative-hallucination", "truth": "no"},
    {"type": "relation", "truth": "no"},
]


def amber_files(folder):
    """Its files in small, the pictures in a folder of their own as an archive may have them."""
    queries = [dict(zip(("id", "image", "query"), row, strict=True)) for row in QUERIES]
    (folder / "query").mkdir()
    (folder / "query" / "query_all.json").write_text(json.dumps(queries))
    truths = [{"id": number, **truth} for number, truth in enumerate(TRUTHS, 1)]
    (folder / "annotations.json").write_text(json.dumps(truths))
    (folder / "relation.json").write_text(json.dumps({"sky": [], "dog": ["puppy"]}))
    (folder / "safe_words.txt").write_text("image\n")
    (folder / "image").mkdir()
    for number, name in enumerate(("bison.jpg", "cat.jpg"), 1):
        shutil.copy(PHOTOS / "images" / name, folder / "image" / f"AMBER_{number}.jpg")
    return folder


@pytest.fixture
def folder(tmp_path):
    return amber_files(tmp_path)


def test_amber_questions_have_the_same_form_and_their_ids(folder):
    probes, descriptions = amber_queries(folder)
    assert probes.column_names == [*COLUMNS, "id"]
    assert [row[1:] for row in zip(*(probes[c] for c in probes.column_names), strict=True)] == [
        ("Is the sky sunny in this image?", "yes", "state", "AMBER_1.jpg", 3),
        ("Is there a dog in this image?", "no", "existence", "AMBER_1.jpg", 4),
        ("Is there direct contact between the cup and wall?", "no", "relation", "AMBER_2.jpg", 5),
    ]
    said = dict(zip(probes["id"], [label.title() for label in probes["label"]], strict=True))
    scored = amber.discriminative(said, amber.load(folder))["all"]
    assert (scored.n, scored.accuracy) == (3, 1.0)  # answers by id can be scored
    assert descriptions["id"][:] == [1, 2]
    assert set(descriptions["question"]) == {"Describe this image."}
    for row in [*rows(probes), *rows(descriptions)]:
        name = "bison.jpg" if row["image"]["path"].endswith("AMBER_1.jpg") else "cat.jpg"
        assert image_bytes(row["image"]) == (PHOTOS / "images" / name).read_bytes()


@pytest.mark.parametrize("gone", (*probing.AMBER_FILES, "image/AMBER_2.jpg"))
def test_missing_amber_files_are_named_with_where_to_get_them(folder, gone):
    (folder / gone).unlink()
    with pytest.raises(PreferenceDataError) as caught:
        amber_queries(folder)
    sentence = str(caught.value)
    assert gone.split("/")[-1] in sentence and "is missing" in sentence
    assert "github.com/junyangwang0410/AMBER" in sentence and "Image Download" in sentence


def test_a_query_without_a_truth_is_named(folder):
    path = folder / "annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
    with pytest.raises(ValueError, match="entry 5: annotations.json has no id 5"):
        amber_queries(folder)
