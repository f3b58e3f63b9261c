"""precompute_ref_log_probs=True is refused for vision datasets; three small changes make it work.

Before the refusal came, training ended with KeyError: 'ref_chosen_logps', since the vision collator
and the list of columns to keep drop what was computed. Here both let it through.
"""

import torch
from tiny import dpo_trainer, verdict

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
SETTINGS = {"max_steps": 3, "learning_rate": 1e-2, "gradient_checkpointing": False}


def with_cache(trainer):
    """The trainer as it could be: the reference runs over the dataset once."""
    collate = trainer.data_collator

    def collate_all(rows):
        cached = {
            name: torch.tensor([row[name] for row in rows if name in row]) for name in COLUMNS
        }
        return {**collate(rows), **{name: values for name, values in cached.items() if len(values)}}

    trainer.data_collator = collate_all
    trainer.train_dataset = trainer._precompute_ref_logps(trainer.train_dataset, "train", 2)
    trainer._set_signature_columns_if_needed()
    trainer._signature_columns += COLUMNS
    trainer.precompute_ref_logps = True
    return trainer


def run(trainer):
    """(losses of three steps, pictures that the vision tower encoded in them)"""
    encoded = []
    vision = trainer.model.get_base_model().model.vision_model
    vision.register_forward_hook(lambda module, args, out: encoded.append(len(out[0])))
    trainer.train()
    losses = [round(log["loss"], 4) for log in trainer.state.log_history if "loss" in log]
    return losses, sum(encoded)


try:
    dpo_trainer(precompute_ref_log_probs=True)
    refusal = None
except ValueError as error:
    refusal = str(error).split(". ")[0]
stock, pictures = run(dpo_trainer(**SETTINGS))
cached, fewer = run(with_cache(dpo_trainer(**SETTINGS)))
print(f"reference in every step: losses {stock}, {pictures} pictures encoded")
print(f"reference precomputed:   losses {cached}, {fewer} pictures encoded")
verdict(
    there=refusal is not None,
    expected="accepted, as it is for text",
    happens=refusal or "accepted",
)
