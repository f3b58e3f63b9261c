"""Keep a training run through disconnects: room before the first step, whole checkpoints, one run.

    train(trainer)     # from the start, or from where an interrupted run of the same settings was
    trained(trainer)   # the same, but a run that was finished before is loaded
    give_up(folder)    # remove what an interrupted run left there

While a run is unfinished its folder holds `run.json` (what it is a run of) and the last two
checkpoints. When it is finished, the folder holds the adapter, and the checkpoints are gone.
"""

import json
import re
import shutil
import zipfile
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a damaged file; nothing is unpickled
from typing import Any

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.trainer_utils import TrainOutput
from trl import DPOTrainer

from helpers.pairs.images import digests_of, rows
from helpers.setup.storage import check_writable, key_of, write_whole
from helpers.vlm.load import processor_digest

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


def train(trainer: DPOTrainer) -> TrainOutput:
    """Train to the end; returns the TrainOutput. The adapter is then in output_dir/adapter.

    Goes on from the last whole checkpoint in output_dir: the order of the pairs, the optimiser and
    the random states are restored, so that the losses are those of an uninterrupted run. Called
    again with the same trainer, as by a cell that runs again, it starts from the weights of the
    first call and not from those that it has trained. Raises before the first step: StorageError
    if the folder cannot hold the checkpoints, CheckpointError if it holds an unfinished run of
    other settings, data or weights.
    """
    _restore_starting_weights(trainer)
    folder = Path(trainer.args.output_dir)
    saved = trainer.args.save_total_limit or 10  # without a limit, ten are a fair guess
    check_writable(folder, (1 + saved) * checkpoint_bytes(trainer.model))
    identity, last = run_identity(trainer), last_checkpoint(folder)
    if last:
        _require_same_run(folder, identity)
        print(f"going on from {last.name}")
    record = json.dumps(identity, indent=1).encode()
    write_whole(folder / RECORD, record)
    result = trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.state.global_step >= trainer.state.max_steps:  # else it was stopped on purpose
        finished = folder / ADAPTER / RECORD
        finished.unlink(missing_ok=True)  # of an earlier adapter: written when all is there
        trainer.save_model(str(folder / ADAPTER))
        write_whole(finished, record)
        _remove_checkpoints(folder)
    return result


def trained(trainer: DPOTrainer) -> nn.Module:
    """The trained model, ready for evaluation: from the adapter of a finished run of the same
    settings, data and weights if output_dir has one, else as `train` makes it."""
    _restore_starting_weights(trainer)
    adapter = Path(trainer.args.output_dir) / ADAPTER
    if _record(adapter) == run_identity(trainer):
        set_peft_model_state_dict(trainer.model, load_peft_weights(str(adapter), device="cpu"))
    else:
        train(trainer)
    return trainer.model.eval()


def give_up(folder: str | Path) -> None:
    """Remove the checkpoints and the record of an unfinished run; a finished adapter stays."""
    _remove_checkpoints(folder)
    Path(folder, RECORD).unlink(missing_ok=True)


def _remove_checkpoints(folder):
    for checkpoint in checkpoints_in(folder):
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


# --- checkpoints on disk -------------------------------------------------------------------


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None. A torn one is named and passed
    over: a process that is killed while it saves leaves one behind."""
    for checkpoint in checkpoints_in(folder):
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


def checkpoints_in(folder: str | Path) -> list[Path]:
    """Folders named checkpoint-N, largest N first; whatever else lies there is left alone."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", p.name), p) for p in Path(folder).glob("*")]
    real = [(int(m[1]), p) for m, p in found if m and p.is_dir() and not p.is_symlink()]
    return [path for _, path in sorted(real, reverse=True)]


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of one checkpoint: adapter, AdamW's two moments, and the processor's files."""
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return 3 * trainable + 10_000_000


# --- what it is a run of -------------------------------------------------------------------


def run_identity(trainer: DPOTrainer) -> dict[str, Any]:
    """What this is a run of, as a JSON object: settings, inputs, pairs and frozen weights."""
    values = {name: getattr(trainer.args, name, None) for name in DECISIVE}
    pairs = [
        [digests_of(row), row["prompt"], row["chosen"], row["rejected"]]
        for row in rows(trainer.train_dataset)
    ]
    # Two models differ in all their tensors, so the first 64 numbers of each tell them apart.
    frozen = [
        [name, weight.detach().flatten()[:64].float().tolist()]
        for name, weight in trainer.model.named_parameters()
        if not weight.requires_grad
    ]
    adapter = trainer.model.peft_config["default"]
    return {
        **{name: getattr(value, "value", value) for name, value in values.items()},  # of an Enum
        "lora_rank": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "inputs": processor_digest(trainer.processing_class),
        "pairs": key_of(pairs),
        "weights": key_of(frozen),
    }


def _require_same_run(folder, identity):
    known = _record(folder)
    differ = [name for name in identity if known.get(name) != identity[name]]
    if differ:
        changed = ", ".join(f"{n}: {known.get(n)} there, {identity[n]} now" for n in differ)
        raise CheckpointError(
            f"{folder} holds an unfinished run of something else ({changed}): choose another "
            "folder, or give that run up by running this line, then train again:\n"
            f"from helpers.dpo import checkpoints; checkpoints.give_up({str(folder)!r})"
        )


def _record(folder):
    try:
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
