"""Keep a training run through disconnects: room before the first step, whole checkpoints, one run.

    train(trainer)     # from the start, or from where an interrupted run of the same settings was
    trained(trainer)   # the same, but a run that was finished before is loaded
    give_up(folder)    # remove what an interrupted run left there

While a run is unfinished its folder holds `run.json` (what it is a run of) and the last two
checkpoints. When it is finished, the folder holds the adapter, and the checkpoints are gone.
"""

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a damaged file; nothing is unpickled

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from helpers.pairs.images import digests_of, rows
from helpers.setup.storage import check_writable

ADAPTER, RECORD = "adapter", "run.json"

# The settings that change what is computed; the rest says where and how often to write.
DECISIVE = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim",
    "adam_beta1", "adam_beta2", "adam_epsilon", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "dataloader_drop_last",
    "loss_type", "loss_weights", "beta", "label_smoothing", "f_divergence_type", "use_weighting",
    "max_length", "seed", "data_seed", "bf16", "fp16",
)  # fmt: skip


UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, UnpicklingError, SafetensorError)


class CheckpointError(ValueError):
    """A run cannot be kept, or cannot be gone on with; the message says what to do."""


def train(trainer):
    """Train to the end; returns the TrainOutput. The adapter is then in output_dir/adapter.

    Goes on from the last whole checkpoint in output_dir: the order of the pairs, the optimiser and
    the random states are restored, so that the losses are those of an uninterrupted run. Called
    again with the same trainer, as by a cell that runs again, it starts from the weights of the
    first call and not from those that it has trained. Raises CheckpointError before the first step
    if the folder cannot hold the checkpoints, or holds an unfinished run of other settings, data
    or weights.
    """
    _restore_starting_weights(trainer)
    folder = Path(trainer.args.output_dir)
    check_writable(folder, (1 + _kept(trainer.args)) * checkpoint_bytes(trainer.model))
    identity, last = run_identity(trainer), last_checkpoint(folder)
    if last:
        _require_same_run(folder, identity)
        print(f"going on from {last.name}")
    _write(folder / RECORD, json.dumps(identity, indent=1))
    result = trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.state.global_step >= trainer.state.max_steps:  # else it was stopped on purpose
        record = folder / ADAPTER / RECORD
        record.unlink(missing_ok=True)  # of an earlier adapter: written again when all is there
        trainer.save_model(str(folder / ADAPTER))
        _write(record, json.dumps(identity, indent=1))
        _remove_checkpoints(folder)
    return result


def trained(trainer):
    """The trained model, ready for evaluation: from the adapter of a finished run of the same
    settings, data and weights if output_dir has one, else as `train` makes it."""
    _restore_starting_weights(trainer)
    adapter = Path(trainer.args.output_dir) / ADAPTER
    if _record(adapter) == run_identity(trainer):
        set_peft_model_state_dict(trainer.model, load_peft_weights(str(adapter), device="cpu"))
    else:
        train(trainer)
    return trainer.model.eval()


def give_up(folder):
    """Remove the checkpoints and the record of an unfinished run; a finished adapter stays."""
    _remove_checkpoints(folder)
    Path(folder, RECORD).unlink(missing_ok=True)


def _remove_checkpoints(folder):
    for checkpoint in _checkpoints(folder):
        shutil.rmtree(checkpoint)


def _restore_starting_weights(trainer):
    """Undo an earlier training by this trainer object: its trainable weights and its optimizer."""
    weights = {name: w for name, w in trainer.model.named_parameters() if w.requires_grad}
    if not hasattr(trainer, "starting_weights"):
        trainer.starting_weights = {n: w.detach().cpu().clone() for n, w in weights.items()}
        return
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(trainer.starting_weights[name])
    trainer.optimizer = trainer.lr_scheduler = None


def last_checkpoint(folder):
    """The newest checkpoint that was written to its end, or None. A torn one is named and passed
    over: a process that is killed while it saves leaves one behind."""
    for checkpoint in _checkpoints(folder):
        try:
            state = (checkpoint / "trainer_state.json").read_text(encoding="utf-8")
            if "global_step" not in json.loads(state):
                raise ValueError("trainer_state.json is empty")
            safe_open(checkpoint / "adapter_model.safetensors", "pt").keys()
            for name in ("optimizer.pt", "scheduler.pt"):
                torch.load(checkpoint / name, map_location="cpu", weights_only=True)
            if not zipfile.is_zipfile(checkpoint / "rng_state.pth"):  # numpy's state is in it, too
                raise ValueError("rng_state.pth is cut")
            return checkpoint
        except UNREADABLE as error:
            print(f"{checkpoint.name} is not whole ({type(error).__name__}), looking for an older")
    return None


def _checkpoints(folder):
    """Newest first; whatever else lies in the folder is left alone."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", p.name), p) for p in Path(folder).glob("*")]
    real = [(int(m[1]), p) for m, p in found if m and p.is_dir() and not p.is_symlink()]
    return [path for _, path in sorted(real, reverse=True)]


def run_identity(trainer):
    """What this is a run of, as a JSON object: settings, pairs and frozen weights."""
    values = {name: getattr(trainer.args, name, None) for name in DECISIVE}
    adapter = trainer.model.peft_config["default"]
    return {
        **{name: getattr(value, "value", value) for name, value in values.items()},
        "lora_rank": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "inputs": inputs_digest(trainer.processing_class),
        "pairs": pairs_digest(trainer.train_dataset),
        "weights": weights_digest(trainer.model),
    }


def inputs_digest(processor):
    """A fingerprint of how a row becomes input: picture sizes and tiles, chat template."""
    settings = processor.image_processor.to_json_string() + str(processor.chat_template)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def pairs_digest(dataset):
    """A fingerprint of conversational pairs, in their order: texts and image bytes."""
    digest = hashlib.sha256()
    for row in rows(dataset):
        content = [digests_of(row), row["prompt"], row["chosen"], row["rejected"]]
        digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def weights_digest(model):
    """A fingerprint of the frozen weights: the first 64 numbers of each tensor."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            sample = weight.detach().flatten()[:64].float().cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _require_same_run(folder, identity):
    known = _record(folder)
    differ = [name for name in identity if known.get(name) != identity[name]]
    if differ:
        changed = ", ".join(f"{n}: {known.get(n)} there, {identity[n]} now" for n in differ)
        raise CheckpointError(
            f"{folder} holds an unfinished run of something else ({changed}): choose another "
            "folder, or give that run up by running this line, then train again:\n"
            f"from helpers import checkpoints; checkpoints.give_up({str(folder)!r})"
        )


def _record(folder):
    try:
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


# --- room for it ---------------------------------------------------------------------------


def checkpoint_bytes(model):
    """Bytes of one checkpoint: adapter, AdamW's two moments, and the processor's files."""
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return 3 * trainable + 10_000_000


def _kept(args):
    return args.save_total_limit or 10  # without a limit, ten are a fair guess


def _write(path, text):
    """Whole or not at all, also when the process is killed."""
    path.with_suffix(".new").write_text(text, encoding="utf-8")
    path.with_suffix(".new").replace(path)
