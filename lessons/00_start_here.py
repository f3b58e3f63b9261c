# %% [markdown]
# # 00 · Start here
#
# **The question:** will this machine do, which track is yours, and what is the course about?
#
# | track | time |
# |---|---|
# | pocket | about 20 seconds on 2 CPU cores, measured |
# | t4, ampere | the same cells, not measured on this hardware |
#
# **You need** the installed course, nothing else; no GPU, no network. **You will have** a report on
# your machine, a track, and the problem of the whole course in one picture.

# %% tags=["parameters"]
TRACK = "auto"  # "pocket", "t4", "ampere", or "auto": whatever fits this machine
QUICK = False  # True runs every step on fewer scenes
SEED = 0  # another seed draws other scenes
SCENES = 200  # how many scenes the model describes below

# %% [markdown]
# ## Will this machine do?
#
# The next cell looks at your machine and prints one line for each finding. `[OK]` needs nothing.
# `[FAIL]` comes with two lines that say what to do. Lines without a mark are plain information.
#
# **Predict.** How many GB of memory are free, and will there be a `[FAIL]`?

# %%
from helpers.evaluation.metrics import scene_hallucination
from helpers.plots.cards import print_wrapped
from helpers.preflight import report

print_wrapped(report(TRACK))

# %% [markdown]
# (The notebook was built with `TRACK = "pocket"`, hence "as asked".) If you ask someone for help,
# paste that report. User names, tokens and the path of your home folder
# are left out. The line of the pocket model is a real answer: the course's own model looked at a
# small picture and said what it sees.
#
# ## Which track?
#
# Every lesson runs from one source on three kinds of machine. A *track* is the list of settings
# that fits one of them: model, data, precision, sizes. `choose("auto")` picks by GPU memory and
# compute capability, never by trial and error.

# %%
from pathlib import Path

import pandas as pd

from helpers.setup.machine import this_machine
from helpers.setup.tracks import TRACKS, choose

fields = ["name", "machine", "model", "dataset", "quantize", "image_edge", "train_pairs"]
table = pd.DataFrame(
    [{field: getattr(track, field) for field in fields} for track in TRACKS.values()]
)
table.replace(str(Path.cwd()), ".", regex=True)

# %%
track = choose(TRACK)
print(f"This machine: {this_machine()}.")
print(f"Your track is {track.name}: {track.machine}.")
print(f"Weights in {track.dtype} on {track.device}, autocast: {track.autocast or 'none'}.")

# %% [markdown]
# The *pocket* track trains a real but tiny vision language model (VLM) with half a million
# weights, in about a minute, on the files that came with the course. The GPU tracks take SmolVLM
# and the public RLAIF-V preference data from the Hugging Face Hub. All their code is run in the
# course's tests, on a CPU, with a tiny model in place of SmolVLM. They have not been run on a GPU
# yet; every result of training in this course is from the pocket track.
#
# Start on pocket even if you own a GPU. You can change any line and see the effect before your
# attention drifts.
#
# ## A small world whose truth is known
#
# Below, on top: four pictures of the *pocket world*, enlarged. A *scene* is a tray of nine places.
# Coloured things are easy to see. Four kinds of thing (fork, lamp, fish, tree) are only faint
# pencil drawings.
#
# **Predict.** How many pencil drawings can you find in the top row?

# %%
from helpers.pairs.load import load_photos, load_raw
from helpers.plots.cards import answer_card, image_grid, pair_card
from helpers.world.scenes import (
    ASSOCIATES,
    DESCRIBE,
    describe,
    draw,
    grade,
    sample_scenes,
)

scenes = sample_scenes(4, "iid", seed=SEED)
photos = load_photos().select(range(0, 40, 10))
titles = [f"scene {i}" for i in range(4)] + [Path(path).stem for path in photos["image_path"]]
axes = image_grid([draw(scene) for scene in scenes] + list(photos["image"]), titles)
# %% [markdown]
# The bottom row has four of the photographs that came with the course. They are for looking and for
# formatting in lessons 01 and 02. The scenes are for training and measuring: a drawn scene knows
# what is on it, so whether an answer is true needs no opinion.

# %%
for i, scene in enumerate(scenes):
    print_wrapped(f"scene {i}: {describe(scene)}")

# %% [markdown]
# The world has habits. A *context* nearly always comes with its *associate*: nine plates in ten
# have a fork somewhere on the tray. A scene of the usual kind is called *iid*. A *trap* is a scene
# that breaks the habit: there is a plate, and no fork.

# %%
for context, associate in ASSOCIATES.items():
    print(f"a {context} usually comes with a {associate}")

# %% [markdown]
# ## It says there is a fork
#
# Now the model. First some ordinary scenes: you ask "What do you see?", and it answers. Object names
# in the card are green when the object is there, and boxed when it is not. Below each answer stands
# the truth.

# %%
from helpers.vlm import pocket

model, processor = pocket.load()
count = 40 if QUICK else SCENES
usual = sample_scenes(count, "iid", seed=SEED)
usual_captions = pocket.captions(model, processor, usual)
usual_result = scene_hallucination(usual_captions, usual)

# %% [markdown]
# Here is the scene with a pencil drawing that it describes best, by the number of phrases that are
# false or missing. We looked for it, so it proves nothing yet. It shows what the model can do: name,
# count, colour and place, even for something faint.

# %%
with_pencil = [i for i, scene in enumerate(usual) if scene.nouns & set(ASSOCIATES.values())]
shown = min(with_pencil, key=lambda i: sum(grade(usual[i], usual_captions[i])))
texts = {"base": usual_captions[shown], "the truth": describe(usual[shown])}
card = answer_card(draw(usual[shown]), DESCRIBE, texts, right=usual[shown].nouns)

# %% [markdown]
# **Predict.** Next it gets traps: a plate without a fork, a bed without a lamp. Will it name what is
# missing? We keep the scenes where it does, those with a false fork first.

# %%
traps = sample_scenes(count, "trap", seed=SEED)
trap_captions = pocket.captions(model, processor, traps)
result = scene_hallucination(trap_captions, traps)
fooled = [i for i, caption in enumerate(result.per_caption) if caption.prone_mentioned]
fooled.sort(key=lambda i: "fork" not in result.per_caption[i].prone_mentioned)

# %%
for i in fooled[:2]:
    texts = {"base": trap_captions[i], "the truth": describe(traps[i])}
    false = set(result.per_caption[i].hallucinated)
    answer_card(draw(traps[i]), DESCRIBE, texts, wrong=false, right=traps[i].nouns)

# %% [markdown]
# Look for the boxed thing in the picture. It is not there. A model that states what the picture does
# not show *hallucinates*, and it does so in the same calm tone as when it is right.
#
# One card is an anecdote. Count over all the scenes, and compare with the ordinary ones.

# %%
for name, measured in (("iid", usual_result), ("trap", result)):
    print(f"{name:5} {measured.chair_s:4.0%} of {measured.captions} captions name a false object")

# %% [markdown]
# ## Eyes or habit?
#
# Bad eyes or a strong habit: both would explain it, and they need different cures. Here is a test.
# Take the scenes where it was fooled and remove the context, so the plate goes. As a control, remove
# something that has nothing to do with forks, such as the cup.
#
# **Predict.** Where will the false fork stay, and where will it go?

# %%
from dataclasses import replace

CONTEXT_OF = {associate: context for context, associate in ASSOCIATES.items()}


def without(scene, nouns):
    """The scene with all of those things taken off the tray."""
    return replace(scene, things=tuple(t for t in scene.things if t.noun not in nouns))


# %% [markdown]
# For each fooled scene we remember which absent associate it named. Then we make two new scenes: one
# without that associate's context, one without a bystander. All else stays in its place, give or
# take a pixel or two.

# %%
false = [result.per_caption[i].prone_mentioned for i in fooled]
no_context = [
    without(traps[i], {CONTEXT_OF[a] for a in named})
    for i, named in zip(fooled, false, strict=True)
]
no_bystander = [
    without(traps[i], {next(t.noun for t in traps[i].things if t.noun not in ASSOCIATES)})
    for i in fooled
]
versions = [traps[fooled[0]], no_bystander[0], no_context[0]]
titles = ["the trap", "without a bystander", "without the context"]
axes = image_grid([draw(scene) for scene in versions], titles)


# %%
def still_named(changed):
    """In what share of the changed scenes the same false associate is named again."""
    found = scene_hallucination(pocket.captions(model, processor, changed), changed)
    again = [set(c.hallucinated) & named for c, named in zip(found.per_caption, false, strict=True)]
    return sum(map(bool, again)) / len(again)


shares = {
    "without a bystander": still_named(no_bystander),
    "without the context": still_named(no_context),
}

# %% [markdown]
# Read the bars against each other. Removing *anything* changes the picture and may change the
# answer: that is what the upper bar shows. The rest of the difference is the context's doing.

# %%
import matplotlib.pyplot as plt

ax = plt.subplots(figsize=(7, 1.8), layout="constrained")[1]
bars = ax.barh(list(shares), list(shares.values()), color=["#7F7F7F", "#D55E00"])
ax.bar_label(bars, [f"{share:.0%}" for share in shares.values()], padding=4)
ax.invert_yaxis()
ax.set_xlim(0, 1.1)
label = ax.set_xlabel(f"share of {len(fooled)} fooled scenes that name the same false object")

# %% [markdown]
# The fork came from the plate. Nothing about forks changed in the picture, only the thing that forks
# usually come with. So the model knows the picture and guesses the rest from what is usual. Large
# VLMs do this as well (POPE, arXiv 2305.10355, section 3): objects that often occur together are
# hallucinated together.
#
# ## What DPO does about it
#
# Direct Preference Optimization (DPO, arXiv 2305.18290), in five sentences:
#
# 1. The data are *pairs*: a *prompt* (a picture and a question), an answer that is preferred, the
#    *chosen* one, and an answer that is not, the *rejected* one.
# 2. The model in training is the *policy*; a frozen copy of how it began is the *reference*.
# 3. Both give each answer a log-prob, the logarithm of how likely they are to say exactly that.
# 4. The loss falls as the policy, compared with the reference, raises the chosen answer over the
#    rejected one; that difference, times a number called beta, is the *margin*.
# 5. A higher beta holds the policy closer to the reference.

# %% tags=["showcase"]
boxes = {
    "picture + question": (0.0, 1.0), "chosen answer": (0.0, 0.5), "rejected answer": (0.0, 0.0),
    "policy\n(learns)": (1.0, 0.85), "reference\n(frozen)": (1.0, 0.15),
    "log-prob of chosen\nminus log-prob\nof rejected": (2.0, 0.85), "the same": (2.0, 0.15),
    "difference × beta\n= margin": (3.0, 0.5), "loss: raise\nthe margin": (4.0, 0.5),
}  # fmt: skip
colours = ["#D9D9D9", "#0072B2", "#D55E00", "#009E73", "#7F7F7F"] + ["#D9D9D9"] * 4
arrows = [(0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 5), (4, 6), (5, 7), (6, 7), (7, 8)]
ax = plt.subplots(figsize=(10, 3), layout="constrained")[1]
ax.set(xlim=(-0.5, 4.5), ylim=(-0.25, 1.25))
ax.set_axis_off()
drawn = []
for (text, (x, y)), colour in zip(boxes.items(), colours, strict=True):
    box = {"boxstyle": "round", "facecolor": colour, "alpha": 0.35}
    drawn.append(ax.text(x, y, text, ha="center", va="center", fontsize=10, bbox=box))
for a, b in [(drawn[a], drawn[b]) for a, b in arrows]:
    ends = {"patchA": a.get_bbox_patch(), "patchB": b.get_bbox_patch()}
    ax.annotate("", b.get_position(), a.get_position(), arrowprops={"arrowstyle": "->", **ends})

# %% [markdown]
# There is no reward model in the diagram and no text is generated while training: that is what is
# *direct* about it. And here is what goes in. The pocket pairs come from the model itself: four
# sampled answers to each picture, the one with the fewest faults is chosen, the one with the most is
# rejected.

# %% tags=["cover"] alt="A card: a drawn scene with a house, a ball and a book, the question what you see, and two answers, chosen and rejected; the words in which they differ are coloured."
pairs = load_raw(choose("pocket"), "train", 20)
card = pair_card(pairs[0])
# %% [markdown]
# Words in which the answers differ are coloured. Note that chosen need not mean true: it means
# better than the other. Lesson 01 looks at what follows from that.
#
# ## How the course works
#
# *Predict, run, read.* Before a cell runs, say what you expect. Then read the actual number against
# a scale: chance, the reference, the spread. A surprise is where you learn most.
#
# - The cell at the top of each lesson holds its **parameters**. Change one, run the lesson again.
#   `QUICK = True` takes every step in small.
# - Lessons import from `helpers/`, one concept a module. What a lesson builds by hand is compared
#   with the helper, so you can trust the helper afterwards.
# - Everything that you make goes to `runs/`. `make clean` removes it.
# - Near its end each lesson prints one **key figure**. `make course` runs all lessons and puts those
#   lines into one table.
# - The text of each notebook is in `lessons/`, as a Python file; `notebooks/` is built from it.
#
# | lesson | the question it answers |
# |---|---|
# | [01 · Inspect preferences](01_inspect_preferences.ipynb) | what is in a preference dataset, and what is wrong with it |
# | [02 · Format conversations](02_format_conversations.ipynb) | how a row becomes exactly the tokens that are scored |
# | [03 · Configure DPO](03_configure_dpo.ipynb) | what the loss does, and which settings matter |
# | [04 · Train with DPO](04_train_dpo.ipynb) | how to train, watch, stop and resume |
# | [05 · Compare answers](05_compare_answers.ipynb) | did it get better, and because of the image |
# | [06 · Measure hallucination](06_measure_hallucination.ipynb) | what the field's benchmarks say, and what fools them |
# | [07 · Make your own preferences](07_make_preferences.ipynb) | where pairs can come from, and what each source teaches |
# | [A · The pocket model](A_pocket_model.ipynb) | how the model was built, and learned to hallucinate |

# %% tags=["key-figure"]
print(f"track {track.name}; the base names a false object in {result.chair_s:.0%} of {count} traps")

# %% [markdown]
# ## Recap
#
# - The preflight report says what this machine has and what to mend. Paste it when you ask for help.
# - A track is the list of settings for one kind of machine. The pocket track needs no GPU and no
#   network.
# - The base model sees well and still names what is usual instead of what is there. Take the context
#   away and most of the false objects go too.
# - DPO trains on pairs: it raises the chosen answer over the rejected one, measured against a frozen
#   reference.
#
# **Try it.** Set `SEED = 1` and predict before you run: will the share of fooled traps stay within 5
# percentage points? Then set `SCENES = 20`. Which of the two changes moves it more, and why?
#
# [Next: 01 · Inspect preferences](01_inspect_preferences.ipynb)
