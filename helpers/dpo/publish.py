"""Publish pairs and adapters on the Hub, each with its card, as one commit.

    card = adapter_card("me/smolvlm-dpo", base, data, settings_of(trainer), measured, "NVIDIA T4")
    print(push_adapter(trainer, "me/smolvlm-dpo", card))

A new repository is private unless you say private=False: RLAIF-V's licence forbids commercial use
and its pictures come from many hands, so publishing is a decision of its own. Of weights only
safetensors leave this machine: no optimizer state, no pickled arguments, no checkpoints. Log in
with `hf auth login`, or `huggingface_hub.login()` in a notebook; the token is never shown.
"""

import json
import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from helpers.dpo.modelcard import (
    TAGS,
    Data,
    Measured,
    adapter_card,
    dataset_card,
    on_hub,
    settings_of,
)
from helpers.pairs.images import images_of, rows

__all__ = [
    "Data", "Measured", "PublishError", "adapter_card", "dataset_card", "push_adapter",
    "push_pairs", "require_login", "require_ours", "settings_of", "write_pairs",
]  # fmt: skip

ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
SHARD = 500_000_000  # bytes of a parquet file, about
SHARD_NAME = re.compile(r"\w+-\d{5}-of-\d{5}\.parquet")
ROW_GROUP = 100  # rows: whoever streams the pairs reads one of these before the first row


class PublishError(ValueError):
    """Nothing was published; the message says why and what to do."""


def write_pairs(parts, folder, card=None):
    """Write {"train": Dataset, ...} as it lies on the Hub: parquet shards and a README.md.

    `datasets.load_dataset(folder)` reads it. What an earlier call wrote there is replaced once the
    new shards are whole. Raises PublishError if the folder cannot be written or holds other things
    (see `require_ours`), or if an image is a path and not bytes: nothing is changed then.
    """
    folder = Path(folder)
    require_ours(folder)
    for part, pairs in parts.items():
        _require_bytes(part, pairs)
    try:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="unfinished-", dir=folder) as new:
            for part, pairs in parts.items():
                _write_shards(part, pairs, Path(new))
            _replace_shards(folder / "data", Path(new))
        if card:
            card.save(folder / "README.md")
    except OSError as error:
        raise PublishError(
            f"cannot write to {folder} ({error.strerror or error}): make room, or choose another "
            "folder"
        ) from None
    return folder


def require_ours(folder):
    """Raise PublishError if `write_pairs` would replace what it has not written itself."""
    names = sorted(path.name for path in Path(folder).glob("data/*.parquet"))
    if others := [name for name in names if not SHARD_NAME.fullmatch(name)]:
        raise PublishError(
            f"{folder}/data holds {others[0]}, which was not written here: choose another folder"
        )
    card = Path(folder) / "README.md"
    if card.exists():
        head = card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
        if not set(TAGS) <= {line.removeprefix("- ") for line in head.splitlines()}:
            raise PublishError(f"{card} is no card of such pairs: choose another folder")


def _require_bytes(part, pairs):
    """A path says nothing on another machine, and tells about this one."""
    for i, row in enumerate(rows(pairs)):
        for image in images_of(row) or ():
            path = image and image["path"]
            if path and (image["bytes"] is None or os.path.isabs(path)):
                raise PublishError(
                    f"row {i} of {part} names an image file of this machine: store the bytes of "
                    "the image, without its path"
                )


def _write_shards(part, pairs, folder):
    count = max(1, -(-_bytes(pairs) // SHARD))
    for i in range(count):
        shard = pairs.shard(count, i, contiguous=True)
        name = f"{part}-{i:05d}-of-{count:05d}.parquet"
        shard.to_parquet(folder / name, batch_size=ROW_GROUP)


def _replace_shards(folder, new):
    """Shards of a longer dataset would be read with the new ones, so those go."""
    names = [shard.name for shard in new.iterdir()]
    for name in names:
        (new / name).replace(folder / name)
    for old in folder.glob("*.parquet"):
        if old.name not in names:
            old.unlink()


def _bytes(pairs):
    """What the rows take, not the whole table that they were selected from."""
    share = len(pairs) / max(1, len(pairs.data))
    return int(pairs.data.nbytes * share)


def push_pairs(parts, repo_id, card, private=True):
    """Push {"train": Dataset, ...} with its card as one commit; returns the address.

    parts may also be a folder that `write_pairs` wrote. An earlier push is replaced: any
    data/*.parquet there that is not among the new ones is deleted. Raises PublishError.
    """
    with TemporaryDirectory() as folder:
        if isinstance(parts, dict):
            parts = write_pairs(parts, folder, card)
        else:
            require_ours(parts)
            card.save(Path(parts) / "README.md")
        files = ["README.md", "data/*.parquet"]
        return _push(parts, repo_id, "dataset", files, private)


def push_adapter(trainer_or_folder, repo_id, card, private=True):
    """Push an adapter's weights, configuration and card as one commit; returns the address.

    trainer_or_folder: a trainer with a PEFT model, or a folder with adapter_model.safetensors in
    it. Raises PublishError.
    """
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        if hasattr(trainer_or_folder, "model"):
            trainer_or_folder.model.save_pretrained(folder)
        else:
            _copy_adapter(Path(trainer_or_folder), folder)
        _without_paths(folder / "adapter_config.json", card)
        card.save(folder / "README.md")
        return _push(folder, repo_id, "model", [*ADAPTER, "README.md"], private)


def _copy_adapter(source, folder):
    for name in ADAPTER:
        if not (source / name).exists():
            raise PublishError(
                f"{source} has no {name}: name the folder of a checkpoint, or save the adapter "
                "with trainer.save_model"
            )
        shutil.copy(source / name, folder / name)


def _without_paths(config, card):
    """An adapter remembers the folder of its base; on another machine that says nothing."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    if not on_hub(settings["base_model_name_or_path"]):
        base = card.data.base_model or Path(settings["base_model_name_or_path"]).name
        settings["base_model_name_or_path"] = base
        config.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def require_login(repo_id):
    """Raise PublishError if `repo_id` is no name, or nobody is logged in; asks no network."""
    if get_token() is None:
        raise PublishError(
            "you are not logged in to the Hub: run `hf auth login`, or huggingface_hub.login() in "
            "a notebook, with a token that may write"
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(_sentence(error, repo_id)) from None


def _push(folder, repo_id, kind, files, private):
    """One commit of `files` (patterns) in `folder`, and of no others that match them any more.

    An existing repository keeps its visibility.
    """
    require_login(repo_id)
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type=kind,
            allow_patterns=files,
            delete_patterns=files,  # an earlier, longer push would be read with this one
        )
    except Exception as error:  # the network has many ways to fail
        # An upload fails in a thread, and its reason is inside.
        reason = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        known = isinstance(reason, (HfHubHTTPError, OfflineModeIsEnabled, ValueError))
        if not known and "httpx" not in type(reason).__module__:
            raise
        raise PublishError(_sentence(reason, repo_id)) from None
    return commit.commit_url.rsplit("/commit/", 1)[0]


def _sentence(error, repo_id):
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is no name for a repository: write owner/name, such as me/my-adapter"
    if status == 401:
        return "the Hub does not know your token: log in again with `hf auth login`"
    if status in (403, 404):
        return (
            f"your token may not write to {repo_id} ({status}): check the owner in the name, and "
            "that the token has the permission to write"
        )
    if status == 413:
        return f"the Hub takes no push of this size to {repo_id} (413): push fewer pairs"
    if status == 429:
        return f"the Hub has had too many requests for {repo_id} (429): wait some minutes"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids the network: unset it to publish"
    if isinstance(error, ValueError) or status == 400:
        return f"the Hub refuses {repo_id}: {' '.join(str(error).split())}"
    what = status or type(error).__name__
    return f"the connection broke while pushing {repo_id} ({what}): run this again"
