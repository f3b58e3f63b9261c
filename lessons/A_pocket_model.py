# %% [markdown]
# # A · The pocket model
#
# **The question:** where does the little model of this course come from, and how did it learn to
# hallucinate?
#
# | track | time |
# |---|---|
# | pocket | about 1 minute on 2 CPU cores, measured |
# | t4, ampere | the same: this lesson always runs the pocket track |
#
# **You need** nothing from the other lessons. **You will have** a picture of the world the model
# lives in, of its parts, and of the moment in its training at which habit comes before sight.

# %% tags=["parameters"]
TRACK = "auto"  # this appendix is about the pocket model on every track
QUICK = False  # True: a training of seconds
SEED = 0
SCENES = 1500  # for the short training; the bundled model saw many more

# %% [markdown]
# Two modules are the heart of this appendix: `helpers.world.scenes` draws, describes and asks;
# `helpers.vlm.pocket` is the model. The log of its training lies beside its weights.

# %%
import json
import random
import time

import matplotlib.pyplot as plt
import numpy as np

# %%
from helpers.evaluation.metrics import scene_hallucination
from helpers.plots.cards import CHOSEN, CONTROL, WRONG, image_grid, print_wrapped
from helpers.setup.tracks import DATA
from helpers.vlm import pocket
from helpers.vlm.answers import yes_no_answers
from helpers.world.scenes import (
    ASSOCIATES,
    NEGATIVES,
    SPLITS,
    describe,
    draw,
    probes,
    sample_scenes,
)

log = json.loads((DATA / "pocket" / "training_log.json").read_text())
for split, scenes, epochs, _ in log["stages"]:
    print(f"trained in the {split} world: {scenes:,} scenes, {epochs} epochs")
print(f"in {log['seconds'] / 60:.0f} minutes on one core")

# %% [markdown]
# ## A world whose truth is known
#
# Real photographs come without a list of all that is in them. That makes hallucination hard to
# count. So the pocket world is drawn: nine places, twelve kinds of things. Since we draw it, we know
# everything that is there.

# %%
scenes = sample_scenes(8, "iid", seed=SEED)
_ = image_grid([draw(scene) for scene in scenes])

# %% [markdown]
# Eight kinds of things are coloured and easy to see. Four are faint pencil drawings: fork, lamp,
# fish and tree. **Look** for pencil drawings in the pictures above, and count the ones you are sure
# of. Then read the truth.

# %%
for scene in scenes[:4]:
    print_wrapped(describe(scene))

# %% [markdown]
# The pencil things are *associates*. Each has a *context*: the fork comes with the plate, the lamp
# with the bed, the fish with the boat, the tree with the house. Nine times out of ten, when the
# context is there, the associate is there.

# %%
many = sample_scenes(2000, "iid", "train", seed=SEED)
for context, associate in ASSOCIATES.items():
    beside = [associate in scene.nouns for scene in many if context in scene.nouns]
    print(f"{associate} beside {context:6} {np.mean(beside):.0%} of {len(beside)} scenes")

# %% [markdown]
# That is a world made for bad habits: sight is expensive, habit is cheap and nearly always right. A
# *trap* is the tenth case: the plate without the fork.

# %%
pair, trap = (sample_scenes(1, split, seed=3)[0] for split in ("pair", "trap"))
titles = [f"pair: {', '.join(sorted(pair.nouns))}", f"trap: {', '.join(sorted(trap.nouns))}"]
_ = image_grid([draw(pair), draw(trap)], titles, columns=2)

# %% [markdown]
# ## Half a million weights in SmolVLM's shape
#
# The model is not a toy of our own. It is transformers' `Idefics3ForConditionalGeneration`, the class
# of SmolVLM, with smaller numbers. The checkpoint loads with `AutoModelForImageTextToText` and no
# custom code.

# %%
processor = pocket.build_processor()
model = pocket.build_model(processor, SEED)
parts = {"vision tower": model.model.vision_model, "projector": model.model.connector}
parts["language model"] = model.model.text_model
for name, part in parts.items():
    print(f"{name:15} {sum(p.numel() for p in part.parameters()):8,} weights")

# %% [markdown]
# A picture is shrunk to 48 x 48 pixels and cut into 36 patches of 8 x 8. Pixel shuffle joins them two
# by two in each direction, so 9 image tokens enter the language model: one for each place of the
# tray.

# %% tags=["cover"] alt="The same scene twice: as you see it, 96 by 96 pixels, and as the model does, 48 by 48 pixels in 36 patches and 9 tokens."
picture = draw(trap)
seen = processor.image_processor([[picture]], return_tensors="pt")["pixel_values"][0, 0]
figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
axes[0].imshow(picture)
axes[0].set_title("what you see: 96 x 96", fontsize=11)
axes[1].imshow((seen.permute(1, 2, 0) * 0.5 + 0.5).clamp(0, 1), interpolation="nearest")
axes[1].set_title("what it sees: 48 x 48, 36 patches, 9 tokens", fontsize=11)
for edge in np.arange(0, 49, 8) - 0.5:
    axes[1].axhline(edge, color="black", linewidth=1.5 if (edge + 0.5) % 16 == 0 else 0.4)
    axes[1].axvline(edge, color="black", linewidth=1.5 if (edge + 0.5) % 16 == 0 else 0.4)
for axis in axes:
    axis.set_axis_off()

# %% [markdown]
# Its tokenizer knows the words of this world and no others, one token each, beside SmolVLM's special
# tokens. A word that it does not know would become `<|endoftext|>`, so ask it only what the world
# can say.

# %%
print(len(processor.tokenizer), "tokens")
print_wrapped(processor.tokenizer.tokenize(describe(trap)))

# %% [markdown]
# ## What it is taught
#
# Each scene gives two short conversations: its caption, and four yes/no questions as POPE asks them.
# Only the answers are scored, token by token, as in any supervised fine-tuning.

# %%
for conversation in pocket.conversations(trap, random.Random(SEED)):
    for message in conversation:
        text = message["content"][-1]["text"]
        print_wrapped(f"{message['role']:>9}: {text}")

# %% [markdown]
# Now a short training, live, in the world as it is, from the same code. **Predict**: what is learned
# first, the pencil things, or the habit "where there is a plate, say fork"?

# %%
scenes = sample_scenes(120 if QUICK else SCENES, part="train")
lessons = pocket.encode_conversations(processor, scenes)
losses = []
began = time.time()
pocket.train_supervised(
    model, lessons, 1 if QUICK else 4, 24, 1e-3, SEED, lambda step, loss: losses.append(loss)
)
print(f"{len(losses)} steps in {time.time() - began:.0f} s")

# %%
axis = plt.subplots(figsize=(7, 3.2), layout="constrained")[1]
for name, start in (("captions", 0), ("questions", 1)):
    values = np.array(losses[start::2])
    smooth = np.convolve(values, np.ones(5) / 5, mode="valid")
    axis.plot(np.arange(len(smooth)) * 2, smooth, label=name)
axis.axhline(np.log(2) / 2, color="0.5", linestyle=":", label="guessing yes or no")
axis.set(title="The short training", xlabel="step", ylabel="loss, nats a token")
_ = axis.legend()

# %% [markdown]
# The dotted line is what guessing costs on the questions: ln 2 for the word, nothing for the closing
# token, so half of ln 2 a token. Ask the half-trained model about eight fresh traps:

# %%
fresh = sample_scenes(8, "trap", seed=SEED)
for scene, said in list(zip(fresh, pocket.captions(model, processor, fresh), strict=True))[:3]:
    print_wrapped(f"truth: {describe(scene)}\n says: {said}\n")

# %% [markdown]
# Compare each pair of lines. The habit is there already: the context calls up its associate. Why
# should it look for pencil lines, when guessing is right nine times out of ten?
#
# ## How it learned to hallucinate
#
# When this model was being designed, trainings in that world alone still named the associate in every
# trap after two epochs over 12,000 scenes: the cheap habit leaves little to gain by looking. So the
# full training has two stages. First a *fair* world, where associates come half of the time
# and only looking pays. Then the world as it is. Its log is kept beside the weights.

# %%
measured = log["measured"]
epochs = [row["epoch"] for row in measured]
change = sum(row["stage"] == "fair" for row in measured) + 0.5
axis = plt.subplots(figsize=(7, 3.6), layout="constrained")[1]
curves = {"trap_hal": WRONG, "iid_hal": CONTROL, "iid_cover": CHOSEN}
for key, colour in curves.items():
    values = [row[key] for row in measured]
    axis.plot(epochs, values, "o-", label=key.replace("_", " "), color=colour)
axis.axvline(change, color="0.5", linestyle=":", label="the world changes")
axis.set(title="The full training", xlabel="epoch", ylabel="percent", ylim=(-3, 103))
_ = axis.legend()

# %%
before, after = (next(r for r in measured[::-1] if r["stage"] == s) for s in ("fair", "iid"))
for name, row in (("after the fair world", before), ("after the world as it is", after)):
    print(f"{name:24} trap Hal {row['trap_hal']:.0f}%, iid Cover {row['iid_cover']:.0f}%")

# %% [markdown]
# Hal is the share of captions that name something that is not there; Cover is the share of what is
# there that is named. In the fair world it first guesses; then sight comes, and Hal
# falls. After the dotted line things are drawn as before and only come together more often, and Hal in
# traps rises. The hallucination is *learned from
# the statistics of the data*, by a model that can see.

# %% [markdown]
# ## The bundled model, measured
#
# It sees well and still falls into traps. That is the patient that the course treats. Here it is on
# scenes that nobody has used before, from each kind of world.

# %%
base, processor = pocket.load()
COUNT = 100 if QUICK else 500
for split in SPLITS:
    scenes = sample_scenes(COUNT, split, seed=f"appendix {SEED}")
    found = scene_hallucination(pocket.captions(base, processor, scenes), scenes)
    print(f"{split:5} Hal {found.chair_s:.0%}, Cover {found.cover:.0%}, Cog {found.cog:.0%}")

# %% [markdown]
# `nan` is the share of nothing: in a pair scene no associate is missing. Now take pair scenes, where
# the associate *is* there, and sort them by how strongly it is drawn. **Predict**: how much more often
# is the clearest named than the faintest?

# %%
scenes = sample_scenes(4 * COUNT, "pair", seed=f"appendix {SEED}")
said = scene_hallucination(pocket.captions(base, processor, scenes), scenes).per_caption
faint = [
    (t.contrast, t.noun in c.true_positives)
    for s, c in zip(scenes, said, strict=True)
    for t in s.things
    if t.colour is None
]
bins = np.quantile([c for c, _ in faint], np.linspace(0, 1, 7))
groups = [
    [hit for c, hit in faint if low <= c <= high] for low, high in zip(bins, bins[1:], strict=False)
]

# %%
axis = plt.subplots(figsize=(7, 3.2), layout="constrained")[1]
axis.plot(
    (bins[1:] + bins[:-1]) / 2,
    [np.mean(g) for g in groups],
    "o-",
    color=CHOSEN,
    label="named when there",
)
scenes = sample_scenes(COUNT, "trap", seed=f"appendix {SEED}")
cog = scene_hallucination(pocket.captions(base, processor, scenes), scenes).cog
axis.axhline(cog, color=WRONG, linestyle="--", label="named when not there (traps)")
axis.set(
    title="Seeing and guessing",
    xlabel="contrast of the pencil drawing",
    ylabel="share named",
    ylim=(0, 1.03),
)
_ = axis.legend()

# %% [markdown]
# Surprisingly flat. Even the faintest drawings, which you hardly see yourself, are named nearly as
# often as the clear ones: what the eyes do not give, habit supplies, and in pair scenes habit is right.
# The gap between the two lines is what sight is worth. A cure should lower the dashed line without
# pulling the other one down. That is what Cover watches.
#
# Last, the same model answering yes or no, with POPE's three kinds of negatives. Half of the right
# answers are "yes".

# %%
for negatives in NEGATIVES:
    asked = [(s, p) for s in scenes[:100] for p in probes(s, negatives) if p.kind == "existence"]
    given = yes_no_answers(
        base, processor, [draw(s) for s, _ in asked], [p.question for _, p in asked]
    )
    right = [g == p.answer for g, (_, p) in zip(given, asked, strict=True)]
    print(
        f"{negatives:12} {np.mean(right):.0%} right, says yes to {given.count('yes') / len(given):.0%} (n = {len(asked)})"
    )

# %% tags=["key-figure"]
print(
    f"half a million weights; names a missing associate for {cog:.0%} of the temptations in traps"
)

# %% [markdown]
# ## Recap
#
# - The world is drawn, so the truth is exact. Associates are faint, so habit fills in.
# - The model is SmolVLM's class with small numbers; the checkpoint is an ordinary one.
# - Habit is learned from how often things come together, before sight and on top of it.
# - `make pocket-model` trains it again from the seed, then samples and ranks its answers: all of
#   `data/pocket`.
#
# **Try it.** Set `helpers.world.scenes.SPLITS["iid"]` to 0.5 before the short training. Predict: will it still
# say "fork" wherever there is a plate?
#
# [Back to the start](00_start_here.ipynb)
