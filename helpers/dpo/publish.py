"""Publish pairs and adapters on the Hub, each with its card, as one commit.

    data = Data("openbmb/RLAIF-V-Dataset", revision, "cc-by-nc-4.0", train=1000, test=100)
    results = [Measured("captions with a false object", 0.35, 0.13, -0.25, -0.19, n=1000)]
    card = adapter_card("me/smolvlm-dpo", base, data, settings_of(trainer), results, "NVIDIA T4")
    push_adapter(trainer, "me/smolvlm-dpo", card)

    folder = write_pairs({"train": train, "test": test}, "runs/mine", dataset_card(...))
    push_pairs(folder, "me/pairs")

A new repository is private unless you say private=False: RLAIF-V's licence forbids commercial use
and its pictures come from many hands, so publishing is a decision of its own. Of weights only
safetensors leave this machine: no optimizer state, no pickled arguments, no checkpoints. Log in
with `hf auth login`, or `huggingface_hub.login()` in a notebook; the token is never shown.

Both go by `upload_folder`: `DatasetDict.push_to_hub` leaves the shards of splits that are no longer
there, and makes a card of its own.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset
from huggingface_hub import (
    DatasetCard,
    DatasetCardData,
    HfApi,
    ModelCard,
    ModelCardData,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from trl import DPOTrainer

from helpers.pairs.images import images_of, rows
from helpers.setup.hub import TAGS

ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
SHARD = 500_000_000  # bytes of a parquet file, about
SHARD_NAME = re.compile(r"\w+-\d{5}-of-\d{5}\.parquet")
ROW_GROUP = 100  # rows: whoever streams the pairs reads one of these before the first row


class PublishError(ValueError):
    """Nothing was published; the message says why and what to do."""


# --- cards: the facts that a stranger needs, and no more than was measured -----------------


@dataclass(frozen=True)
class Data:
    """The pairs behind a card: where they come from, and how many were used."""

    name: str  # on the Hub, or in words
    revision: str | None
    licence: str | None  # as the Hub spells it, such as "cc-by-nc-4.0"
    train: int
    test: int = 0

    def __str__(self):
        link = f"[{self.name}](https://huggingface.co/datasets/{self.name})"
        named = link if on_hub(self.name) else self.name
        return named + (f", revision `{self.revision}`" if self.revision else "")


@dataclass(frozen=True)
class Measured:
    """A metric on the same n items before and after; low to high is the change's 95% interval."""

    metric: str
    before: float
    after: float
    low: float
    high: float
    n: int


def on_hub(name: str) -> bool:
    """Whether a name can be one on the Hub: owner/name, and no folder here."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def dataset_card(repo_id: str, data: Data, split_by: str) -> DatasetCard:
    """The card of formatted pairs. data: the `Data` they were made of, split_by: how, in words."""
    head = DatasetCardData(
        license=data.licence or "unknown",
        task_categories=["image-text-to-text"],
        source_datasets=[data.name] if on_hub(data.name) else None,
        tags=list(TAGS),
    )
    template = Path(__file__).with_name("pairs_card.md")
    facts = {"repo_id": repo_id, "title": repo_id.split("/")[-1], "data": data, "source": str(data)}
    return DatasetCard.from_template(head, template, **facts, split_by=split_by)


def settings_of(trainer: DPOTrainer) -> dict[str, Any]:
    """What a trained DPOTrainer was set to: {name: value}, in the order of the card."""
    args, adapter = trainer.args, trainer.model.peft_config["default"]
    batch = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    # Computation, adapter and base: three precisions that need not be the same.
    mixed = "fp16 mixed" if args.fp16 else "bf16 mixed" if args.bf16 else "float32"
    dtypes = {p.requires_grad: str(p.dtype).split(".")[-1] for p in trainer.model.parameters()}
    four_bits = getattr(trainer.model.get_base_model(), "is_loaded_in_4bit", False)
    frozen = "4 bits" if four_bits else dtypes[False]
    return {
        "loss": " + ".join(args.loss_type),
        "beta": args.beta,
        "learning rate": args.learning_rate,
        "pairs a step": "{} x {} accumulated x {} device(s)".format(*batch),
        "steps": trainer.state.global_step,
        "LoRA rank": adapter.r,
        "precision": f"{mixed}; adapter in {dtypes[True]}, frozen base in {frozen}",
        "seed": args.seed,
    }


def adapter_card(
    repo_id: str,
    base_model: str,
    data: Data,
    settings: dict[str, Any],
    measured: list[Measured],
    hardware: str,
    limits: str = "",
) -> ModelCard:
    """The card of a LoRA adapter trained by DPO.

    base_model: its Hub id, or a folder; settings: a dict as `settings_of` gives it; measured: [] if
    nothing was measured, which the card then says; hardware and limits: in words. The licence is
    that of the data, the stricter of the two for RLAIF-V.
    """
    public = on_hub(base_model)
    head = ModelCardData(
        base_model=base_model if public else None,
        datasets=[data.name] if on_hub(data.name) else None,
        library_name="peft",
        license=data.licence or "unknown",
        pipeline_tag="image-text-to-text",
        tags=["dpo", "lora", "trl"],
    )
    return ModelCard.from_template(
        head,
        Path(__file__).with_name("adapter_card.md"),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        base=base_model if public else Path(base_model).name,
        where="" if public else " (a folder of its own, not on the Hub)",
        data=data,
        source=str(data),
        settings=settings,
        measured=measured,
        unsure=", ".join(m.metric for m in measured if m.low <= 0 <= m.high),
        hardware=hardware,
        versions=", ".join(version(name) for name in ("trl", "peft", "transformers")),
        limits=limits,
    )


# --- pairs ---------------------------------------------------------------------------------


def write_pairs(splits: dict[str, Dataset], folder: str | Path, card: DatasetCard) -> Path:
    """Write {"train": Dataset, ...} as it lies on the Hub: parquet shards and a README.md.

    `datasets.load_dataset(folder)` reads it. What an earlier call wrote there is replaced once the
    new shards are whole. Raises PublishError if the folder cannot be written or holds other things
    (see `require_ours`), or if an image is a path and not bytes: nothing is changed then.
    """
    folder = Path(folder)
    require_ours(folder)
    for split, pairs in splits.items():
        _require_bytes(split, pairs)
    try:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="unfinished-", dir=folder) as new:
            for split, pairs in splits.items():
                # Of the rows, not of the whole table that they were selected from.
                size = pairs.data.nbytes * len(pairs) / max(1, len(pairs.data))
                count = 1 + int(size / SHARD)
                for i in range(count):
                    name = f"{split}-{i:05d}-of-{count:05d}.parquet"
                    shard = pairs.shard(count, i, contiguous=True)
                    shard.to_parquet(Path(new, name), batch_size=ROW_GROUP)
            written = [path.replace(folder / "data" / path.name) for path in Path(new).iterdir()]
            for old in {*folder.glob("data/*.parquet")} - {*written}:
                old.unlink()  # a shard of a longer dataset would be read with the new ones
        card.save(folder / "README.md")
    except OSError as error:
        raise PublishError(
            f"cannot write to {folder} ({error.strerror or error}): make room, or choose another "
            "folder"
        ) from None
    return folder


def require_ours(folder: str | Path) -> None:
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


def _require_bytes(split, pairs):
    """A path says nothing on another machine, and tells about this one."""
    for i, row in enumerate(rows(pairs)):
        for image in images_of(row) or ():
            path = image and image["path"]
            if path and (image["bytes"] is None or os.path.isabs(path)):
                raise PublishError(
                    f"row {i} of {split} names an image file of this machine: store the bytes of "
                    "the image, without its path"
                )


def push_pairs(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Push a folder that `write_pairs` wrote as one commit; returns the address.

    An earlier push is replaced: any data/*.parquet there that is not among the new ones is deleted.
    Raises PublishError.
    """
    require_ours(folder)
    return _push(folder, repo_id, "dataset", ["README.md", "data/*.parquet"], private)


# --- adapters ------------------------------------------------------------------------------


def push_adapter(
    trainer_or_folder: DPOTrainer | str | Path, repo_id: str, card: ModelCard, private: bool = True
) -> str:
    """Push an adapter's weights, configuration and card as one commit; returns the address.

    trainer_or_folder: a trainer with a PEFT model, or a folder with adapter_model.safetensors in
    it. Raises PublishError.
    """
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        if hasattr(trainer_or_folder, "model"):
            trainer_or_folder.model.save_pretrained(folder)
        else:
            for name in ADAPTER:
                if not Path(trainer_or_folder, name).exists():
                    raise PublishError(
                        f"{trainer_or_folder} has no {name}: name the folder of a checkpoint, or "
                        "save the adapter with trainer.save_model"
                    )
                shutil.copy(Path(trainer_or_folder, name), folder)
        config = folder / "adapter_config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
        if not on_hub(base):  # a folder of this machine
            settings["base_model_name_or_path"] = card.data.base_model or Path(base).name
            config.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        card.save(folder / "README.md")
        return _push(folder, repo_id, "model", [*ADAPTER, "README.md"], private)


# --- the Hub -------------------------------------------------------------------------------


def require_login(repo_id: str) -> None:
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
    may_not = (
        f"your token may not write to {repo_id} ({status}): check the owner in the name, and "
        "that the token has the permission to write"
    )
    sentences = {
        401: "the Hub does not know your token: log in again with `hf auth login`",
        403: may_not,
        404: may_not,
        413: f"the Hub takes no push of this size to {repo_id} (413): push fewer pairs",
        429: f"the Hub has had too many requests for {repo_id} (429): wait some minutes",
    }
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is no name for a repository: write owner/name, such as me/my-adapter"
    if status in sentences:
        return sentences[status]
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids the network: unset it to publish"
    if isinstance(error, ValueError) or status == 400:
        return f"the Hub refuses {repo_id}: {' '.join(str(error).split())}"
    what = status or type(error).__name__
    return f"the connection broke while pushing {repo_id} ({what}): run this again"
