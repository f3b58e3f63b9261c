"""With PEFT and gradient checkpointing, a frozen vision tower is run again and differentiated.

enable_input_require_grads() hooks the embeddings of every sub-model, the vision tower's too, and
makes their outputs require gradients. Nothing in the tower is trainable: the work is thrown away.
"""

from tiny import dpo_trainer, verdict


def step(hooks):
    """(passes through a vision layer, backward passes through it, gradients) of one DPO step."""
    trainer = dpo_trainer()  # gradient_checkpointing is True by default
    policy = trainer.model.get_base_model()
    if not hooks:
        policy.disable_input_require_grads()
        policy.enable_input_require_grads = lambda: None
    layer = policy.model.vision_model.encoder.layers[0]
    forward, backward, gradients = [], [], {}
    layer.self_attn.register_forward_hook(lambda *_: forward.append(1))
    layer.register_full_backward_hook(lambda *_: backward.append(1))
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            assert "vision" not in name
            weight.register_hook(lambda grad, name=name: gradients.update({name: grad.clone()}))
    trainer.train()
    return len(forward), len(backward), gradients


forward, backward, gradients = step(hooks=True)
fewer, none, same = step(hooks=False)
print(f"without the hooks: {fewer} forward, {none} backward;", end=" ")
largest = max(gradient.abs().max() for gradient in gradients.values())
equal = all((gradients[n] - same[n]).abs().max() <= 1e-4 * largest for n in gradients)
print("gradients of the adapter equal to rounding:", equal)
verdict(
    there=forward > 2 or backward > 0,
    expected="a frozen vision layer runs forward 2 times a step (policy, reference), backward 0",
    happens=f"forward {forward} times, backward {backward}",
)
