"""DPOTrainer makes a QLoRA adapter bfloat16, in fp16 runs too, and small steps are then lost.

fp16's GradScaler has no bfloat16 kernel on CUDA, so the run dies at its first step (trl#4901 shows
the message; this script needs no GPU and shows the dtype). On any device, bfloat16 keeps 8 bits: a
step of 1e-6, DPOConfig's default learning rate, does not change a weight of 1e-2.
"""

import tempfile

import torch
from tiny import dpo_trainer, model, verdict
from transformers import BitsAndBytesConfig, Idefics3ForConditionalGeneration

STEPS = 5


def adapter(trainer, matrix):
    return {n: p for n, p in trainer.model.named_parameters() if f"lora_{matrix}.default" in n}


def quantised(folder, **settings):
    four_bits = BitsAndBytesConfig(load_in_4bit=True)
    policy = Idefics3ForConditionalGeneration.from_pretrained(
        folder, quantization_config=four_bits, dtype=torch.float32
    )
    return dpo_trainer(policy=policy, gradient_checkpointing=False, **settings)


def moved(trainer):
    """The share of the entries of the matrices A that training changed, in percent."""
    before = {name: weight.detach().clone() for name, weight in adapter(trainer, "A").items()}
    trainer.train()
    changed = [(weight != before[name]).float() for name, weight in adapter(trainer, "A").items()]
    return 100 * torch.cat([entries.flatten() for entries in changed]).mean().item()


with tempfile.TemporaryDirectory() as folder:
    model().save_pretrained(folder)
    fp16_run = quantised(folder, fp16=True)
    stock = quantised(folder, max_steps=STEPS)
    float32 = quantised(folder, max_steps=STEPS)
dtypes = {weight.dtype for weight in adapter(fp16_run, "A").values()}
for weight in (*adapter(float32, "A").values(), *adapter(float32, "B").values()):
    weight.data = weight.data.float()
print(
    f"entries of A that {STEPS} steps at learning rate {stock.args.learning_rate} changed:", end=" "
)
print(f"{moved(stock):.1f}% as built, {moved(float32):.1f}% with the adapter in float32")
verdict(
    there=torch.bfloat16 in dtypes,
    expected="with fp16=True the adapter is float32",
    happens="with fp16=True the adapter is " + ", ".join(str(d)[6:] for d in dtypes),
)
