"""LogCompletionsCallback fails with vision language models: the prompt is read as a picture.

It calls `processing_class(batch)`; the first argument of a processor is `images`. The pictures of
the evaluation set are never passed.
"""

from tiny import dpo_trainer, pairs, verdict
from trl import LogCompletionsCallback

trainer = dpo_trainer()
trainer.eval_dataset = pairs()
trainer.add_callback(LogCompletionsCallback(trainer, freq=1))
try:
    trainer.train()
    error = None
except Exception as raised:
    error = raised
verdict(
    there=error is not None,
    expected="completions are logged, or the callback refuses vision models when it is built",
    happens=f"{type(error).__name__} in the first step: {str(error)[:88]}…"
    if error
    else "no error",
)
