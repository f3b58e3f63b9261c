# %% [markdown]
# # 03 · Configure DPO
#
# **The question:** what does the loss do, and which settings matter on my GPU?
#
# | track | time |
# |---|---|
# | pocket | about 30 seconds on 2 CPU cores, measured |
# | t4, ampere | not measured on this hardware |
#
# **You need** the conversational pairs of lesson 02. **You will have** worked the DPO loss by hand,
# found it equal to the trainer's, and a configuration in which you can defend every line.

# %% tags=["parameters"]
TRACK = "auto"  # "pocket", "t4", "ampere", or "auto": whatever this machine can do
MODEL = None  # another model for the track, such as "HuggingFaceTB/SmolVLM-500M-Instruct" on t4
QUICK = False  # True: fewer pairs and steps, to see the lesson run
SEED = 0
PAIRS = 16  # pairs in the batch that you will take apart
BETA = 0.1  # how closely the policy is held to the reference

# %% [markdown]
# The track decides on model, data and sizes; nothing below asks for the hardware.

# %%
import math
import re
from dataclasses import fields, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from peft import get_peft_model
from trl import DPOConfig, DPOTrainer

# %%
from helpers.dpo.losses import dpo_loss, hinge_loss
from helpers.dpo.trainer import SetupError, check_setup, dpo_config
from helpers.pairs.format import to_conversational
from helpers.pairs.load import load_raw
from helpers.plots.cards import CHOSEN, REJECTED, pair_card, print_wrapped
from helpers.plots.curves import beta_curves
from helpers.setup.machine import Machine, precision, this_machine
from helpers.setup.tracks import choose
from helpers.vlm import memory as budget
from helpers.vlm import pocket, smolvlm
from helpers.vlm.answers import IGNORED, sequence_logps
from helpers.vlm.load import TEXT_LINEARS, limit_edge, load, load_policy, lora_config

# %% [markdown]
# Your track decides how many pairs the loop by hand can hold:

# %%
track = choose(TRACK, model=MODEL)
PAIRS, STEPS = (4, 3) if QUICK else (PAIRS, 12)
PAIRS = min(
    PAIRS, track.batch_size
)  # below, a loop in float32 keeps everything: two pairs on a GPU
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

helper_loss = dpo_loss(*(torch.tensor([float(x)]) for x in four), BETA)[0]
assert abs(helper_loss.item() - loss) < 1e-6  # the same for many pairs at once

# %% [markdown]
# Two nats of progress move the loss only a little below ln 2. Keep that scale in mind when you watch
# a training curve. The last lines check that `helpers.dpo.losses.dpo_loss` says the same.
#
# ### What beta does
#
# Beta multiplies the difference in nats before the sigmoid. Every curve passes through ln 2 at zero.
# Predict which one is flat first on the right: the one with the high or with the low beta?

# %%
beta_curves((0.05, 0.1, 0.5))
plt.show()

# %% [markdown]
# Where a curve is flat, a pair no longer pulls. The gradient of the loss is beta times a weight,
# sigma(-margin): one half at the start, near zero once the pair is well separated.
#
# Now let one annotator in ten disagree with each pair. The mean loss is smallest where nine weak pulls
# equal one strong one, at sigma(margin) = 0.9. How many nats is that, for a high and for a low beta?

# %%
nats = np.linspace(-10, 60, 701)
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for beta, colour in zip((0.05, 0.1, 0.5), ("#440154", "#31688e", "#35b779"), strict=True):
    ax.plot(nats, 1 / (1 + np.exp(beta * nats)), color=colour, linewidth=2, label=f"beta {beta:g}")
    ax.plot(math.log(9) / beta, 0.1, "o", color=colour)
    mixed = 0.9 * np.logaddexp(0, -beta * nats) + 0.1 * np.logaddexp(0, beta * nats)
    print(f"beta {beta:4}: a tenth of the pull left at {math.log(9) / beta:4.1f} nats,", end=" ")
    print(f"smallest loss with one in ten against at {nats[mixed.argmin()]:4.1f}")
ax.set(title="How hard a pair still pulls", xlabel="difference to the reference (nats)")
ax.set_ylabel("gradient weight, sigma(-margin)")
ax.legend()
plt.show()

# %% [markdown]
# > **Can you spot it?** A well-known chapter says that a higher beta lets the model move further from
# > the reference. Both printed columns say the opposite: with a higher beta a pair stops pulling after
# > fewer nats. **Higher beta, closer to the reference.**

# %% [markdown]
# ## The loss from the model
#
# Now with a real batch. `DPOTrainer` gets the policy, the pairs, the processor and an adapter, and no
# separate reference: with an adapter, the reference is the same model with the adapter switched off.

# %%
model, processor = load_policy(track)
pairs = to_conversational(load_raw(track, "train", PAIRS))
config = dpo_config(track, "runs/03", seed=SEED, beta=BETA)
trainer = DPOTrainer(
    model,
    args=config,
    train_dataset=pairs,
    processing_class=processor,
    peft_config=lora_config(model, track.lora_rank),
)
policy = trainer.model.train()  # there is no dropout to switch on

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


labels = batch["input_ids"].where(batch["completion_mask"] == 1, IGNORED)
with torch.no_grad():
    by_token = token_logps(policy)
    sums = sequence_logps(policy(**inputs).logits, labels)
assert torch.allclose(sums, by_token.sum(1), atol=1e-3)  # the helper's sums

# %% [markdown]
# Here is the first pair of the batch.

# %% tags=["cover"] alt="A card: a drawn scene with a house, a ball and a book, the question what you see, and two answers, chosen and rejected; the words in which they differ are coloured."
card = pair_card(load_raw(track, "train", 1)[0])

# %% [markdown]
# Look at it token by token. Predict where the bars are long: on "I see", or on the words that say
# what is in the picture?


# %%
def show_tokens(ax, row, name, colour):
    scored = batch["completion_mask"][row, 1:].bool()
    ids, logps = batch["input_ids"][row, 1:][scored].tolist()[:32], by_token[row][scored][:32]
    words = [processor.tokenizer.decode([i]).strip() or "↵" for i in ids]
    ax.bar(range(len(ids)), logps.cpu(), color=colour)
    ax.set_xticks(range(len(ids)), words, rotation=70, fontsize=8)
    ax.set(title=f"{name}: sum {by_token[row].sum():.2f} nats", ylabel="log-prob (nats)")


figure, axes = plt.subplots(2, 1, figsize=(9, 6), layout="constrained", sharey=True)
show_tokens(axes[0], 0, "chosen", CHOSEN)
show_tokens(axes[1], PAIRS, "rejected", REJECTED)
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
losses, chosen_rewards, rejected_rewards = dpo_loss(*policy_logps, *reference_logps, BETA)
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
our_loss = dpo_loss(*policy_logps, *reference_logps, BETA)[0].mean().item()

apart = abs(our_loss - trl_loss)
assert apart < (1e-6 if track.dtype == "float32" else 1e-2)  # half precision rounds
print(f"by hand {our_loss:.7f}, TRL {trl_loss:.7f}, apart {apart:.1e}")

# %% [markdown]
# > **Can you spot it?** Some lessons take the *mean* over the tokens instead of the sum. Nothing
# > crashes. Predict what the loss becomes.

# %%
tokens = batch["completion_mask"][:, 1:].sum(1).chunk(2)
means = [x / n for x, n in zip((*policy_logps, *reference_logps), (*tokens, *tokens))]
mean_loss = dpo_loss(*means, BETA)[0].mean().item()
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
path = train_by_hand(dpo_loss, track.learning_rate, STEPS)
chosen_change, rejected_change = (path[1] - path[0]).numpy()
figure, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
ax.bar(np.arange(PAIRS) - 0.2, chosen_change, 0.4, color=CHOSEN, label="chosen")
ax.bar(np.arange(PAIRS) + 0.2, rejected_change, 0.4, color=REJECTED, label="rejected")
ax.axhline(0, color="black", linewidth=0.8)
ax.set(title="One step", xlabel="pair", ylabel="change of the log-prob (nats)")
ax.legend()
plt.show()
print(f"chosen up in {(chosen_change > 0).mean():.0%} of the pairs,", end=" ")
print(f"rejected down in {(rejected_change < 0).mean():.0%},", end=" ")
print(f"the margin grew in {(chosen_change > rejected_change).mean():.0%}")

# %% [markdown]
# Look for the exceptions. DPO never asks that the chosen answer goes up; it asks that the
# *difference* grows, on average over the batch and not in every pair. So a falling chosen reward is
# no fault by itself. Watch the margin first.
#
# ### The learning rate
#
# TRL's default is 1e-6. B starts at zero, and Adam's first step moves each of its entries by about
# the learning rate, however large the gradient. Predict what 1e-6 does in a few steps, and whether
# another loss (`hinge`, dashed) matters as much. The axis is logarithmic above 0.001.

# %%
dpo, hinge, rate = dpo_loss, hinge_loss, track.learning_rate
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
# climbs fast on these pairs, which is no proof of better answers: lesson 05 measures those. The dashed
# hinge lies on the green line, as it must while margins are small; about longer runs it says nothing.
#
# ## DPOConfig, setting by setting
#
# Mistakes in the configuration come in two kinds: loud and silent. You will make both, each beside
# its mend. This prints what is raised, instead of stopping:


# %%
def attempt(make):
    """Print what `make` returns, or the error that it raises."""
    try:
        result = make()
        print("works:", result if isinstance(result, str) else type(result).__name__)
    except (TypeError, ValueError, SetupError) as error:
        print_wrapped(f"{type(error).__name__}: {error}")


# %% [markdown]
# ### A picture cut, an answer cut
#
# TRL's default, `max_length=1024`, cuts each row after 1,024 tokens. A picture is at the beginning,
# the answer at the end. Predict for each limit below: an error, or a loss?


# %%
def first_loss(max_length):
    """The loss on the batch if DPOConfig had this max_length."""
    collator = type(trainer.data_collator)
    trainer.data_collator = collator(processor, max_length=max_length)
    trainer.args.max_length = max_length
    cut = {name: x.to(policy.device) for name, x in trainer.data_collator(list(pairs)).items()}
    with torch.no_grad():
        loss = trainer.compute_loss(policy, cut).item()
    return f"{int(cut['completion_mask'].sum())} answer tokens are scored, loss {loss:.4f}"


prompt_length = int(batch["completion_mask"].argmax(1).max())
for limit in (10, prompt_length, None):
    print(f"max_length={limit}")
    attempt(lambda limit=limit: first_loss(limit))

# %% [markdown]
# A cut picture is loud. A cut answer is silent: no token is left, an empty sum is zero on both
# sides, and the loss would sit at ln 2 for ever. (The uncut loss is below it because the adapter
# still holds the last trial's steps.) So `max_length` is None in this course, and its check names the
# pair:

# %%
first_loss(prompt_length)
attempt(lambda: check_setup(trainer))
_ = first_loss(None)  # the mend

# %% [markdown]
# ### The tokenizer in the processor's place
#
# Examples on the web still use arguments that TRL has removed or renamed. Predict which of these
# four gets through.

# %%
attempt(lambda: DPOConfig("runs/03", max_prompt_length=512, use_cpu=True))
attempt(lambda: DPOTrainer(model, args=config, train_dataset=pairs, tokenizer=processor))
text_only = {"args": config, "train_dataset": pairs, "processing_class": processor.tokenizer}
attempt(lambda: DPOTrainer(model, **text_only))
attempt(lambda: dpo_config(track, "runs/03", max_length=None))  # the mend

# %% [markdown]
# `max_length` covers prompt and answer together. The trainer's argument is now `processing_class`,
# and it wants the whole processor: a tokenizer cannot read pictures, and TRL then says that the
# *model* is no vision model.
#
# ### Precision
#
# bf16 has the range of fp32 in half the bits. GPUs compute in it since Ampere, *compute capability*
# 8.0; Colab's free T4 has 7.5. Predict what you see here, then read it on your machine.

# %%
attempt(lambda: DPOConfig("runs/03", bf16=True))
attempt(lambda: DPOConfig("runs/03"))
attempt(lambda: dpo_config(track, "runs/03"))  # the mend: what this machine can do

# %% [markdown]
# Without a GPU the first two are refused, and leaving `bf16` out does not help: it is TRL's default
# unless `fp16` is set. On an L4 or an A100 all three work. A T4 is the trap: it passes as well,
# because torch counts *emulated* bf16. How slow that is we have not measured.
#
# So the course never asks `torch.cuda.is_bf16_supported()`. It asks the compute capability:

# %%
machines = [
    Machine("cuda", "Tesla T4", (7, 5), 14.6),
    Machine("cuda", "NVIDIA L4", (8, 9), 22.0),
    Machine("cuda", "NVIDIA A100", (8, 0), 39.4),
    Machine("mps", "Apple GPU", None, 16.0),
    this_machine(),
]
table = pd.DataFrame(
    {
        "track": choose("auto", machine=machine).name,
        "weights": precision(machine).dtype,
        "autocast": precision(machine).autocast,
        "a 4-bit base computes in": precision(machine, quantize=True).dtype,
    }
    for machine in machines
)
table.set_index(pd.Index(map(str, machines)))

# %% [markdown]
# fp16 has a narrow range: small gradients vanish. So it comes with a *gradient scaler*, which
# multiplies the loss and divides the gradients again. It can only do that for weights in float32;
# what is trained is float32 on every track, also over a base in 4 bits.
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
# | `logging_steps`, `save_steps`, `save_total_limit` | a curve worth reading; little lost when the machine goes |
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
# expression that must pass through the text model: `helpers.vlm.load.TEXT_LINEARS`.

# %%
patterns = {'["q_proj", "v_proj"]': ["q_proj", "v_proj"], "TEXT_LINEARS": TEXT_LINEARS}
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
small, _ = load(pocket.CHECKPOINT, quantize=True)
layer = get_peft_model(small, lora_config(small)).base_model.model.model.text_model.layers[0]
print("base   ", layer.self_attn.q_proj.base_layer.weight.dtype, "(two 4-bit numbers in a byte)")
print("adapter", layer.self_attn.q_proj.lora_A["default"].weight.dtype)

# %% [markdown]
# The frozen base is quantised, the adapter is not: it has to take small steps. TRL makes it bfloat16,
# which the scaler of fp16 cannot handle, and in which a step of 1e-5 on a weight of 1e-2 is lost in
# rounding. The course's `dpo_trainer` makes it float32 again.
#
# ## Two budgets: tokens and memory
#
# How many positions does one picture take? `helpers.vlm.smolvlm` holds SmolVLM's published numbers: for
# the 256M, tiles of 512 pixels, 64 tokens a tile, pictures enlarged to 2,048 pixels first. (The
# tokenizer is the pocket one; only image tokens are counted.) Predict those of 640 x 640 pixels.

# %%
sizes = {"640 x 640": (640, 640), "640 x 480": (640, 480), "960 x 480": (960, 480)}
settings = {"SmolVLM, 2048 first": 2048, "longest edge 1024": 1024, "longest edge 512": 512}
figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for i, (setting, edge) in enumerate(settings.items()):
    reader = smolvlm.processor("256M", pocket.build_tokenizer())
    limit_edge(reader, edge)
    counts = [budget.image_tokens(reader, *size) for size in sizes.values()]
    ax.bar(np.arange(3) + 0.26 * (i - 1), counts, 0.26, label=setting)
    print(f"{setting:20}", dict(zip(sizes, counts)))
ax.axhline(1024, color="black", linestyle=":", label="TRL's default max_length")
ax.set_ylim(0, 1500)
ax.set_xticks(range(3), sizes)
ax.set(title="Image tokens of one picture, SmolVLM-256M", xlabel="pixels", ylabel="image tokens")
ax.legend()
plt.show()
print(f"your track, 640 x 640: {budget.image_tokens(processor, 640, 640)} image tokens")

# %% [markdown]
# A square picture is 17 tiles, over the default `max_length` before the first word, and even a small
# picture is enlarged. The t4 track sets the longest edge to 512 pixels: one tile, and a photograph
# of 640 pixels is shrunk. You trade detail for speed and memory.
#
# ### Memory, before you run
#
# Torch's *meta* device builds a model with shapes and no numbers. It costs no memory and no download.

# %%
shapes = smolvlm.shapes(smolvlm.config("256M"))
print(f"{shapes.num_parameters():,} weights, {2 * shapes.num_parameters() / 1e6:.0f} MB in bf16")

# %% [markdown]
# That is the size of the published file, 513 MB. Weights are only the beginning. What is trained
# needs a gradient and two moments of AdamW, and the backward pass needs *activations*, what the
# layers computed on the way. Now 2 pairs with one tile and answers of 150 tokens, trained in three
# ways, and on the t4 track. Predict which part vanishes between the first column and the others.

# %%
t4 = machines[0]
plan = budget.plan_for(choose("t4", machine=t4), tiles=1, text_tokens=30, answer_tokens=150)
found = {**budget.ways(shapes, plan), "t4 track": budget.budget(shapes, plan)}
print(budget.table(found))

# %%
figure, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
left = np.zeros(len(found))
for part, colour in zip(budget.PARTS, plt.get_cmap("tab10").colors):
    values = np.array([getattr(b, part) / 1e9 for b in found.values()])
    ax.barh(list(found), values, left=left, color=colour, label=part)
    left += values
ax.invert_yaxis()
ax.set(title="SmolVLM-256M, 2 pairs, one tile", xlabel="GB (1e9 bytes)")
ax.legend(ncols=2)
plt.show()

# %% [markdown]
# The reference vanishes: with an adapter it is the same base with the adapter off. A well-known post
# counts a second 16 GB for it in its LoRA line, for a model that its code does not load
# ([dpo_vlm](https://huggingface.co/blog/dpo_vlm)). 4 bits save a third here, though both fit easily.
# The T4 needs more than bf16 LoRA because its weights stay in float32.
#
# What does not fit, and what helps? By arithmetic only; no GPU has confirmed these yet.

# %%
for size, change in (("256M", {}), ("256M", {"tiles": 17, "pairs": 16}), ("2.2B", {"pairs": 8})):
    asked = replace(plan, **change)
    print(f"SmolVLM-{size}, {asked.pairs} pairs, {asked.tiles} tile(s):")
    print_wrapped(budget.verdict(smolvlm.shapes(smolvlm.config(size)), asked, t4), "\n")

# %% [markdown]
# And your own run: your track's model and picture size, the texts of your batch, this machine.
# `shared=True` counts the step as lesson 04 takes it: each picture once a pair, which TRL's own
# trainer, counted above, does not do.

# %%
from transformers import AutoConfig

mine = smolvlm.shapes(AutoConfig.from_pretrained(track.model))  # a SmolVLM of any size
tiles = budget.tiles(processor, 640, 480)
words = prompt_length - tiles * (processor.image_seq_len + 2)  # two markers a tile
answer = int(batch["completion_mask"].sum(1).max())
texts = {"text_tokens": words, "answer_tokens": answer}
my_plan = budget.plan_for(track, tiles=tiles, **texts, shared=True)
print_wrapped(budget.verdict(mine, my_plan, this_machine()))

# %% [markdown]
# How good is the arithmetic? On a CPU it came within 3% of what torch's allocator recorded, in ten
# cases with the real sizes: `python -m benchmarks.gpu_rehearsal --cpu`. On a GPU the same program
# compares it with the measured peak; that has not been run yet. Last, the figure to remember.

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
