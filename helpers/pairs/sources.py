"""Where the pairs of a dataset lie: its revision, its licence, its shards in a seeded order.

    source = find_source("openbmb/RLAIF-V-Dataset", seed=0)
    print(source.revision, source.licence, len(source.files))

Only the split "train" counts: a test split of the rows shares images with it, so ours is made from
the images themselves (see helpers/pairs/rlaifv.py).
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path

from datasets import load_dataset_builder
from huggingface_hub import DatasetCard, HfApi, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from helpers.pairs.images import PreferenceDataError
from helpers.setup.hub import ask


@dataclass(frozen=True)
class Source:
    """Where pairs come from. `files`: (path, bytes) in reading order; `revision`: a commit."""

    name: str
    revision: str
    licence: str | None
    seed: int
    files: tuple


def find_source(name, seed=0):
    """Ask the Hub, or look into a local folder, for the parquet files of the split "train".

    Raises PreferenceDataError if there is no such dataset, or it is not for you.
    """
    return _local_source(name, seed) if Path(name).is_dir() else _hub_source(name, seed)


def _hub_source(name, seed):
    api = HfApi()
    revision = ask(lambda: api.dataset_info(name), name).sha
    builder = ask(lambda: load_dataset_builder(name, revision=revision), name)
    prefix = f"hf://datasets/{name}@{revision}/"
    paths = [path.removeprefix(prefix) for path in _train_files(builder, name)]
    paths = sorted(paths, key=partial(_rank, seed))
    found = ask(
        lambda: api.get_paths_info(name, paths, revision=revision, repo_type="dataset"), name
    )
    sizes = {file.path: file.size for file in found}
    licence = ask(partial(_licence, name, revision), name)
    return Source(name, revision, licence, seed, [(path, sizes[path]) for path in paths])


def _local_source(name, seed):
    paths = _train_files(ask(lambda: load_dataset_builder(**named(name)), name), name)
    paths = sorted(paths, key=partial(_rank, seed))
    card = Path(name) / "README.md"
    licence = _stated(card) if card.exists() else None
    files = [(path, Path(path).stat().st_size) for path in paths]
    return Source(name, fingerprint(Path(name)), licence, seed, files)


def named(name):
    """Arguments of `datasets.load_dataset`, which takes brackets in a folder for a pattern."""
    if Path(name).is_dir() and escape(name) != name:
        return {"path": "parquet", "data_dir": escape(name)}
    return {"path": name}


def _train_files(builder, name):
    splits = builder.config.data_files or {}
    if "train" not in splits:
        there = ", ".join(map(str, splits)) or "none"
        raise PreferenceDataError(
            f"{name} has no split `train` (there are: {there}): choose another"
        )
    others = [path for path in splits["train"] if not path.endswith(".parquet")]
    if others:
        raise PreferenceDataError(f"{others[0]} of {name} is no parquet file: convert the dataset")
    return splits["train"]


def _rank(seed, path):
    return hashlib.sha256(f"{seed}/{Path(path).name}".encode()).digest()


def _licence(name, revision):
    try:
        path = hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)
    except RemoteEntryNotFoundError:  # not its parent, which also stands for a broken connection
        return None
    return _stated(path)


def _stated(card):
    text = Path(card).read_text(encoding="utf-8", errors="replace")
    licence = DatasetCard(text, ignore_metadata_errors=True).data.get("license")
    return ", ".join(licence) if isinstance(licence, list) else licence


def fingerprint(folder):
    """Changes with any file of a local dataset."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
