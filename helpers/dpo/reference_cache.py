"""The reference's log-probs of a dataset, computed once and kept on disk.

    dataset = add_reference_logps(trainer, dataset)      # two columns more

The reference never changes, so its two numbers a pair need not be computed again in every epoch and
every run. A pair's numbers are found again only by all that they hang on: the reference's weights,
the processor, precision and length settings, and the pair's texts and image bytes. When one of them
changes the key is another one and the pair is computed anew: nothing stale is ever used, nor are
columns of these names that the dataset brings along. A run that is killed goes on at the pair where
it stopped.
"""

from itertools import repeat
from pathlib import Path

import datasets
import torch
import trl
from datasets import Dataset
from peft import PeftModel

from helpers.pairs.images import PreferenceDataError, image_digest, rows
from helpers.setup.storage import key_of
from helpers.vlm.answers import Job, resumable_results
from helpers.vlm.load import PASSING, model_digest, processor_digest

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names
TEXTS = ("prompt", "chosen", "rejected")
MARKS = {"bos_token_id", "eos_token_id", "pad_token_id"}  # training gives the model its tokenizer's
TEMPLATED = ("tools", "chat_template_kwargs")  # what else TRL gives a row's chat template


def add_reference_logps(trainer, dataset, folder=None):
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
    size = trainer.args.precompute_ref_batch_size or trainer.args.per_device_eval_batch_size
    job = Job("reference", [], list(range(len(dataset))), _scorer(trainer, dataset))
    keys = _keys(trainer, dataset)
    found = resumable_results(job, keys, folder or _beside(trainer, dataset), size)
    logps = torch.tensor(found).reshape(-1, 2)  # also of no pair
    columns = Dataset.from_dict(dict(zip(COLUMNS, logps.T.numpy(), strict=True)))
    return datasets.concatenate_datasets([dataset, columns], axis=1)


def _scorer(trainer, dataset):
    return lambda rows: reference_logps(trainer, [dataset[row] for row in rows]).tolist()


def reference_logps(trainer, pairs):
    """(N, 2): the log-probs of chosen and rejected by the reference, which drops nothing out."""
    model = trainer.ref_model or trainer.model
    rows = [_used_columns(trainer, pair) for pair in pairs]
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return torch.stack(trainer.compute_ref_log_probs(model, batch), 1).float()
    finally:
        for module, was in training.items():
            module.training = was


def _used_columns(trainer, pair):
    """What is left of a row in training."""
    if not trainer.args.remove_unused_columns:
        return dict(pair)
    trainer._set_signature_columns_if_needed()
    return {name: value for name, value in pair.items() if name in trainer._signature_columns}


def _keys(trainer, dataset):
    args, processor = trainer.args, trainer.processing_class
    pictures = {c: dataset.features[c] for c in ("image", "images") if c in dataset.features}
    common = [
        reference_digest(trainer), processor_digest(processor), trl.__version__, str(pictures),
        args.max_length, args.ld_alpha, trainer.accelerator.mixed_precision,
    ]  # fmt: skip
    templates = [name for name in TEMPLATED if name in dataset.column_names]
    settings = dataset.select_columns(templates) if templates else repeat({})
    return [
        key_of(*common, _pictures(i, row), *[row[name] for name in TEXTS], given)
        for i, (row, given) in enumerate(zip(rows(dataset), settings, strict=False))
    ]


def _pictures(i, row):
    """The digests of a row's pictures, in whichever of the two columns."""
    one = row.get("image")
    found = [] if one is None else [one]
    digests = [image_digest(image) for image in [*found, *(row.get("images") or [])]]
    if None in digests:
        raise PreferenceDataError(
            f"row {i} has a picture whose bytes cannot be read: check it with check_pairs, or set "
            "precompute_ref_log_probs=False"
        )
    return digests


def reference_digest(trainer):
    """A fingerprint of the reference: `ref_model`, the adapter "ref", or the model without one."""
    model = trainer.ref_model or trainer.model
    if not isinstance(model, PeftModel):
        return _digest(model)
    if model.active_peft_config.is_prompt_learning:  # beside the model, not in it
        return _digest(model.get_base_model())
    if "ref" in model.peft_config:
        return _digest(model, ".default.")
    with model.disable_adapter():
        return _digest(model, model.base_model.prefix, ".modules_to_save.")


def _digest(model, *trained):
    """Of the weights whose names hold none of `trained`: training leaves it as it is."""

    def of(name):
        return not any(part in name for part in trained)

    return model_digest(model, of, PASSING | MARKS)


def _beside(trainer, dataset):
    files = dataset.cache_files
    folder = Path(files[0]["filename"]).parent if files else Path(trainer.args.output_dir)
    return folder / "reference"
