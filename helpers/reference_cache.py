"""The reference's log-probs of a dataset, computed once and kept on disk.

    dataset = add_reference_logps(trainer, dataset)      # two columns more

The reference never changes, so its two numbers a pair need not be computed again in every epoch and
every run. A pair's numbers are found again only by all that they hang on: the reference's weights,
the processor, precision and length settings, and the pair's texts and image bytes. When one of them
changes the key is another one and the pair is computed anew: nothing stale is ever used. A run that
is killed goes on at the pair where it stopped.
"""

import json
from pathlib import Path

import datasets
import torch
import trl
from datasets import Dataset
from peft import PeftModel

from helpers.batches import Job
from helpers.kept import digest, kept, model_digest, processor_digest
from helpers.stored import PreferenceDataError, digests_of, rows

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names


def add_reference_logps(trainer, dataset, folder=None):
    """`dataset` with `ref_chosen_logps` and `ref_rejected_logps` (nats, float32) of each pair.

    `folder`: where they are kept, by default beside the dataset's own file, or in the trainer's
    output_dir if it has none. Raises PreferenceDataError for a stream, CheckpointError if the
    folder cannot be written.
    """
    if not isinstance(dataset, Dataset):
        raise PreferenceDataError(
            "the reference of a stream cannot be computed before it is read: load a part of it "
            "with load_raw, or set precompute_ref_log_probs=False"
        )
    if set(COLUMNS) <= set(dataset.column_names):
        return dataset
    size = trainer.args.precompute_ref_batch_size or trainer.args.per_device_eval_batch_size
    job = Job("reference", [], list(range(len(dataset))), _scorer(trainer, dataset))
    logps = torch.tensor(
        kept(job, _keys(trainer, dataset), folder or _beside(trainer, dataset), size)
    )
    columns = Dataset.from_dict(dict(zip(COLUMNS, logps.T.numpy(), strict=True)))
    return datasets.concatenate_datasets([dataset, columns], axis=1)


def _scorer(trainer, dataset):
    """rows -> [[chosen, rejected], ...] by the reference, which drops nothing out."""
    model = trainer.ref_model or trainer.model

    def run(numbers):
        batch = trainer.data_collator([dataset[number] for number in numbers])
        training = model.training
        model.eval()
        logps = trainer.compute_ref_log_probs(model, trainer._prepare_inputs(batch))
        model.train(training)
        return torch.stack(logps, 1).float().tolist()

    return run


def _keys(trainer, dataset):
    args, processor = trainer.args, trainer.processing_class
    common = [
        reference_digest(trainer), processor_digest(processor), trl.__version__,
        args.max_length, args.ld_alpha, args.bf16, args.fp16,
    ]  # fmt: skip
    texts = ("prompt", "chosen", "rejected")
    return [
        digest(json.dumps([*common, digests_of(row), *[row[name] for name in texts]]))
        for row in rows(dataset)
    ]


def reference_digest(trainer):
    """A fingerprint of the reference: `ref_model`, the adapter "ref", or the model without one."""
    model = trainer.ref_model or trainer.model
    if not isinstance(model, PeftModel):
        return model_digest(model)
    if "ref" in model.peft_config:
        return model_digest(model, of=lambda name: ".default." not in name)
    with model.disable_adapter():
        return model_digest(model, of=lambda name: model.base_model.prefix not in name)


def _beside(trainer, dataset):
    files = dataset.cache_files
    folder = Path(files[0]["filename"]).parent if files else Path(trainer.args.output_dir)
    return folder / "reference"
