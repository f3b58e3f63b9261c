"""activation_checkpointing_kwargs={"every_n_layers": 2} ends a DPO run in its second step.

Trainer takes `every_n_layers` and `offload` out before it hands the rest to torch; after the first
reference pass DPOTrainer switches checkpointing back on with the whole dictionary.
"""

from tiny import dpo_trainer, verdict

trainer = dpo_trainer(max_steps=2, activation_checkpointing_kwargs={"every_n_layers": 2})
try:
    trainer.train()
    error = None
except Exception as raised:
    error = raised
verdict(
    there=error is not None,
    expected="trains with every second layer checkpointed, as transformers' Trainer does",
    happens=f"{type(error).__name__} in step {trainer.state.global_step + 1}: {error}"
    if error
    else "trains",
)
