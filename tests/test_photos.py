"""The bundled photographs: the parquet files match their sources, and the texts are fit to use."""

import json
from collections import Counter

import pytest
from datasets import Dataset, Image, load_dataset

from tools.build_photos import KINDS, PHOTOS, build

RECORDS = json.loads((PHOTOS / "annotations.json").read_text(encoding="utf-8"))
PAIRS = [(record, pair) for record in RECORDS for pair in record["pairs"]]
PROBES = [(record, probe) for record in RECORDS for probe in record["probes"]]
PREFERENCE_COLUMNS = [
    "ds_name",
    "image",
    "question",
    "chosen",
    "rejected",
    "origin_dataset",
    "origin_split",
    "idx",
    "image_path",
]
PHOTO_IDS = [record["file"] for record in RECORDS]


def read(name, cache):
    return Dataset.from_parquet(str(PHOTOS / name), cache_dir=str(cache))


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    return read("preferences.parquet", tmp_path_factory.mktemp("preferences"))


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    return read("probes.parquet", tmp_path_factory.mktemp("probes"))


def test_columns_are_those_of_the_real_data(preferences, probes):
    assert preferences.column_names == PREFERENCE_COLUMNS
    assert probes.column_names == ["image_path", "question", "answer", "kind"]
    assert isinstance(preferences.features["image"], Image)


def test_load_dataset_decodes_the_images(tmp_path):
    path = str(PHOTOS / "preferences.parquet")
    rows = load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path))
    assert all(max(row["image"].size) <= 320 for row in rows)


def test_preferences_equal_the_annotations(preferences):
    rows = preferences.remove_columns("image").to_list()
    assert len(rows) == len(PAIRS), "run python -m tools.build_photos"
    for idx, (row, (record, pair)) in enumerate(zip(rows, PAIRS, strict=True)):
        told = {"hallucination": json.loads(row["origin_split"])["hallucination"]}
        told |= {field: row[field] for field in ("question", "chosen", "rejected")}
        assert told == pair, "run python -m tools.build_photos"
        assert (row["image_path"], row["idx"]) == (record["file"], idx)


def test_image_bytes_are_those_of_the_files(preferences):
    for row in preferences.cast_column("image", Image(decode=False)):
        assert row["image"]["bytes"] == (PHOTOS / "images" / row["image_path"]).read_bytes()
        assert row["image"]["path"] == row["image_path"]


def test_probes_equal_the_annotations(probes):
    source = [{"image_path": record["file"], **probe} for record, probe in PROBES]
    assert probes.to_list() == source, "run python -m tools.build_photos"


def test_every_image_is_listed_once():
    assert sorted(path.name for path in (PHOTOS / "images").iterdir()) == sorted(PHOTO_IDS)
    assert len(RECORDS) >= 32


@pytest.mark.parametrize("record", RECORDS, ids=PHOTO_IDS)
def test_each_photo_is_credited_and_annotated(record):
    assert record["author"].strip()
    assert record["license"] in ("CC0-1.0", "Public Domain")
    # The builder writes "wikimedia" as the origin of every row.
    assert record["source"].startswith("https://commons.wikimedia.org/")
    assert record["source"] in (PHOTOS / "README.md").read_text(encoding="utf-8")
    assert len(record["pairs"]) >= 1
    assert len(record["probes"]) >= 4


def test_no_text_is_used_twice():
    told = Counter((record["file"], pair["question"]) for record, pair in PAIRS)
    asked = Counter((record["file"], probe["question"]) for record, probe in PROBES)
    answers = Counter((pair["chosen"], pair["rejected"]) for _, pair in PAIRS)
    assert max([*told.values(), *asked.values(), *answers.values()]) == 1
    assert all(pair["chosen"] != pair["rejected"] for _, pair in PAIRS)


def test_length_does_not_give_the_answer_away():
    longer = [len(pair["rejected"]) > len(pair["chosen"]) for _, pair in PAIRS]
    assert 0.4 <= sum(longer) / len(longer) <= 0.7


@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_yes_and_no_are_balanced(kind):
    answers = [probe["answer"] for _, probe in PROBES if kind in ("all", probe["kind"])]
    assert 0.4 <= answers.count("yes") / len(answers) <= 0.6


def workspace(folder, change):
    """A folder with one photograph, its record spoilt by `change`."""
    record = json.loads(json.dumps(RECORDS[0]))
    (folder / "images").mkdir()
    image = PHOTOS / "images" / record["file"]
    (folder / "images" / record["file"]).write_bytes(image.read_bytes())
    change(record, folder)
    (folder / "annotations.json").write_text(json.dumps([record]), encoding="utf-8")
    return folder


def test_builder_builds_a_sound_folder(tmp_path):
    build(workspace(tmp_path, lambda record, folder: None))
    built = Dataset.from_parquet(str(tmp_path / "probes.parquet"), cache_dir=str(tmp_path))
    assert len(built) == len(RECORDS[0]["probes"])


def cut_off(record, folder):
    path = folder / "images" / record["file"]
    path.write_bytes(path.read_bytes()[:2000])


FAULTS = {
    r"author is missing or empty": lambda r, _: r.update(author=" "),
    r"source is missing or empty": lambda r, _: r.pop("source"),
    r"file does not open": cut_off,
    r"file does not open as an image;": lambda r, f: (f / "images" / r["file"]).unlink(),
    r"pairs is missing or empty": lambda r, _: r.update(pairs=[]),
    r"pairs\[0\]: rejected is missing": lambda r, _: r["pairs"][0].update(rejected=""),
    r"pairs\[0\]: chosen and rejected are the same": lambda r, _: r["pairs"][0].update(
        rejected=r["pairs"][0]["chosen"]
    ),
    r"probes\[1\]: answer is 'maybe'": lambda r, _: r["probes"][1].update(answer="maybe"),
    r"probes\[1\]: kind is 'colour'": lambda r, _: r["probes"][1].update(kind="colour"),
}


@pytest.mark.parametrize("message", FAULTS)
def test_builder_names_the_file_and_the_field(message, tmp_path):
    folder = workspace(tmp_path, FAULTS[message])
    with pytest.raises(ValueError, match=rf"{RECORDS[0]['file']}: {message}"):
        build(folder)
