"""Real data, streamed and kept: the first pairs of a Hub dataset after a seeded shuffle.

    pairs = stream_pairs("openbmb/RLAIF-V-Dataset", "train", 1000)   # reads about 1,600 pairs
    pairs = stream_pairs("openbmb/RLAIF-V-Dataset", "train", 1000)   # no request at all

Rows are read in a fixed order, the shards as the seed shuffles them, and kept as they come. What is
returned is a shuffle buffer played over the kept rows, so the n-th pair depends on the dataset, its
revision and the seed, never on how often the connection broke or how many pairs were asked for.

Why not `load_dataset(..., streaming=True)`: `datasets` 5.2 reads a whole row group before it gives
the first row, and after a break reads it again. A shard written by pandas is one row group, and
shards of RLAIF-V have 1 GB. Here `datasets` finds the files and helpers/pairs/shards.py reads them.
"""

import hashlib
import json
import random
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow
from datasets import Dataset, Features, Value, concatenate_datasets
from filelock import FileLock, Timeout
from huggingface_hub import constants
from tqdm.auto import tqdm

from helpers.pairs.images import RAW_COLUMNS, PreferenceDataError, image_digest
from helpers.pairs.rawform import RAW
from helpers.pairs.shards import finished, tables
from helpers.pairs.sources import Source, find_source, fingerprint
from helpers.setup.storage import write_whole

FOLDER = Path(__file__).resolve().parents[2] / "runs" / "data"
BUFFER = 500  # rows in the shuffle buffer
ONE_IN = 10  # this share of the images is for testing

KEPT = Features({**RAW, "test": Value("bool")})


def stream_pairs(name, part, count, seed=0, folder=None):
    """The first `count` pairs of part "train" or "test" in the raw columns, as a Dataset.

    name: a dataset on the Hub, or a folder of one, with parquet files: raw as RLAIF-V, or
    conversations of one question about one image as trl-lib/rlaif-v. Only its "train" split is
    read: a tenth of the images, by their bytes, are our test part, whatever other splits share.
    folder: kept pairs go there, by default to runs/data; the images stay on disk, mapped.
    Raises ValueError for another part or a count below 1, PreferenceDataError with what to do for
    all else; what was read is kept, and the next call goes on.
    """
    if part not in ("train", "test") or count < 1:
        raise ValueError(f"part={part!r}, count={count}: ask for 1 or more of 'train' or 'test'")
    name, store = _full(name), store_of(name, seed, folder)
    with _alone(store):
        source = read_source(store, name, seed) or _new_source(store, name, seed)
        kept = _kept(store)
        if len(kept.order(part, source)) < count:
            _read_more(kept, source, store, part, count)
    if not kept.tests:
        raise PreferenceDataError(f"the split `train` of {name} holds no pairs: choose another")
    order = kept.order(part, source)
    if len(order) < count:
        raise PreferenceDataError(
            f"the {part} part of {name} has {len(order)} pairs, not {count}: ask for fewer"
        )
    rows = concatenate_datasets(kept.pieces).select(order[:count])
    return rows.select_columns(list(RAW_COLUMNS))


def store_of(name, seed=0, folder=None):
    """The folder that keeps the pairs of a dataset: one for each name, server and seed."""
    name = _full(name)
    label = name.replace("/", "--")
    if Path(name).is_dir():
        label = f"{Path(name).name}-{fingerprint(Path(name))[:8]}"
    elif constants.ENDPOINT != "https://huggingface.co":
        label += "@" + constants.ENDPOINT.split("://")[-1].replace(":", "-").replace("/", "-")
    return Path(folder or FOLDER) / label / f"seed-{seed}"


def _full(name):
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def source_of(name, seed=0, folder=None):
    """Revision and licence of the pairs that `stream_pairs` has kept: what a card should name."""
    source = read_source(store_of(name, seed, folder), _full(name), seed)
    if source is None:
        raise PreferenceDataError(f"no pairs of {name} are kept yet: load some with stream_pairs")
    return source


def read_source(store, name, seed=0):
    """The Source that a store was filled from, or None for a new one."""
    path = store / "source.json"
    if not path.exists():
        return None
    try:
        source = Source(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise PreferenceDataError(f"{path} cannot be read ({error}): remove {store}") from None
    if (source.name, source.seed) != (name, seed):
        raise PreferenceDataError(
            f"{store} holds {source.name} with seed {source.seed}, not {name} with seed {seed}: "
            "choose another folder, or remove that one"
        )
    return source


def _new_source(store, name, seed):
    """Ask once; the revision found then stays, until the store is removed."""
    source = find_source(name, seed)
    licence = source.licence or "no licence stated"
    print(f"{name}, revision {source.revision[:8]}, {licence}: pairs are kept in {store}")
    write_whole(store / "source.json", json.dumps(asdict(source), indent=1).encode())
    return source


@contextmanager
def _alone(store):
    """One process at a time: a second notebook waits, then finds the pairs there."""
    digest = hashlib.sha256(str(store.resolve()).encode()).hexdigest()[:16]
    # Not in the store: a Drive knows no locks.
    lock = FileLock(Path(tempfile.gettempdir()) / f"pairs-{digest}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"another process is reading into {store}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# --- reading and keeping -----------------------------------------------------------------------


@dataclass
class Kept:
    """The rows of a store, in the order of reading, and the (file, row) where reading goes on."""

    pieces: list = field(default_factory=list)  # Datasets, mapped from disk
    tests: list = field(default_factory=list)  # for each row, whether it is for testing
    place: tuple = (0, 0)

    def add(self, path):
        """A file that `_path` named."""
        number, file, row = map(int, path.stem.split("_"))
        folder = path.parent.parent
        if number != len(self.pieces):
            raise PreferenceDataError(
                f"{path.parent} lacks piece {len(self.pieces)} of the pairs: remove {folder}"
            )
        try:
            piece = Dataset.from_file(str(path))
            self.tests += piece.data["test"].to_pylist()
        except (OSError, ValueError, KeyError) as error:
            raise PreferenceDataError(f"{path} is damaged ({error}): remove {folder}") from None
        self.pieces.append(piece)
        self.place = (file, row)

    def order(self, part, source):
        """Positions of a part's rows, as far as the shuffle buffer lets them out."""
        complete = self.place[0] == len(source.files)
        order = shuffled(len(self.tests), complete, source.seed)
        return [row for row in order if self.tests[row] == (part == "test")]


def _path(store, number, place):
    """The n-th file of rows; its name says where reading goes on, so there is no other state."""
    return store / "rows" / "{:06}_{:04}_{:08}.arrow".format(number, *place)


def _kept(store):
    kept = Kept()
    for path in sorted((store / "rows").glob("[0-9]*_*_*.arrow")):
        kept.add(path)
    return kept


def shuffled(total, complete, seed):
    """Rows 0 to total-1 through a shuffle buffer, which keeps its last ones until it is complete.

    More rows only add to the end: what came out for a smaller total comes out again.
    """
    rng, buffer = random.Random(seed), list(range(min(BUFFER, total)))
    for row in range(BUFFER, total):
        slot = int(rng.random() * BUFFER)
        yield buffer[slot]
        buffer[slot] = row
    if complete:
        yield from sorted(buffer, key=lambda _: rng.random())


def _read_more(kept, source, store, part, count):
    """Read and keep rows until there are `count` pairs of a part, or no more."""
    share = 1 / ONE_IN if part == "test" else 1 - 1 / ONE_IN
    total, blocks = BUFFER + round(count / share), store / "blocks"
    bar = _Bar(desc=source.name, total=total, initial=len(kept.tests), unit=" pairs", leave=False)
    try:
        with bar:
            for place, table in tables(source, kept.place, blocks, bar.on_bytes):
                path = _path(store, len(kept.pieces), place)
                write_whole(path, _as_bytes(table))
                kept.add(path)
                finished(blocks, place)
                bar.update(len(table))
                # The order costs time: ask for it only when it can be long enough.
                if len(kept.tests) >= BUFFER + count and len(kept.order(part, source)) >= count:
                    return
    except PreferenceDataError as error:
        raise PreferenceDataError(
            f"{error}. {len(kept.tests)} pairs are kept in {store}: run this again and it goes on "
            "from there"
        ) from None


class _Bar(tqdm):
    """Counts pairs, and shows the bytes that came over the network."""

    bytes_read = 0

    def on_bytes(self, count):
        self.bytes_read += count
        self.set_postfix_str(f"{self.bytes_read / 1e6:.0f} MB")


def _as_bytes(table):
    tests = [is_test(image) for image in table["image"].to_pylist()]
    table = table.append_column("test", pyarrow.array(tests)).cast(KEPT.arrow_schema)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def is_test(image):
    """True for a tenth of the images: whoever reads the same data gets the same part."""
    digest = image_digest(image)
    return digest is not None and int(digest, 16) % ONE_IN == 0
