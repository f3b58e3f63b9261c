"""Formatting on Arrow columns: the images stay where they are, the texts come out as by hand."""

import copy
import gc
import io
import json
import pickle
from itertools import islice

import numpy as np
import pyarrow
import pytest
from datasets import Dataset, Image, IterableDataset, concatenate_datasets
from PIL import Image as PILImage
from PIL import ImageDraw

from helpers.pairs import format as formatting
from helpers.pairs.check import check_pairs
from helpers.pairs.format import CONVERSATIONAL, conversation, to_conversational
from helpers.pairs.images import rows
from helpers.pairs.load import load, save, split_by_image
from helpers.setup.storage import PreferenceDataError

TEXTS = ("question", "chosen", "rejected")


def encoded(picture, *args, **kwargs):
    file = io.BytesIO()
    picture.save(file, *args, **kwargs)
    return file.getvalue()


def turned():
    exif = PILImage.Exif()
    exif[PILImage.ExifTags.Base.Orientation] = 6
    exif[PILImage.ExifTags.Base.ImageDescription] = "taken on its side"
    return encoded(PICTURE, "JPEG", quality=97, exif=exif)


PICTURE = PILImage.new("RGB", (60, 40), "navy")
ImageDraw.Draw(PICTURE).ellipse((5, 5, 50, 30), "orange")
FILES = {
    "JPEG": encoded(PICTURE, "JPEG", quality=95, progressive=True, comment=b"not pixels"),
    "JPEG with EXIF": turned(),
    "CMYK JPEG": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "PNG with alpha": encoded(PICTURE.convert("RGBA"), "PNG"),
    "PNG with a palette": encoded(PICTURE.convert("P"), "PNG", optimize=True),
    "PNG of 16 bits": encoded(
        PILImage.fromarray(np.arange(600, dtype="u2").reshape(20, 30)), "PNG"
    ),
    "moving GIF": encoded(
        PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(90)], duration=80
    ),
    "WebP": encoded(PICTURE, "WEBP", lossless=True),
    "cut off": encoded(PICTURE, "JPEG")[:300],
    "no picture": b"\x00\xff hello \r\n",
}


def raw_row(i, image):
    words = {
        "question": f"What is {i}?",
        "chosen": f"A dog, {i}.",
        "rejected": f'A "cat"\n\\ {i}/.',
    }
    return {"image": image, **words, "idx": i}


def raw(images):
    """A Dataset whose images are as given: no encoder sees them."""
    plain = [raw_row(i, None) for i in range(len(images))]
    table = pyarrow.Table.from_pylist(plain).drop_columns("image")
    table = table.append_column("image", pyarrow.array(images, Image.pa_type))
    return Dataset(table).cast_column("image", Image())


def files(count=None):
    data = list(FILES.values())
    data = [data[i % len(data)] for i in range(count or len(data))]
    return raw([{"bytes": one, "path": None} for one in data])


def mapped(dataset, folder):
    dataset.save_to_disk(folder)
    return Dataset.load_from_disk(folder)


def stored(dataset):
    return [image["bytes"] for row in rows(dataset) for image in row["images"]]


def by_hand(row):
    return {**conversation(row), "images": [row["image"]]}


def bare(dataset):
    """The rows of a raw Dataset, images as {"bytes", "path"}."""
    return list(dataset.with_format(None).cast_column("image", Image(decode=False)))


@pytest.fixture
def no_pictures(monkeypatch):
    """Neither `datasets` nor PIL may open or write a picture."""

    def refuse(*args, **kwargs):
        raise AssertionError("an image was decoded or encoded")

    for owner, name in (
        (Image, "decode_example"), (PILImage, "open"), (PILImage.Image, "save"),
        (PILImage.Image, "load"), (PILImage, "frombytes"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, refuse)


# --- the images ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ("memory", "disk"))
def test_bytes_survive_formatting_selecting_splitting_and_saving(where, tmp_path, no_pictures):
    dataset = files(40) if where == "memory" else mapped(files(40), tmp_path / "raw")
    expected = list(FILES.values()) * 4
    pairs = to_conversational(dataset)
    assert stored(pairs) == expected
    assert stored(pairs.select([7, 7, 0])) == [expected[7], expected[7], expected[0]]
    train, test = split_by_image(pairs, 0.3)
    assert sorted(stored(train) + stored(test)) == sorted(expected)
    assert not set(stored(train)) & set(stored(test))
    for side in (train, test):
        save(side, tmp_path / "side")
        assert stored(load(tmp_path / "side")) == stored(side)
        side.to_parquet(tmp_path / "side.parquet")
        again = Dataset.from_parquet(str(tmp_path / "side.parquet"), cache_dir=str(tmp_path / "c"))
        assert stored(again) == stored(side)


def test_pictures_come_out_as_they_would_have():
    pairs = to_conversational(files(6))
    for before, after in zip(files(6), pairs, strict=True):
        assert np.array_equal(before["image"], after["images"][0])
    assert pairs[1]["images"][0].size == (40, 60)  # turned as its EXIF data says


@pytest.mark.parametrize("where", ("memory", "disk"))
def test_no_image_is_copied(where, tmp_path):
    dataset = files(30) if where == "memory" else mapped(files(30), tmp_path / "raw")

    def places(arrays):
        return [array.field("bytes").buffers()[2].address for array in arrays]

    for form in (dataset, dataset.select(range(4, 9)), dataset.shuffle(seed=0)):
        before = places(form.data["image"].chunks)
        after = places(chunk.values for chunk in to_conversational(form).data["images"].chunks)
        assert after == before


def test_memory_is_flat_in_the_rows_and_in_the_size_of_the_images(tmp_path):
    def held(count, size):
        images = [{"bytes": bytes(size), "path": None}] * count
        dataset = mapped(raw(images), tmp_path / f"{count}-{size}")
        gc.collect()
        before = pyarrow.total_allocated_bytes()
        pairs = to_conversational(dataset)
        assert len(pairs) == count and pairs.cache_files
        return pyarrow.total_allocated_bytes() - before

    assert held(200, 20_000) == held(200, 100)
    # Two offsets of 4 bytes and two bits for whether there is one, not the 200 bytes of text.
    assert held(4000, 100) < 4000 * 10


IMAGES = [
    {"bytes": b"both", "path": "there.jpg"}, {"bytes": None, "path": "there.jpg"},
    {"bytes": None, "path": "/nowhere.jpg"}, {"bytes": None, "path": None}, None,
    {"bytes": b"", "path": None}, {"bytes": b"", "path": "there.jpg"}, {"bytes": b"x", "path": ""},
]  # fmt: skip
WANTED = [
    {"bytes": b"both", "path": None}, IMAGES[1], IMAGES[2], None, None, IMAGES[5], IMAGES[5],
    {"bytes": b"x", "path": None},
]  # fmt: skip


def test_missing_images_and_paths(tmp_path, monkeypatch):
    """A path is kept only where there are no bytes: `datasets` would read a file of that name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jpg").write_bytes(b"another image")
    dataset = raw(IMAGES)
    for form in (dataset, Dataset(dataset.data.table.slice(0, 8)), dataset.to_iterable_dataset()):
        assert [row["images"] for row in rows(to_conversational(form))] == [[w] for w in WANTED]
    assert [row["images"] for row in rows(to_conversational(dataset.select([4, 0])))] == [
        [None],
        [WANTED[0]],
    ]


@pytest.mark.parametrize(
    "image, wanted",
    (
        (pyarrow.array(["a.jpg", None]), [{"bytes": None, "path": "a.jpg"}, None]),
        (pyarrow.array([b"a", None]), [{"bytes": b"a", "path": None}, None]),
        (pyarrow.array([b"a", None], "large_binary"), [{"bytes": b"a", "path": None}, None]),
        (pyarrow.array([{"bytes": b"a"}, None]), [{"bytes": b"a", "path": None}, None]),
        (pyarrow.array([None, None]), [None, None]),
    ),
    ids=("paths", "bytes", "large", "half a struct", "nothing"),
)
def test_other_columns_that_hold_images(image, wanted):
    table = files(2).data.table.drop_columns("image").append_column("image", image)
    dataset = Dataset(table.replace_schema_metadata(None))
    for form in (dataset, dataset.to_iterable_dataset()):
        assert [row["images"][0] for row in rows(to_conversational(form))] == wanted


@pytest.mark.parametrize("image", ([3], [[{"bytes": b"a"}]]), ids=("numbers", "lists"))
def test_a_column_that_holds_no_images_is_named(image):
    table = files(1).data.table.drop_columns("image").append_column("image", [image])
    dataset = Dataset(table.replace_schema_metadata(None))
    for form in (dataset, dataset.to_iterable_dataset()):
        with pytest.raises(PreferenceDataError, match="`image` holds .* not one image a row"):
            list(to_conversational(form))


# --- the texts -------------------------------------------------------------------------------

EVERY_CHARACTER = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
ODD_TEXTS = [
    EVERY_CHARACTER, "", " ", "null", "3", '"quoted"', '{"type": "image"}', "[1, 2]", "\\", "\\n",
    "\n", "\x00", "</script>", "<image>", "a\u2028b", "e\u0301", "👩‍👩‍👧", None,
]  # fmt: skip


def test_every_text_comes_out_as_it_went_in():
    image = [{"bytes": b"x", "path": None}] * len(ODD_TEXTS)
    table = raw(image).data.table
    for column in TEXTS:
        place = table.column_names.index(column)
        table = table.set_column(place, column, pyarrow.array(ODD_TEXTS, "string"))
    dataset = Dataset(table)
    for form in (dataset, dataset.to_iterable_dataset()):
        formatted = list(rows(to_conversational(form)))
        assert formatted == [by_hand(row) for row in bare(dataset)]
        assert [row["prompt"][0]["content"][1]["text"] for row in formatted] == ODD_TEXTS


def test_each_part_is_stored_as_json_with_its_own_keys_and_no_others():
    content = to_conversational(files(1)).data["prompt"].chunk(0).values.field("content")
    assert [json.loads(part) for part in content.values.storage.to_pylist()] == [
        {"type": "image"},
        {"type": "text", "text": "What is 0?"},
    ]


@pytest.mark.parametrize(
    "question", (3, 0.5, True, None, ["a", "b"], [{"role": "user", "content": "Hello"}])
)
def test_what_is_no_text_stays_for_the_check_to_find(question):
    table = files(2).data.table.drop_columns("question")
    dataset = Dataset(table.append_column("question", pyarrow.array([question] * 2)))
    for form in (dataset, dataset.to_iterable_dataset()):
        pairs = to_conversational(form)
        assert next(rows(pairs))["prompt"][0]["content"][1]["text"] == question
        assert {p.code for p in check_pairs(pairs)} & {"not_text", "none_text"}


def test_a_value_that_json_cannot_hold_is_named():
    table = files(1).data.table.drop_columns("chosen")
    dataset = Dataset(table.append_column("chosen", pyarrow.array([b"\xff\xfe"])))
    with pytest.raises(PreferenceDataError, match="`chosen` holds binary"):
        to_conversational(dataset)


# --- tables of every shape -------------------------------------------------------------------

SHAPES = {
    "whole": lambda d: d,
    "range": lambda d: d.select(range(5, 17)),
    "some": lambda d: d.select([19, 3, 3, 8]),
    "shuffled": lambda d: d.shuffle(seed=1),
    "part of the shuffled": lambda d: d.shuffle(seed=1).select(range(4, 9)).select([2, 0]),
    "filtered": lambda d: d.filter(lambda i: i % 3 == 0, input_columns="idx"),
    "none": lambda d: d.select([]),
    "filtered to none": lambda d: d.filter(lambda i: False, input_columns="idx"),
    "concatenated": lambda d: concatenate_datasets([d.select(range(3)), d.select(range(8, 12))]),
    "pieces": lambda d: concatenate_datasets([d.select([4, 2]), d.shuffle(seed=0)]),
    "side of a split": lambda d: d.train_test_split(0.4, seed=0)["test"],
    "small chunks": lambda d: Dataset(
        pyarrow.concat_tables([d.data.table.slice(i, 1 + i % 3) for i in range(0, 18, 2)])
    ),
    "columns of our own names": lambda d: d.add_column("prompt", ["p"] * 20).add_column(
        "images", [[1]] * 20
    ),
    "formatted": lambda d: d.with_format("numpy", columns=["idx"]),
    "columns in another order": lambda d: d.select_columns(["rejected", "image", *TEXTS[:2]]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("where", ("memory", "disk"))
def test_tables_of_every_shape(shape, where, tmp_path):
    dataset = files(20) if where == "memory" else mapped(files(20), tmp_path / "raw")
    dataset = SHAPES[shape](dataset)
    pairs = to_conversational(dataset)
    expected = [by_hand({c: row[c] for c in ("image", *TEXTS)}) for row in bare(dataset)]
    assert list(rows(pairs)) == expected
    assert pairs.features == CONVERSATIONAL and pairs.format["type"] is None
    assert pairs.column_names == list(CONVERSATIONAL)
    if expected:
        stream = dataset.with_format(None).to_iterable_dataset()
        assert list(rows(to_conversational(stream))) == expected


def test_only_texts_are_cached_once_and_beside_the_data(tmp_path):
    dataset = mapped(raw([{"bytes": bytes(10_000), "path": None}] * 50), tmp_path / "raw")
    before = set((tmp_path / "raw").iterdir())
    pairs = to_conversational(dataset)
    (file,) = set((tmp_path / "raw").iterdir()) - before
    assert file.stat().st_size < 50 * 1000
    again = to_conversational(dataset)
    assert set((tmp_path / "raw").iterdir()) == before | {file}
    assert again._fingerprint == pairs._fingerprint
    assert to_conversational(files(3)).cache_files == []  # in memory
    names = {to_conversational(d)._fingerprint for d in (dataset, dataset.select([1]), files(2))}
    assert len(names) == 3


def test_worker_processes_copies_and_pickles_give_the_same_pairs(tmp_path):
    dataset = mapped(files(10), tmp_path / "raw").shuffle(seed=3)
    pairs = to_conversational(dataset)
    before = pyarrow.total_allocated_bytes()
    again = copy.deepcopy(pairs)
    assert pyarrow.total_allocated_bytes() == before
    for other in (to_conversational(dataset, 2), again, pickle.loads(pickle.dumps(pairs))):
        assert list(rows(other)) == list(rows(pairs))


# --- streams ---------------------------------------------------------------------------------


def questions(stream):
    return [row["prompt"][0]["content"][1]["text"] for row in rows(stream)]


@pytest.mark.parametrize("stop", (1, 4, 5, 8, 10))
def test_a_stream_goes_on_where_it_was(stop, monkeypatch):
    monkeypatch.setattr(formatting, "STREAM_BATCH", 4)

    def start():
        return to_conversational(files(11).to_iterable_dataset(num_shards=2)).decode(False)

    stream = start()
    seen = list(islice(stream, stop))
    rest = start()
    rest.load_state_dict(stream.state_dict())
    assert seen + list(rest) == list(start())


def test_a_stream_can_be_shuffled_and_filtered_before_and_after():
    stream = files(30).to_iterable_dataset(num_shards=3)
    every = sorted(questions(to_conversational(stream)))
    before = to_conversational(stream.decode(False).shuffle(seed=1, buffer_size=8))
    after = to_conversational(stream).shuffle(seed=1, buffer_size=8)
    assert sorted(questions(before)) == sorted(questions(after)) == every
    few = stream.decode(False).filter(lambda i: i % 10 == 0, input_columns="idx")
    assert questions(to_conversational(few)) == [f"What is {i}?" for i in (0, 10, 20)]


@pytest.mark.parametrize("change", ("filter", "map", "cast", "remove", "rename", "shuffle", "take"))
def test_a_stream_of_decoded_rows_is_refused(change):
    """From rows with pictures `datasets` would make tables, encoding each picture again."""
    stream = files(4).to_iterable_dataset()
    stream = {
        "filter": lambda: stream.filter(lambda row: True),
        "map": lambda: stream.map(lambda row: row),
        "cast": lambda: stream.map(lambda row: row).cast(stream.features),
        "remove": lambda: stream.remove_columns("idx"),
        "rename": lambda: stream.rename_column("idx", "number"),
        "shuffle": lambda: stream.decode(num_threads=2).shuffle(seed=0, buffer_size=3),
        "take": lambda: stream.decode(num_threads=2).take(2),
    }[change]()
    with pytest.raises(PreferenceDataError, match=r"\.decode\(False\)"):
        list(to_conversational(stream))


def test_streams_of_tables_of_functions_and_of_a_generator_keep_the_bytes(tmp_path, no_pictures):
    def give():
        yield from bare(raw([{"bytes": one, "path": "x.jpg"} for one in FILES.values()]))

    stream = mapped(files(), tmp_path / "raw").to_iterable_dataset(num_shards=1)
    for form in (
        stream,
        files().to_iterable_dataset(),
        stream.decode(False).remove_columns("idx"),
        stream.decode(False).filter(lambda row: True),
        IterableDataset.from_generator(give),
    ):
        pairs = to_conversational(form)
        assert isinstance(pairs, IterableDataset)
        assert stored(pairs) == list(FILES.values())


@pytest.mark.parametrize("ahead", (0, 2))
def test_a_stream_gives_pictures_when_a_trainer_asks(ahead):
    """load_dataset decodes the images of a remote stream ahead, in threads."""
    stream = files(3).to_iterable_dataset()
    pairs = to_conversational(stream.decode(num_threads=ahead) if ahead else stream)
    assert list(pairs) == list(to_conversational(files(3)))
    assert isinstance(next(iter(pairs))["images"][0], PILImage.Image)


@pytest.mark.parametrize("column", ("image", "question", "chosen", "rejected"))
def test_a_missing_raw_column_is_named(column):
    for form in (files(2), files(2).to_iterable_dataset()):
        with pytest.raises(PreferenceDataError, match=f"`{column}`"):
            to_conversational(form.remove_columns(column))


def test_a_transform_is_not_dropped_without_a_word():
    with pytest.raises(PreferenceDataError, match="has a transform"):
        to_conversational(files(2).with_transform(lambda rows: rows))


def test_a_stream_from_a_generator_without_features(no_pictures):
    def give():
        yield from bare(raw([{"bytes": one, "path": "x.jpg"} for one in FILES.values()]))

    pairs = to_conversational(IterableDataset.from_generator(give))
    assert stored(pairs) == list(FILES.values())
