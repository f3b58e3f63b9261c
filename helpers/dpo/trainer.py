"""What stands around a DPO trainer: its configuration for a track, checks, a live curve.

trainer = dpo_trainer(model, processor, pairs, track, "runs/dpo")
check_setup(trainer)      # stops a wrong set-up with a sentence, before the first step
trainer.train()
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from datasets import Dataset
from IPython.display import display
from torch import nn
from transformers import PrinterCallback, ProcessorMixin, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from trl import DPOConfig, DPOTrainer

from helpers.dpo.shared_images import SharedImageDPOTrainer
from helpers.setup.storage import check_writable
from helpers.setup.tracks import Track
from helpers.vlm.load import lora_config

TOLERANCE = 1e-3  # nats; policy and reference are the same weights at step 0


class SetupError(ValueError):
    """Training would run but not do what was meant; the message says what to change."""


def dpo_config(track: Track, output_dir: str | Path, **changes: Any) -> DPOConfig:
    """TRL's DPOConfig for a track, with what differs from TRL's defaults; `changes` win.

    max_length=None: TRL would cut long rows at 1024 tokens, and one SmolVLM picture can take 1088.
    """
    settings = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": track.batch_size,
        "per_device_eval_batch_size": track.batch_size,
        "gradient_accumulation_steps": track.accumulate,
        "learning_rate": track.learning_rate,
        "num_train_epochs": track.epochs,
        "beta": 0.1,
        "max_length": None,
        "bf16": track.autocast == "bf16",
        "fp16": track.autocast == "fp16",
        "activation_checkpointing": track.checkpointing,
        "logging_steps": 5,
        "report_to": "none",
        "save_steps": 10,
        "save_total_limit": 2,
        "use_cpu": track.device == "cpu",
    }
    return DPOConfig(**{**settings, **changes})


def dpo_trainer(
    model: nn.Module,
    processor: ProcessorMixin,
    pairs: Dataset,
    track: Track,
    output_dir: str | Path,
    callbacks: list[TrainerCallback] | None = None,
    trainer_class: Callable[..., DPOTrainer] = SharedImageDPOTrainer,
    **changes: Any,
) -> DPOTrainer:
    """A DPO trainer with a new LoRA adapter on `model`; `changes` go to `dpo_config`.

    `pairs`: a dataset in conversational form. `trainer_class`: TRL's own is `DPOTrainer`; ours
    computes the same and encodes each picture once a pair. The reference is the same model with the
    adapter off, so there is none to pass; the adapter's first weights depend on the seed. Raises
    StorageError if `output_dir` cannot be written.
    """
    config = dpo_config(track, output_dir, **changes)
    check_writable(config.output_dir)  # before the trainer makes it on a Drive that is not mounted
    torch.manual_seed(config.seed)
    trainer = trainer_class(
        model,
        args=config,
        train_dataset=pairs,
        processing_class=processor,
        peft_config=lora_config(model, track.lora_rank),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # prints every log; trainer.state keeps them all
    keep_adapter_in_float32(trainer.model)
    return trainer


def keep_adapter_in_float32(model: nn.Module) -> None:
    """Make what is trained float32, whatever the base is held in; `model` is changed in place.

    TRL makes the adapter of a 4-bit base bfloat16. The scaler of fp16 training has no bfloat16, and
    a step of 1e-5 on a weight of 1e-2 is lost in bfloat16's 8 bits.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


# --- checks at step 0 ----------------------------------------------------------------------


def check_setup(trainer: DPOTrainer, rows: int = 8) -> dict[str, float]:
    """Checks a DPOTrainer on a few pairs before its first step; returns what was measured.

    Raises SetupError when nothing is trainable or fp16 training could not step it, when an answer
    is cut off or has no closing token, when the pictures do not change the log-probs, or when
    policy and reference differ (the margin is not 0). The dictionary holds `loss`, `margin`,
    `accuracy`, `trainable`, `image_effect` (mean change of an answer's log-prob when its pictures
    are painted grey, in nats).
    """
    check_writable(trainer.args.output_dir)
    trainable = _check_trainable(trainer.model, trainer.args.fp16)
    pairs = trainer.train_dataset.select(range(min(rows, len(trainer.train_dataset))))
    batch = trainer.data_collator([dict(row) for row in pairs])
    _check_completions(batch, trainer.processing_class.tokenizer)
    effect = _check_images(trainer, batch)
    return {**_check_reference(trainer, pairs), "trainable": trainable, "image_effect": effect}


def _check_trainable(model, fp16):
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise SetupError("no weight is trainable: pass peft_config=lora_config(model)")
    for name, weight in weights.items():
        if weight.dtype == torch.float16 or fp16 and weight.dtype != torch.float32:
            raise SetupError(
                f"{name} is trainable in {str(weight.dtype)[6:]}, which the gradient scaler of "
                "fp16 cannot handle: keep_adapter_in_float32(model)"
            )
    return sum(p.numel() for p in weights.values())


def _check_completions(batch, tokenizer):
    """Every completion must be there to its last token: a cut one trains on nothing, silently."""
    mask, ids = batch["completion_mask"].bool(), batch["input_ids"]
    half = len(ids) // 2
    for row in range(len(ids)):
        name = f"the {'chosen' if row < half else 'rejected'} answer of pair {row % half}"
        scored = ids[row][mask[row]].tolist()
        if not scored:
            raise SetupError(f"{name} has no token left to score: set max_length=None")
        if tokenizer.convert_tokens_to_ids("<end_of_utterance>") not in scored[-2:] and (
            tokenizer.eos_token_id not in scored[-2:]
        ):
            raise SetupError(f"{name} is cut before its closing token: set max_length=None")


def _check_images(trainer, batch):
    """The mean change of an answer's log-prob when its pictures are painted grey, in nats."""
    batch = trainer._prepare_inputs(batch)
    if "pixel_values" not in batch:
        raise SetupError("the first pairs have no picture: shuffle them, or check their `images`")
    # Not 0: Idefics3 takes a tile of zeros for padding. And what is padding has to stay it.
    grey = 0.5 * (batch["pixel_values"] != 0).to(batch["pixel_values"].dtype)
    logps, without = (
        torch.cat(trainer.compute_ref_log_probs(trainer.model, one))  # (2N,)
        for one in (batch, {**batch, "pixel_values": grey})
    )
    effect = (logps - without).abs().mean().item()
    if effect < 1e-6:
        raise SetupError(
            "blanking the pictures changes nothing: the model does not see them; pass the "
            "processor (not the tokenizer) as processing_class, and an `images` column"
        )
    return effect


def _check_reference(trainer, pairs):
    """Policy and reference agree before the first step: every margin is 0, DPO's loss is ln 2."""
    logged = len(trainer.state.log_history)
    progress = trainer.pop_callback(DEFAULT_PROGRESS_CALLBACK)  # no table for a second's work
    metrics = trainer.evaluate(eval_dataset=pairs)
    if progress:
        trainer.add_callback(progress)
    del trainer.state.log_history[logged:]  # the history is for training
    measured = {
        "loss": metrics["eval_loss"],
        "margin": metrics["eval_rewards/margins"],
        "accuracy": metrics["eval_rewards/accuracies"],
    }
    if abs(measured["margin"]) > TOLERANCE:
        raise SetupError(
            f"the margin before the first step is {measured['margin']:.4f}, not 0: the reference "
            "is not the model that training starts from; pass ref_model=None, and load earlier "
            "weights before the trainer is built"
        )
    if trainer.loss_types == ["sigmoid"] and abs(measured["loss"] - math.log(2)) > TOLERANCE:
        raise SetupError(f"the first loss is {measured['loss']:.4f}, not ln 2 = 0.6931")
    return measured


# --- watching ------------------------------------------------------------------------------


class LiveCurve(TrainerCallback):
    """Shows `draw(log_history)`, which returns axes, in the notebook and renews it at every log."""

    def __init__(self, draw: Callable[[list[dict]], list[plt.Axes]]):
        self.draw = draw
        self.shown = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.shown = None  # a cell that runs again has lost the picture of its last run

    def on_log(self, args, state, control, **kwargs):
        if "loss" not in state.log_history[-1]:
            return
        figure = self.draw(state.log_history)[0].figure
        if self.shown is None:
            self.shown = display(figure, display_id=True)
        else:
            self.shown.update(figure)
        plt.close(figure)  # or the notebook shows it once more at the end of the cell


class StopAt(TrainerCallback):
    """Ends training after a step, as a lost connection would; for practising to resume."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            control.should_training_stop = control.should_save = True
