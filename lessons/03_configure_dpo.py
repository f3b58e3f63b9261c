# %% [markdown]
# # 03 · Configure DPO
#
# **The question:** what does the loss do, and which settings matter on my GPU?
#
# | track | time |
# |---|---|
# | pocket | about 1 minute on 2 CPU cores, measured |
# | t4, ampere | not measured on this hardware |
#
# **You need** the conversational pairs of lesson 02. **You will have** worked the DPO loss by hand,
# found it equal to the trainer's, and a configuration in which you can defend every line.

# %% tags=["parameters"]
TRACK = "auto"  # "pocket", "t4", "ampere", or "auto": whatever this machine can do
QUICK = False  # True: fewer pairs and steps, to see the lesson run
SEED = 0
PAIRS = 16  # pairs in the batch that you will take apart
BETA = 0.1  # how closely the policy is held to the reference

# %% [markdown]
# The track decides on model, data and sizes; nothing below asks for the hardware.

# %%
import math
import re
from dataclasses import fields

import matplotlib.pyplot as plt
import numpy as np
import torch
from peft import get_peft_model
from transformers import AutoModelForImageTextToText, Idefics3Config, Idefics3Processor
from transformers import Idefics3ImageProcessorPil as ImageProcessor
from trl import DPOConfig, DPOTrainer

from helpers import models, objectives, plots, pocket
from helpers.preferences import load_raw, to_conversational
from helpers.tracks import choose
from helpers.trainer import SetupError, check_setup, dpo_config

track = choose(TRACK)
PAIRS, STEPS = (4, 3) if QUICK else (PAIRS, 12)
print(f"track {track.name}: {track.machine}")

# %% [markdown]
# ## The loss on four numbers
#
# A *log-prob* is the logarithm of the probability that a model gives to an answer, in nats. DPO
# needs four for each pair: the **policy** (the model in training) and the **reference** (the same
# model before training) each score the chosen and the rejected answer.

#
# A *reward* is beta times what the policy adds to the reference's log-prob. The *margin* is the
# chosen reward minus the rejected one. The loss is the negative log of the margin's sigmoid (equation
# 7 of [the DPO paper](https://arxiv.org/abs/2305.18290)).
#
# Predict the sign of the margin: the policy finds the chosen answer likelier than the reference does,
# and the rejected answer less likely.

# %%
four = policy_chosen, policy_rejected, reference_chosen, reference_rejected = -12, -15, -13, -14
chosen_reward = BETA * (policy_chosen - reference_chosen)
rejected_reward = BETA * (policy_rejected - reference_rejected)
margin = chosen_reward - rejected_reward
loss = -math.log(1 / (1 + math.exp(-margin)))
print(f"rewards {chosen_reward:+.2f} and {rejected_reward:+.2f}, margin {margin:+.2f}")
print(f"loss {loss:.4f}; at margin 0 it would be ln 2 = {math.log(2):.4f}")

helper_loss = objectives.dpo_loss(*(torch.tensor([float(x)]) for x in four), BETA)[0]
assert abs(helper_loss.item() - loss) < 1e-6  # the same for many pairs at once

# %% [markdown]
# Two nats of progress move the loss only a little below ln 2. Keep that scale in mind when you watch
# a training curve. The last lines check that `helpers.objectives.dpo_loss` says the same.
#
# ### What beta does
#
# Beta multiplies the difference in nats before the sigmoid. Every curve passes through ln 2 at zero.
# Predict which one is flat first on the right: the one with the high or with the low beta?

# %%
plots.beta_curves((0.05, 0.1, 0.5))
plt.show()

# %% [markdown]
# Where a curve is flat, a pair no longer pulls. The gradient of the loss is beta times a weight,
# sigma(-margin): one half at the start, near zero once the pair is well separated.
#
# And suppose that of ten annotators one disagrees with each pair. Where is the mean loss smallest?

# %%
nats = np.linspace(-10, 60, 701)
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for beta, colour in zip((0.05, 0.1, 0.5), ("#440154", "#31688e", "#35b779"), strict=True):
    ax.plot(nats, 1 / (1 + np.exp(beta * nats)), color=colour, linewidth=2, label=f"beta {beta:g}")
    ax.plot(math.log(9) / beta, 0.1, "o", color=colour)
    mixed = 0.9 * np.logaddexp(0, -beta * nats) + 0.1 * np.logaddexp(0, beta * nats)
    print(f"beta {beta:4}: a tenth of the pull left at {math.log(9) / beta:4.1f} nats,", end=" ")
    print(f"smallest loss with one annotator in ten against at {nats[mixed.argmin()]:4.1f}")
ax.set(title="How hard a pair still pulls", xlabel="difference to the reference (nats)")
ax.set_ylabel("gradient weight, sigma(-margin)")
ax.legend()
plt.show()

# %% [markdown]
# > **Can you spot it?** A well-known chapter says that a higher beta lets the model move further from
# > the reference. Both of your columns say the opposite: with a higher beta a pair stops pulling after
# > fewer nats. **Higher beta, closer to the reference.**

# %% [markdown]
# ## The loss from the model
#
# Now with a real batch. `DPOTrainer` gets the policy, the pairs, the processor and an adapter, and no
# separate reference: with an adapter, the reference is the same model with the adapter switched off.

# %%
model, processor = models.load_policy(track)
pairs = to_conversational(load_raw(track, "train", PAIRS))
config = dpo_config(track, "runs/03", seed=SEED, beta=BETA)
trainer = DPOTrainer(
    model,
    args=config,
    train_dataset=pairs,
    processing_class=processor,
    peft_config=models.lora_config(model, track.lora_rank),
)
policy = trainer.model.eval()

# %% [markdown]
# The collator (lesson 02) puts all chosen answers first, then all rejected ones. So the batch has two
# rows for each pair. `completion_mask` is 1 on the tokens of the answer.

# %%
batch = {name: x.to(policy.device) for name, x in trainer.data_collator(list(pairs)).items()}
inputs = {name: x for name, x in batch.items() if name != "completion_mask"}
for name, values in batch.items():
    print(f"{name:21} {tuple(values.shape)}")

# %% [markdown]
# Position t predicts token t + 1. So drop the last logits and the first token, take the log-prob of
# each token that is really there, and keep those of the answer. The helper does the same, and sums.


# %%
def token_logps(model):
    """Log-prob of each token of the answers, 0 elsewhere: (rows, length - 1)."""
    logps = model(**inputs).logits[:, :-1].float().log_softmax(-1)
    logps = logps.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return logps * batch["completion_mask"][:, 1:]


labels = batch["input_ids"].where(batch["completion_mask"] == 1, objectives.IGNORED)
with torch.no_grad():
    by_token = token_logps(policy)
    sums = objectives.sequence_logps(policy(**inputs).logits, labels)
assert torch.allclose(sums, by_token.sum(1), atol=1e-3)  # the helper's sums

# %% [markdown]
# Look at one pair, token by token. Predict where the bars are long: on "I see", or on the words that
# say what is in the picture?


# %%
def show_tokens(ax, row, name, colour):
    scored = batch["completion_mask"][row, 1:].bool()
    ids, logps = batch["input_ids"][row, 1:][scored].tolist()[:32], by_token[row][scored][:32]
    words = [processor.tokenizer.decode([i]).strip() or "↵" for i in ids]
    ax.bar(range(len(ids)), logps.cpu(), color=colour)
    ax.set_xticks(range(len(ids)), words, rotation=70, fontsize=8)
    ax.set(title=f"{name}: sum {by_token[row].sum():.2f} nats", ylabel="log-prob (nats)")


figure, axes = plt.subplots(2, 1, figsize=(9, 6), layout="constrained", sharey=True)
show_tokens(axes[0], 0, "chosen", plots.CHOSEN)
show_tokens(axes[1], PAIRS, "rejected", plots.REJECTED)
axes[1].set_xlabel("token of the answer (the first 32)")
plt.show()

# %% [markdown]
# The sure words cost almost nothing. What the model doubts decides the sum. The log-prob of an
# answer is that **sum** over its tokens, the closing token included.
#
# ### At step 0
#
# An adapter is two small matrices, A and B, and B starts at zero. So before the first step the policy
# *is* the reference. Predict loss and margin before you run this.


# %%
def logps(model):
    """Log-probs of the chosen and of the rejected answers, each (pairs,)."""
    return token_logps(model).sum(1).chunk(2)


with torch.no_grad():
    policy_logps = logps(policy)
    with policy.disable_adapter():
        reference_logps = logps(policy)
losses, chosen_rewards, rejected_rewards = objectives.dpo_loss(
    *policy_logps, *reference_logps, BETA
)
step0_loss = losses.mean().item()
step0_margin = (chosen_rewards - rejected_rewards).abs().max().item()
print(f"loss {step0_loss:.6f}, ln 2 = {math.log(2):.6f}, largest margin {step0_margin:.6f}")

# %% [markdown]
# If your first logged loss is not 0.693, something is wrong: stop there. Lesson 04 does so with
# `check_setup`.
#
# ### Equal to TRL's own loss
#
# ln 2 is too easy a test: many wrong formulas give it too. So put noise into the adapter, and compare away from
# the start. Ours comes from logits and the completion mask, TRL's from `trainer.compute_loss`.

# %%
trainable = [weight for weight in policy.parameters() if weight.requires_grad]
start = [weight.detach().clone() for weight in trainable]
torch.manual_seed(SEED)
with torch.no_grad():
    for weight in trainable:
        weight += 0.05 * torch.randn_like(weight)
    policy_logps = logps(policy)
    trl_loss = trainer.compute_loss(policy, batch).item()
our_loss = objectives.dpo_loss(*policy_logps, *reference_logps, BETA)[0].mean().item()

apart = abs(our_loss - trl_loss)
assert apart < (1e-6 if track.dtype == "float32" else 1e-2)  # half precision rounds
print(f"by hand {our_loss:.7f}, TRL {trl_loss:.7f}, apart {apart:.1e}")

# %% [markdown]
# > **Can you spot it?** Some lessons take the *mean* over the tokens instead of the sum. Nothing
# > crashes. Predict what the loss becomes.

# %%
tokens = batch["completion_mask"][:, 1:].sum(1).chunk(2)
means = [x / n for x, n in zip((*policy_logps, *reference_logps), (*tokens, *tokens))]
mean_loss = objectives.dpo_loss(*means, BETA)[0].mean().item()
print(f"with sums {our_loss:.4f}, with means {mean_loss:.4f}, ln 2 {math.log(2):.4f}")
print(f"an answer has {torch.cat(tokens).float().mean():.0f} tokens on average")

# %% [markdown]
# The mean divides every difference by the length, as if beta were that many times smaller, and
# differently for each answer. The curve sits near ln 2 and looks like a run that does not learn. TRL
# offers length-normalised losses on purpose, under their own names (`sigmoid_norm`, `ipo`).
#
# ## One step, and how long it should be
#
# Time to train by hand: a dozen lines around the same loss. First, back to the clean adapter.


# %% tags=["showcase"]
def train_by_hand(objective, learning_rate, steps):
    """The log-probs of chosen and rejected before each step and after the last."""
    with torch.no_grad():
        for weight, value in zip(trainable, start):
            weight.copy_(value)
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0)
    path = []
    for step in range(steps + 1):
        policy_logps = logps(policy)
        path.append(torch.stack([x.detach().cpu() for x in policy_logps]))
        losses, *_ = objective(*policy_logps, *reference_logps, BETA)
        optimizer.zero_grad()
        losses.mean().backward()
        if step < steps:
            optimizer.step()
    return torch.stack(path)  # (steps + 1, chosen and rejected, pairs)


# %% [markdown]
# One step at the track's learning rate. Predict: does every chosen answer go up, and every rejected
# one down?

# %%
path = train_by_hand(objectives.dpo_loss, track.learning_rate, STEPS)
chosen_change, rejected_change = (path[1] - path[0]).numpy()
figure, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
ax.bar(np.arange(PAIRS) - 0.2, chosen_change, 0.4, color=plots.CHOSEN, label="chosen")
ax.bar(np.arange(PAIRS) + 0.2, rejected_change, 0.4, color=plots.REJECTED, label="rejected")
ax.axhline(0, color="black", linewidth=0.8)
ax.set(title="One step", xlabel="pair", ylabel="change of the log-prob (nats)")
ax.legend()
plt.show()
print(f"chosen up in {(chosen_change > 0).mean():.0%} of the pairs,", end=" ")
print(f"rejected down in {(rejected_change < 0).mean():.0%},", end=" ")
print(f"the margin grew in {(chosen_change > rejected_change).mean():.0%}")

# %% [markdown]
# Look for the exceptions. DPO never asks that the chosen answer goes up; it asks that the
# *difference* grows. So a falling chosen reward is no fault by itself, though "is it broken?" is among
# the most asked questions about DPO. Watch the margin first.
#
# ### The learning rate
#
# TRL's default is 1e-6. B starts at zero, and Adam's first step moves each of its entries by about
# the learning rate, however large the gradient. Predict what 1e-6 does in a few steps, and whether
# another loss (`hinge`, dashed) matters as much. The axis is logarithmic above 0.001.

# %%
dpo, hinge, rate = objectives.dpo_loss, objectives.hinge_loss, track.learning_rate
trials = [(dpo, r) for r in sorted({1e-6, 1e-5, rate, 10 * rate})] + [(hinge, rate)]
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for objective, r in trials:
    path = train_by_hand(objective, r, STEPS)
    margins = BETA * (path - path[0]).diff(dim=1).mean((1, 2)).neg()
    name = f"{objective.__name__.removesuffix('_loss')}, {r:.0e}"
    ax.plot(margins, "--" if objective is hinge else "-", label=name)
    print(f"{name}: margin {margins[-1]:+.4f} after {STEPS} steps")
ax.set_yscale("symlog", linthresh=1e-3)
ax.set(title="The same steps, other learning rates", xlabel="step", ylabel="mean margin")
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# At 1e-6 the adapter has hardly left zero. The RLAIF-V authors took 5e-7 for all weights and 1e-5
# for LoRA. The pocket track takes 8e-5: its whole run is 41 steps. Ten times more
# climbs fast on these pairs, which is no proof of better answers: lesson 05 measures those. The loss
# mattered far less. Tune the learning rate before you shop for a loss.
#
# ## DPOConfig, setting by setting
#
# Mistakes in the configuration come in two kinds: loud and silent. You will see both. This prints
# what is raised, instead of stopping:


# %%
def attempt(make):
    """Print the error that `make` raises, or that it is fine."""
    try:
        make()
        print("fine")
    except (TypeError, ValueError, SetupError) as error:
        print(f"{type(error).__name__}: {error}")


# %% [markdown]
# ### Silent: an answer that is cut off
#
# TRL's default, `max_length=1024`, cuts each row after 1,024 tokens. Suppose that the prompt and its
# picture take them all. Predict the loss.

# %%
prompt_length = int(batch["completion_mask"].argmax(1).max())
trainer.data_collator = type(trainer.data_collator)(
    processor, max_length=prompt_length
)  # as DPOConfig would
cut = {name: x.to(policy.device) for name, x in trainer.data_collator(list(pairs)).items()}
with torch.no_grad():
    cut_loss = trainer.compute_loss(policy, cut).item()
print(f"{int(cut['completion_mask'].sum())} answer tokens left, loss {cut_loss:.4f}")
attempt(lambda: check_setup(trainer))  # the course's check

# %% [markdown]
# Every answer is gone, TRL raises nothing, and the loss would sit at ln 2 for ever: an empty sum is
# zero on both sides. Only the course's check, in the last line, says what is wrong. So `max_length` is
# None here.
#
# ### Loud: arguments that are gone
#
# Examples on the web still use what TRL has removed or renamed. Each attempt below is followed by its
# mend: `max_length` covers prompt and answer together; the trainer's argument is now
# `processing_class`, and it wants the whole processor (as you passed it above); and
# `bf16=True` is refused where there is no GPU. Predict what leaving `bf16` out does.

# %%
attempt(lambda: DPOConfig("runs/03", max_prompt_length=512, use_cpu=True))
attempt(lambda: DPOConfig("runs/03", max_length=None, use_cpu=True))  # the mend
attempt(lambda: DPOTrainer(model, args=config, train_dataset=pairs, tokenizer=processor))
attempt(lambda: DPOConfig("runs/03", bf16=True))
attempt(lambda: DPOConfig("runs/03"))
attempt(lambda: dpo_config(track, "runs/03"))  # the mend: what this machine can do

# %% [markdown]
# Leaving it out does not help: TRL's default is bf16 unless `fp16` is set. On a GPU with bf16 these
# two lines say "fine". (A new `DPOConfig` also resets what an older trainer holds on to: make it first.)
#
# A T4 passes this check, because torch counts *emulated* bf16, and then training is slow (from the
# source, not measured here). So tracks ask for the compute capability: 8.0 and up has real bf16.
#
# Now every setting in which the track's configuration differs from TRL's defaults, computed.

# %%
default, config = DPOConfig("runs/03", use_cpu=True), dpo_config(track, "runs/03")
changed = {
    field.name: (getattr(default, field.name), getattr(config, field.name))
    for field in fields(DPOConfig)
    if field.name not in ("output_dir", "use_cpu", "seed")
}
changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
for name, (before, after) in changed.items():
    print(f"{name:29} {getattr(before, 'value', before)!s:>6} -> {getattr(after, 'value', after)}")

# %% [markdown]
# | setting | why |
# |---|---|
# | `per_device_*_batch_size`, `gradient_accumulation_steps` | what fits; their product is what a step sees |
# | `learning_rate` | an adapter, not all weights: see above |
# | `bf16`, `fp16` | what the machine really computes in |
# | `activation_checkpointing`, also as `gradient_checkpointing` | saves memory by computing twice; not short on a CPU |
# | `max_length` | None: nothing is cut, see above |
# | `num_train_epochs` | 3 is the default; one pass on the larger data |
# | `logging_steps`, `save_strategy` | a curve worth reading; lesson 04 saves on purpose |
#
# `beta` stays at 0.1. So does the loss, `sigmoid`.

# %% [markdown]
# ## LoRA on the text model
#
# LoRA adds its small matrices to chosen linear layers. Public notebooks name them by their last word,
# `["q_proj", "v_proj"]`. Predict how many layers that hits in a model that also has a vision tower.


# %%
def matched(pattern):
    """Names of the linear layers that an adapter would sit on, as PEFT matches them."""
    names = [n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)]
    if isinstance(pattern, str):
        return [name for name in names if re.fullmatch(pattern, name)]
    return [name for name in names if name.split(".")[-1] in pattern]


plain = pocket.build_model(pocket.build_processor())
for name in matched(["q_proj", "v_proj"])[::3]:
    print(name)

# %% [markdown]
# The list also hits the vision tower, whose layers have the same names. The course writes a regular
# expression that must pass through the text model: `helpers.models.TEXT_LINEARS`.

# %%
patterns = {'["q_proj", "v_proj"]': ["q_proj", "v_proj"], "TEXT_LINEARS": models.TEXT_LINEARS}
figure, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
for row, (name, pattern) in enumerate(patterns.items()):
    vision = sum("vision_model" in layer for layer in matched(pattern))
    text = len(matched(pattern)) - vision
    ax.barh(row, text, color="#D9D9D9", edgecolor="grey", label="text model" if row else None)
    ax.barh(row, vision, left=text, color="#56B4E9", label="vision tower" if row else None)
    print(f"{name}: {text} layers of the text model, {vision} of the vision tower")
ax.set_yticks([0, 1], patterns)
ax.set(title="What an adapter sits on, pocket model", xlabel="linear layers")
ax.legend()
plt.show()
trained, total = policy.get_nb_trainable_parameters()
print(
    f"rank {track.lora_rank}: {trained:,} of {total:,} weights are trained, {trained / total:.1%}"
)

# %% [markdown]
# Why not train the vision tower too? You can. It costs memory and time, because gradients then flow
# through every tile of every picture. Decide it; do not inherit it from a list.
#
# > **Can you spot it?** "QLoRA quantises the adapters to 4 bits." One public notebook says so. Predict
# > what you will find in a layer: which part is stored in 4 bits?

# %%
small, _ = models.load(pocket.CHECKPOINT, quantize=True)
layer = get_peft_model(small, models.lora_config(small)).base_model.model.model.text_model.layers[0]
print("base   ", layer.self_attn.q_proj.base_layer.weight.dtype, "(two 4-bit numbers in a byte)")
print("adapter", layer.self_attn.q_proj.lora_A["default"].weight.dtype)

# %% [markdown]
# The frozen base is quantised, the adapter is not: it has to take small steps. TRL then makes it
# bfloat16, which suits an Ampere GPU. On a T4 its gradient scaler cannot handle that, which is why
# the t4 track does without 4 bits (from the source, not measured here).
#
# ## Two budgets: tokens and memory
#
# How many positions does one picture take? Build SmolVLM's image processing from its published
# numbers: tiles of 512 pixels, 64 tokens a tile, pictures enlarged to 2,048 pixels first.


# %%
def smolvlm_processor(edge):
    tiles = ImageProcessor(
        size={"longest_edge": edge},
        max_image_size={"longest_edge": 512},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Idefics3Processor(tiles, pocket.build_tokenizer(), image_seq_len=64)


# %% [markdown]
# The tokenizer is the pocket one; only the image tokens are counted. Predict the tokens of a square
# picture of 640 pixels.

# %%
sizes = {"640 x 640": (640, 640), "640 x 480": (640, 480), "960 x 480": (960, 480)}
settings = {"SmolVLM, 2048 first": 2048, "longest edge 1024": 1024, "longest edge 512": 512}
figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for i, (setting, edge) in enumerate(settings.items()):
    counts = [models.image_tokens(smolvlm_processor(edge), *size) for size in sizes.values()]
    ax.bar(np.arange(3) + 0.26 * (i - 1), counts, 0.26, label=setting)
    print(f"{setting:20}", dict(zip(sizes, counts)))
ax.axhline(1024, color="black", linestyle=":", label="TRL's default max_length")
ax.set_ylim(0, 1500)
ax.set_xticks(range(3), sizes)
ax.set(title="Image tokens of one picture, SmolVLM-256M", xlabel="pixels", ylabel="image tokens")
ax.legend()
plt.show()
print(f"your track, 640 x 640: {models.image_tokens(processor, 640, 640)} image tokens")

# %% [markdown]
# A square picture is 17 tiles, over the default `max_length` before the first word, and even a small
# picture is enlarged. The t4 track sets the longest edge to 512 pixels: one tile. You trade detail
# for speed and memory.
#
# ### Memory, before activations
#
# How large is SmolVLM-256M? Torch's *meta* device builds a model from its configuration with shapes
# and no numbers, so this costs no memory and no download.

# %%
published = Idefics3Config(
    text_config={
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49280,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    vision_config={
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
    },
    scale_factor=4,
)  # fmt: skip
with torch.device("meta"):
    smolvlm = AutoModelForImageTextToText.from_config(published)
print(f"{smolvlm.num_parameters():,} weights, {2 * smolvlm.num_parameters() / 1e6:.0f} MB in bf16")

# %% [markdown]
# That is the size of the published file, 513 MB. In 4 bits (NF4, double quantisation) a weight takes
# about 4.13 bits, but only the linear layers are quantised: embeddings and the output layer stay
# bf16.

# %%
linear = sum(m.weight.numel() for n, m in smolvlm.named_modules()
             if isinstance(m, torch.nn.Linear) and n != "lm_head")  # fmt: skip
weights = smolvlm.num_parameters()
nf4 = (linear * 4.127 / 8 + (weights - linear) * 2) / weights
adapted = get_peft_model(smolvlm, models.lora_config(smolvlm, rank=16))
adapter = adapted.get_nb_trainable_parameters()[0]
print(f"4-bit base: {nf4:.2f} bytes a weight on average; adapter: {adapter:,} weights")

# %% [markdown]
# Now three ways to train. Besides the weights, each trained weight needs a gradient and two moments
# of AdamW. Full fine-tuning also needs the reference as a second model. Predict the ratio of the
# first bar to the last.


# %%
def budgets(weights, adapter, nf4):
    count = models.memory_budget
    return {
        "full fp32, separate reference": count(weights, weights, 4, separate_reference=True),
        "bf16 base, LoRA": count(weights, adapter, 2),
        "4-bit base, LoRA (QLoRA)": count(weights, adapter, nf4, trainable_bytes=2),
    }


smol = budgets(weights, adapter, nf4)
for name, parts in smol.items():
    print(f"{name:30} {sum(parts.values()):.2f} GB")

# %% [markdown]
# The same as stacked bars. Which part vanishes between the first and the second bar?

# %%
figure, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
colours = {"weights": "#999999", "reference": "#56B4E9", "adapter": "#009E73",
           "gradients": "#E69F00", "optimizer": "#CC79A7"}  # fmt: skip
left = np.zeros(len(smol))
for part, colour in colours.items():
    values = np.array([parts[part] for parts in smol.values()])
    ax.barh(list(smol), values, left=left, color=colour, label=part)
    left += values
ax.invert_yaxis()
ax.set(title="SmolVLM-256M, before any activation", xlabel="GB (1e9 bytes)")
ax.legend(ncols=2)
plt.show()

# %% [markdown]
# Activations come on top. They grow with the batch, the tokens and the tiles. One example is the
# table of scores for the next token, the logits. Here it is for 2 pairs with answers of 150 tokens,
# every position scored in fp32: once with one tile, once with 17.

# %%
for image in (64, 17 * 64):
    logits = 2 * 2 * (image + 150) * 49280 * 4 / 1e9
    print(f"{image:4} image tokens: {logits:.2f} GB of logits")

# %% [markdown]
# The picture's tokens decide whether this small model fits, more than its weights do. Last, the
# figure to remember from this lesson.

# %% tags=["key-figure"]
print(
    f"loss {our_loss:.4f} by hand and {trl_loss:.4f} in TRL, apart {apart:.0e}; at step 0 {step0_loss:.4f}"
)

# %% [markdown]
# ## Recap
#
# - The loss of a pair is -log sigmoid(beta × difference to the reference, chosen minus rejected).
# - At step 0 the loss is ln 2 and the margin 0. Anything else is a wrong set-up.
# - Log-probs of an answer are sums over its tokens. Higher beta keeps closer to the reference.
# - The learning rate comes first; an adapter needs far more than TRL's default.
# - Name the text model in `target_modules`, set `max_length=None`, and count the image tokens.
#
# **Try it**
#
# 1. Set `BETA = 0.5`. Predict the loss on the four numbers, and the loss at step 0.
# 2. Double the learning rate in the one-step picture. Predict the height of the bars.
#
# [Next: 04 · Train with DPO](04_train_dpo.ipynb)
