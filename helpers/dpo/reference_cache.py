"""The reference's log-probs of a dataset, computed once and kept on disk.

    dataset = add_reference_logps(trainer, dataset)      # two columns more

The reference never changes, so its two numbers a pair need not be computed again in every epoch and
every run. A pair's key is made of everything that its numbers depend on: the reference's weights,
the processor, precision and length settings, and the pair's texts and image bytes. When one of them
changes the key is another one and the pair is computed anew: nothing stale is ever used, nor are
columns of these names that the dataset brings along. A run that is killed goes on at the batch
where it stopped.
"""

from itertools import repeat
from pathlib import Path

import datasets
import torch
import trl
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl import DPOTrainer

from helpers.pairs.images import image_digest, rows
from helpers.setup.storage import PreferenceDataError, key_of
from helpers.vlm.answers import Job, resumable_results
from helpers.vlm.load import PASSING, model_digest, processor_digest

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names
# Training sets these of the model's configuration to its tokenizer's; no log-prob depends on them.
SPECIAL_IDS = {"bos_token_id", "eos_token_id", "pad_token_id"}


def add_reference_logps(
    trainer: DPOTrainer, dataset: Dataset, folder: str | Path | None = None
) -> Dataset:
    """`dataset` with `ref_chosen_logps` and `ref_rejected_logps` (nats, float32) of each pair.

    `folder`: where they are kept, by default beside the dataset's own file, or in the trainer's
    output_dir if it has none. Raises PreferenceDataError for a stream and for a dataset with a
    transform, StorageError if the folder cannot be written.
    """
    if not isinstance(dataset, Dataset):
        raise PreferenceDataError(
            "the reference of a stream cannot be computed before it is read: load a part of it "
            "with load_raw, or set precompute_ref_log_probs=False"
        )
    if dataset.format["type"] is not None:
        raise PreferenceDataError(
            f"the dataset has a {dataset.format['type']} format, and what that makes of a row is "
            "not in the file: write it with map, or set precompute_ref_log_probs=False"
        )
    dataset = dataset.remove_columns([name for name in COLUMNS if name in dataset.column_names])
    if folder is None:
        files = dataset.cache_files
        beside = Path(files[0]["filename"]).parent if files else Path(trainer.args.output_dir)
        folder = beside / "reference"

    def compute(batch):
        return reference_logps(trainer, [dataset[row] for row in batch]).tolist()

    size = trainer.args.precompute_ref_batch_size or trainer.args.per_device_eval_batch_size
    job = Job("reference", [], list(range(len(dataset))), compute)
    found = resumable_results(job, pair_keys(trainer, dataset), folder, size)
    logps = torch.tensor(found).reshape(-1, 2)  # also of no pair
    columns = Dataset.from_dict(dict(zip(COLUMNS, logps.T.numpy(), strict=True)))
    return datasets.concatenate_datasets([dataset, columns], axis=1)


def reference_logps(trainer: DPOTrainer, pairs: list[dict]) -> Tensor:
    """(N, 2): the log-probs of chosen and rejected by the reference, without dropout."""
    model = trainer.ref_model or trainer.model
    if trainer.args.remove_unused_columns:  # as in training
        trainer._set_signature_columns_if_needed()
        used = trainer._signature_columns
        pairs = [{name: pair[name] for name in pair if name in used} for pair in pairs]
    batch = trainer._prepare_inputs(trainer.data_collator([dict(pair) for pair in pairs]))
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return torch.stack(trainer.compute_ref_log_probs(model, batch), 1).float()
    finally:
        for module, was in training.items():
            module.training = was


def pair_keys(trainer: DPOTrainer, dataset: Dataset) -> list[str]:
    """The key of each pair. Raises PreferenceDataError for a picture that cannot be read."""
    args = trainer.args
    common = [
        reference_digest(trainer),
        processor_digest(trainer.processing_class),
        trl.__version__,
        # How a picture is decoded, such as its mode.
        str({c: dataset.features[c] for c in ("image", "images") if c in dataset.features}),
        [args.max_length, args.ld_alpha, trainer.accelerator.mixed_precision],
    ]
    # What else TRL gives a row's chat template.
    given = [c for c in ("tools", "chat_template_kwargs") if c in dataset.column_names]
    settings = dataset.select_columns(given) if given else repeat({})
    keys = []
    for i, (row, setting) in enumerate(zip(rows(dataset), settings, strict=False)):
        one = [row["image"]] if row.get("image") is not None else []  # TRL takes either column
        pictures = [image_digest(image) for image in [*one, *(row.get("images") or [])]]
        if None in pictures:
            raise PreferenceDataError(
                f"row {i} has a picture whose bytes cannot be read: check it with check_pairs, or "
                "set precompute_ref_log_probs=False"
            )
        texts = [row[name] for name in ("prompt", "chosen", "rejected")]
        keys.append(key_of(common, pictures, texts, setting))
    return keys


def reference_digest(trainer: DPOTrainer) -> str:
    """A fingerprint of the reference: `ref_model`, the adapter "ref", or the model without one.

    Training must not change it, so the weights that are trained are left out by their names.
    """

    def digest(model, *trained):
        return model_digest(
            model, lambda name: not any(part in name for part in trained), PASSING | SPECIAL_IDS
        )

    model = trainer.ref_model or trainer.model
    if not isinstance(model, PeftModel):
        return digest(model)
    if model.active_peft_config.is_prompt_learning:  # beside the model, not in it
        return digest(model.get_base_model())
    if "ref" in model.peft_config:
        return digest(model, ".default.")
    with model.disable_adapter():
        return digest(model, model.base_model.prefix, ".modules_to_save.")
