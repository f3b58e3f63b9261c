"""Preference pairs: load, format, check, split, save, compare.

A pair is a question about an image with an answer that is preferred and one that is not. Raw pairs
have the columns of RLAIF-V (huggingface.co/datasets/openbmb/RLAIF-V-Dataset); the trainer wants
conversations. Image bytes stay what they were, from the file to the trainer.

    pairs = require_sound(to_conversational(load_raw(track, "train", 500)))
    train, test = split_by_image(pairs, test_share=0.1)
"""

import difflib
import hashlib
import io
import json
from pathlib import Path

import pyarrow.compute
import pyarrow.parquet
from datasets import Dataset, Image
from tqdm.auto import tqdm

from helpers.pairs.images import RAW_COLUMNS, PreferenceDataError, image_groups
from helpers.pairs.rlaifv import stream_pairs
from helpers.world.scenes import Scene, draw

DATA = Path(__file__).resolve().parents[2] / "data"
POCKET_PAIRS = DATA / "pocket" / "preferences.parquet"
PHOTO_PAIRS = DATA / "photos" / "preferences.parquet"


# --- load ------------------------------------------------------------------------------------


def load_raw(track, part="train", count=None, *, seed=0, folder=None):
    """The pairs of a track in the raw columns, the first `count` of them.

    On the pocket track the pictures are drawn from the bundled scenes, and count=None gives all.
    Elsewhere `track.dataset` is streamed, shuffled by `seed` and kept in `folder`, by default
    runs/data, so that the next call needs no network; count=None gives as many as the track plans
    for. A tenth of the images, the same ones always, is kept for part="test".
    Raises PreferenceDataError if there are too few, or the data cannot be had.
    """
    if part not in ("train", "test"):
        raise ValueError(f"unknown part {part!r}: choose 'train' or 'test'")
    if count is not None and count < 1:
        raise ValueError(f"count={count}: ask for at least one pair, or None")
    if track.name == "pocket":
        return _load_pocket(part, count)
    if count is None:
        count = track.train_pairs if part == "train" else track.eval_pairs
    return stream_pairs(track.dataset, part, count, seed, folder)


def load_photos():
    """The bundled photographs with their pairs, in the raw columns."""
    return _dataset(_read_parquet(PHOTO_PAIRS))


def _dataset(table):
    # Without the schema's metadata: it may tell of other columns than these.
    table = table.select(list(RAW_COLUMNS)).replace_schema_metadata(None)
    return Dataset(table).cast_column("image", Image())


def _read_parquet(path):
    try:
        return pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({error})"
    raise PreferenceDataError(f"{path} {reason}: restore it with `git checkout -- data`")


def _load_pocket(part, count):
    table = _read_parquet(POCKET_PAIRS)
    table = table.filter(pyarrow.compute.equal(table["part"], part))
    _enough(table.num_rows, count, f"{POCKET_PAIRS} has")
    table = table.slice(0, count)
    drawn = [
        {"bytes": _drawing(text, i), "path": None}
        for i, text in enumerate(tqdm(table["origin_split"].to_pylist(), "draw", leave=False))
    ]
    return _dataset(table.append_column("image", pyarrow.array(drawn, Image.pa_type)))


def _drawing(origin_split, row):
    """The PNG of the scene in a pocket pair's `origin_split`."""
    try:
        scene = Scene.from_json(json.loads(origin_split)["scene"])
    except (TypeError, KeyError, ValueError) as error:
        raise PreferenceDataError(
            f"row {row} of {POCKET_PAIRS} has no scene in `origin_split` "
            f"({type(error).__name__}): restore the file with `git checkout -- data`"
        ) from error
    file = io.BytesIO()
    draw(scene).save(file, "PNG")
    return file.getvalue()


def _enough(there, count, who):
    if there < (count or 1):
        raise PreferenceDataError(f"{who} {there} pairs, not {count or 'one'}: ask for fewer")


# --- split, save, compare --------------------------------------------------------------------


def split_by_image(dataset, test_share=0.1, seed=0):
    """(train, test): no image is on both sides, the same for the same images, share and seed.

    Rows that share an image, directly or through others, go together; whole groups go to the test
    side until it has `test_share` of the rows. Raises ValueError for a share outside (0, 1),
    PreferenceDataError if a side would be empty or the dataset is a stream.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}: choose a share between 0 and 1, such as 0.1")
    if not isinstance(dataset, Dataset):
        raise PreferenceDataError("a stream cannot be split: load a part of it with load_raw")
    if not {"image", "images"} & set(dataset.column_names):
        raise PreferenceDataError("there is no column `image` or `images` to split by: add it")
    groups = image_groups(dataset)
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    wanted, test = max(1, round(test_share * len(dataset))), set()
    for name in order:
        if len(test) < wanted:
            test |= set(groups[name])
    train = [i for i in range(len(dataset)) if i not in test]
    if not train or not test:
        raise PreferenceDataError(
            f"a side would be empty: {len(dataset)} rows hold {len(groups)} separate images, too "
            f"few for test_share={test_share}: add images, or change the share"
        )
    return dataset.select(train), dataset.select(sorted(test))


def save(dataset, path):
    """Write a dataset to a folder. Raises PreferenceDataError if the folder or disk refuses."""
    try:
        dataset.save_to_disk(path)
    except OSError as error:
        raise PreferenceDataError(
            f"cannot write the pairs to {path} ({error}): make room, or choose another folder"
        ) from error


def load(path):
    """A dataset from a folder that `save` wrote. Raises PreferenceDataError if it cannot."""
    try:
        return Dataset.load_from_disk(path)
    except (OSError, ValueError, KeyError) as error:
        message = f"no readable pairs in {path} ({error}): write them again with save"
        raise PreferenceDataError(message) from error


def word_diff(chosen, rejected):
    """Where two answers differ: (op, words) in reading order, op "same", "chosen" or "rejected"."""
    left, right = chosen.split(), rejected.split()
    pieces = []
    for op, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if op == "equal":
            pieces.append(("same", left[a:b]))
        else:
            pieces += [("chosen", left[a:b]), ("rejected", right[c:d])]
    return [(op, words) for op, words in pieces if words]
