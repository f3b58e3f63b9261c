"""max_length that cuts completions away trains a vision model on nothing, without a word.

For text datasets DPOTrainer drops rows whose prompt fills max_length. Vision datasets are not
prepared, so the collator cuts, and a step with no token left has loss ln 2 and gradient 0.
"""

import logging
import warnings

from tiny import dpo_trainer, pairs, verdict


class Said(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


LOGGERS = [logging.getLogger(library) for library in ("trl", "transformers", "accelerate")]
said = Said()
whole = dpo_trainer(pairs()).data_collator([dict(row) for row in pairs()])
prompt = int(whole["completion_mask"][0].argmax())  # tokens before the completion, image included
for logger in LOGGERS:
    logger.addHandler(said)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    trainer = dpo_trainer(max_length=prompt)
    trainer.train()
for logger in LOGGERS:
    logger.removeHandler(said)

log = trainer.state.log_history[0]
said.lines += [str(warning.message) for warning in caught]
about = [line for line in said.lines if "max_length" in line or "truncat" in line]
print(f"max_length={prompt}: loss {log['loss']:.4f}, grad_norm {log['grad_norm']}, ", end="")
print(f"logps/chosen {log['logps/chosen']}, {len(trainer.train_dataset)} rows kept")
verdict(
    there=log["grad_norm"] == 0 and not about,
    expected="rows with no completion left are dropped, or a warning names max_length",
    happens=f"{len(about)} warnings about it" if log["grad_norm"] == 0 else "a gradient",
)
