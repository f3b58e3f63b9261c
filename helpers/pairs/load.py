"""Preference pairs: load, split, save, compare.

A pair is a question about an image with an answer that is preferred and one that is not. Raw pairs
have the columns of RLAIF-V (huggingface.co/datasets/openbmb/RLAIF-V-Dataset); the trainer wants
conversations. Image bytes stay what they were, from the file to the trainer.

    pairs = require_sound(to_conversational(load_raw(track, "train", 500)))
    train, test = split_by_image(pairs, test_share=0.1)
"""

import difflib
import json
from pathlib import Path

import pyarrow.compute
import pyarrow.parquet
from datasets import Dataset, Image
from tqdm.auto import tqdm

from helpers.pairs.images import RAW_COLUMNS, digests_of, rows, split_position
from helpers.pairs.rlaifv import hub_pairs
from helpers.setup.storage import PreferenceDataError
from helpers.setup.tracks import Track
from helpers.world.scenes import Scene, png

DATA = Path(__file__).resolve().parents[2] / "data"
POCKET_PAIRS = DATA / "pocket" / "preferences.parquet"
PHOTO_PAIRS = DATA / "photos" / "preferences.parquet"


# --- load ------------------------------------------------------------------------------------


def load_raw(
    track: Track,
    split: str = "train",
    count: int | None = None,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
) -> Dataset:
    """The pairs of a track in the raw columns, the first `count` of them.

    On the pocket track the pictures are drawn from the bundled scenes, and count=None gives all.
    Elsewhere a shard of `track.dataset` is downloaded once, shuffled by `seed`, and the pairs are
    kept in `folder`, by default runs/data, so that the next call needs no network; count=None gives
    as many as the track plans for. A tenth of the images, the same ones always, is held for
    split="test". Raises PreferenceDataError if there are too few, or the data cannot be had.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: choose 'train' or 'test'")
    if count is not None and count < 1:
        raise ValueError(f"count={count}: ask for at least one pair, or None")
    if track.name == "pocket":
        return _load_pocket(split, count)
    if count is None:
        count = track.train_pairs if split == "train" else track.eval_pairs
    return hub_pairs(track.dataset, split, count, seed, folder)


def load_photos() -> Dataset:
    """The bundled photographs with their pairs, in the raw columns."""
    return _dataset(_read_parquet(PHOTO_PAIRS))


def _dataset(table: pyarrow.Table) -> Dataset:
    # Without the schema's metadata: it may tell of other columns than these.
    table = table.select(list(RAW_COLUMNS)).replace_schema_metadata(None)
    return Dataset(table).cast_column("image", Image())


def _read_parquet(path: Path) -> pyarrow.Table:
    try:
        return pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({error})"
    raise PreferenceDataError(f"{path} {reason}: restore it with `git checkout -- data`")


def _load_pocket(split: str, count: int | None) -> Dataset:
    table = _read_parquet(POCKET_PAIRS)
    table = table.filter(pyarrow.compute.equal(table["part"], split))
    if table.num_rows < (count or 1):
        raise PreferenceDataError(
            f"{POCKET_PAIRS} has {table.num_rows} pairs, not {count or 'one'}: ask for fewer"
        )
    table, drawn = table.slice(0, count), []
    for row, text in enumerate(tqdm(table["origin_split"].to_pylist(), "draw", leave=False)):
        try:
            scene = Scene.from_json(json.loads(text)["scene"])
        except (TypeError, KeyError, ValueError) as error:
            raise PreferenceDataError(
                f"row {row} of {POCKET_PAIRS} has no scene in `origin_split` "
                f"({type(error).__name__}): restore the file with `git checkout -- data`"
            ) from error
        drawn.append({"bytes": png(scene), "path": None})
    return _dataset(table.append_column("image", pyarrow.array(drawn, Image.pa_type)))


# --- split, save, compare --------------------------------------------------------------------


def split_by_image(
    dataset: Dataset, test_share: float = 0.1, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """(train, test): no image is on both sides, the same for the same images, share and seed.

    Rows that share an image, directly or through others, go together; whole groups go to the test
    side, in the order of `split_position`, until it has `test_share` of the rows. Raises ValueError
    for a share outside (0, 1), PreferenceDataError if a side would be empty or the dataset is a
    stream.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}: choose a share between 0 and 1, such as 0.1")
    if not isinstance(dataset, Dataset):
        raise PreferenceDataError("a stream cannot be split: load a part of it with load_raw")
    if not {"image", "images"} & set(dataset.column_names):
        raise PreferenceDataError("there is no column `image` or `images` to split by: add it")
    groups = _groups_by_image(dataset)
    wanted, test = max(1, round(test_share * len(dataset))), set()
    for name in sorted(groups, key=lambda name: split_position(name, seed)):
        if len(test) < wanted:
            test |= set(groups[name])
    train = [i for i in range(len(dataset)) if i not in test]
    if not train or not test:
        raise PreferenceDataError(
            f"a side would be empty: {len(dataset)} rows hold {len(groups)} separate images, too "
            f"few for test_share={test_share}: add images, or change the share"
        )
    return dataset.select(train), dataset.select(sorted(test))


def _groups_by_image(dataset: Dataset) -> dict[str, list[int]]:
    """{name: rows}: the rows that are connected by images they share, directly or through others.

    The name is the smallest digest in the group, so the order of the rows does not change it. A
    row without an image is a group of its own.
    """
    parent: dict[str, str] = {}
    firsts: list[str] = []

    def root(digest):
        while parent.setdefault(digest, digest) != digest:
            digest = parent[digest]
        return digest

    for i, row in enumerate(rows(dataset)):
        digests = [digest for digest in digests_of(row) if digest] or [f"row {i}"]
        for digest in digests:
            smaller, larger = sorted((root(digests[0]), root(digest)))
            parent[larger] = smaller
        firsts.append(digests[0])
    groups: dict[str, list[int]] = {}
    for i, digest in enumerate(firsts):
        groups.setdefault(root(digest), []).append(i)
    return groups


def save(dataset: Dataset, path: str | Path) -> None:
    """Write a dataset to a folder. Raises PreferenceDataError if the folder or disk refuses."""
    try:
        dataset.save_to_disk(path)
    except OSError as error:
        raise PreferenceDataError(
            f"cannot write the pairs to {path} ({error}): make room, or choose another folder"
        ) from error


def load(path: str | Path) -> Dataset:
    """A dataset from a folder that `save` wrote. Raises PreferenceDataError if it cannot."""
    try:
        return Dataset.load_from_disk(path)
    except (OSError, ValueError, KeyError) as error:
        message = f"no readable pairs in {path} ({error}): write them again with save"
        raise PreferenceDataError(message) from error


def word_diff(chosen: str, rejected: str) -> list[tuple[str, list[str]]]:
    """Where two answers differ: (op, words) in reading order, op "same", "chosen" or "rejected"."""
    left, right = chosen.split(), rejected.split()
    pieces = []
    for op, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if op == "equal":
            pieces.append(("same", left[a:b]))
        else:
            pieces += [("chosen", left[a:b]), ("rejected", right[c:d])]
    return [(op, words) for op, words in pieces if words]
