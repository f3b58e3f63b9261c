"""A forward hook stays behind on every embedding at every DPO step with gradient checkpointing.

The reference pass switches checkpointing off and on; switching it on calls
enable_input_require_grads(), which adds hooks and forgets the ones it added before.
"""

from tiny import dpo_trainer, model, verdict
from trl.models.utils import disable_gradient_checkpointing


def hooks(module):
    return len(module._forward_hooks)


STEPS = 20
trainer = dpo_trainer(max_steps=STEPS)
policy = trainer.model.get_base_model()
text, vision = policy.get_input_embeddings(), policy.model.vision_model.get_input_embeddings()
trainer.train()
print(f"after {STEPS} steps: {hooks(text)} on the text embeddings, {hooks(vision)} on the vision's")
policy.disable_input_require_grads()
left = hooks(text)
print(f"after disable_input_require_grads(): {left} left")

plain = model()  # no PEFT, no trainer: what happens in every step
plain.activation_checkpointing_enable()
before = hooks(plain.get_input_embeddings())
with disable_gradient_checkpointing(plain):
    pass
added = hooks(plain.get_input_embeddings()) - before
verdict(
    there=added > 0 or left > 0,
    expected="switching checkpointing off and on adds no hook; disabling leaves none",
    happens=f"off and on adds {added}; disabling leaves {left}",
)
