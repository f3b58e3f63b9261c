# %% [markdown]
# # 05 · Compare answers
#
# **The question:** did it get better, by how much, against what, and because of the image?
#
# | track | time |
# |---|---|
# | pocket | about 2 minutes on 2 CPU cores, measured |
# | t4, ampere | not measured on this hardware |
#
# **You need** lesson 04's idea of a training run; this lesson trains its own models. **You will
# have** a comparison that survives a sceptic: held-out pairs, intervals, a control, swapped
# pictures, three seeds, and the regressions beside the wins.

# %% tags=["parameters"]
TRACK = "auto"  # "pocket", "t4", "ampere", or "auto"
MODEL = None  # another model for the track, such as "HuggingFaceTB/SmolVLM-500M-Instruct" on t4
QUICK = False  # True: few pairs, few scenes, one seed
SEED = 0  # the first of the seeds
SEEDS = None  # how many runs of each method; None: what the track plans for
PUSH_TO = None  # "you/name-of-the-adapter" pushes the tuned adapter to the Hub; log in first
OUT = "runs/05"  # checkpoints; on Colab: "/content/drive/MyDrive/vlm-dpo-05" outlives the machine

# %% [markdown]
# Everything this lesson needs is known from the lessons before, except `helpers.evaluation`: counts
# of hallucinated objects (`metrics`), bootstrap intervals and paired comparisons (`intervals`).

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from tqdm.auto import tqdm

# %%
from helpers.dpo import checkpoints
from helpers.dpo.publish import Data, Measured, adapter_card, push_adapter, settings_of
from helpers.dpo.trainer import dpo_trainer
from helpers.evaluation import intervals, metrics
from helpers.evaluation.controls import swapped
from helpers.evaluation.metrics import scene_hallucination
from helpers.pairs.format import to_conversational
from helpers.pairs.load import load_raw
from helpers.pairs.rlaifv import source_of
from helpers.plots.cards import TUNED, answer_card
from helpers.plots.curves import before_after, margin_histogram
from helpers.setup.machine import this_machine
from helpers.setup.tracks import choose
from helpers.vlm import pocket
from helpers.vlm.answers import answer_logps, answers
from helpers.vlm.load import load_policy
from helpers.world.scenes import DESCRIBE, NOUNS, draw, sample_scenes

# %% [markdown]
# Your track, and the seeds that every method gets:

# %%
track = choose(TRACK, model=MODEL)
seeds = range(SEED, SEED + (1 if QUICK else SEEDS or track.seeds))
print(f"track {track.name}: {track.machine}; seeds {list(seeds)}")

# %% [markdown]
# ## Three models, not two
#
# "Base against tuned" cannot tell whether *preferences* helped. The chosen answers are better than
# the model's average answer, so plain supervised training on them would help as well. That is the
# **control**: the same pairs, the same adapter, the same batches and steps, but TRL's loss `sft`,
# which only sees the chosen answers.

# %%
base, processor = load_policy(track)
few = 2 * track.batch_size * track.accumulate  # two steps
train = to_conversational(load_raw(track, "train", few if QUICK else None))
held_out = load_raw(track, "test", 24 if QUICK else None)
print(f"{len(train)} pairs to train on, {len(held_out)} held out: other scenes, never trained on")

# %% [markdown]
# One word apart, `sft` or `sigmoid`; everything else is the same.

# %%
LOSSES = {"control": ["sft"], "tuned": ["sigmoid"]}
FOLDER = Path(OUT, "quick") if QUICK else Path(OUT)


def tune(loss, seed):
    trainer = dpo_trainer(
        load_policy(track)[0], processor, train, track, FOLDER / f"{track.name}-{loss[0]}-{seed}",
        loss_type=loss, seed=seed, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    checkpoints.train(trainer)
    return trainer


# %% [markdown]
# Every method and every seed gets its own new adapter. The seed decides the adapter's first weights
# and the order of the pairs. This is the long cell of the lesson; the bar moves after each whole
# training. (On t4 that is two trainings of 63 steps; how long they take was not measured.)

# %%
runs = [(name, seed) for name in LOSSES for seed in seeds]
trainers = {run: tune(LOSSES[run[0]], run[1]) for run in tqdm(runs, desc="training")}
models = {run: trainer.model.eval() for run, trainer in trainers.items()}
first = {"base": base} | {name: models[name, SEED] for name in LOSSES}

# %% [markdown]
# ## Held-out pairs: the margin
#
# The smallest question: on pairs it has not seen, does the model find the chosen answer more likely
# than the rejected one? For each pair, the margin is the difference of two log-probs, each a sum
# over the answer's tokens. Careful: here it is without reference and without beta, so that the base
# has one too. It is not lesson 04's reward margin, which is 0 for the base by definition.


# %%
SIZE = {"batch_size": track.eval_batch}


def pair_margins(model, images=None):
    images = held_out["image"] if images is None else images
    logps = [
        answer_logps(model, processor, images, held_out["question"], held_out[side], **SIZE)
        for side in ("chosen", "rejected")
    ]
    return metrics.margins(*logps)


margins = {name: pair_margins(model) for name, model in first.items()}

# %% [markdown]
# **Predict** the base's accuracy before you look. The pairs are the base's own samples: it gave
# both answers. A coin would be right half of the time.

# %%
for name, values in margins.items():
    low, high = intervals.interval(values > 0)
    accuracy = metrics.preference_accuracy(values)
    print(
        f"{name:8} accuracy {accuracy:.0%} [{low:.0%}, {high:.0%}], mean margin {values.mean():+.2f}"
    )

# %%
_ = margin_histogram(margins["base"], margins["tuned"])

# %% [markdown]
# The brackets are 95% bootstrap intervals over the held-out pairs. Overlapping brackets do not prove
# that two models are equal. The same pairs were given to all models, so the fair
# comparison is pair by pair:

# %%
for name in LOSSES:
    change = intervals.paired(margins["base"], margins[name])
    print(
        f"{name:8} {change.difference:+.2f} nats [{change.low:+.2f}, {change.high:+.2f}], "
        f"{change.higher} pairs up, {change.lower} down, p = {change.p:.4f}"
    )

# %% [markdown]
# (p is from sign flips, 2,000 draws: 0.0005 is the smallest value it can have.) The base already
# prefers its own better answers, far above a coin, and the accuracy moves little.
#
# A margin is a means, not the end. A model can widen every margin and still *say* the same thing,
# because what it says is only its most likely answer. So let it speak.

# %% [markdown]
# ## What it says
#
# We ask each model about fresh scenes: *traps*, where habit misleads, and *iid* scenes, the world as
# it is. On a GPU track there is no exact truth: the held-out questions are answered, and the cells
# that count objects print nothing. Read on at "Because of the image?" there.

# %%
COUNT = 100 if QUICK else 600
scenes = {split: sample_scenes(COUNT, split, seed=f"lesson {SEED}") for split in ("trap", "iid")}


def speak(model):
    if track.name == "pocket":
        return {split: pocket.captions(model, processor, scenes[split]) for split in scenes}
    asked = held_out["image"], held_out["question"]
    return {
        "held out": answers(model, processor, *asked, max_new_tokens=track.max_new_tokens, **SIZE)
    }


says = {name: speak(model) for name, model in first.items()}

# %% [markdown]
# The first three, whatever they show. On pocket these are traps, and words in a box are not in the
# picture. On another track nobody knows the truth: read, and look for yourself.

# %% tags=["cover"] alt="A card: a drawn scene, the question what you see, and the answers of three models to it: base, control and tuned."
for i in range(3):
    if track.name == "pocket":
        scene, given = scenes["trap"][i], {name: says[name]["trap"][i] for name in first}
        wrong = set(NOUNS) - scene.nouns
        answer_card(draw(scene), DESCRIBE, given, wrong, scene.nouns)
    else:
        given = {name: says[name]["held out"][i] for name in first}
        answer_card(held_out[i]["image"], held_out[i]["question"], given)

# %% [markdown]
# Examples persuade and prove nothing. Two figures over all scenes do better, always together.
# **Hal** is the share of captions that name something that is not there. **Cover** is the share of
# what is there that captions name. Say nothing and Hal is perfect; Cover is what that costs.


# %%
def hallucination(name, split):
    return scene_hallucination(says[name][split], scenes[split])


def hal_and_cover(found):
    """Each with its 95% interval over the pictures."""
    wrong = [bool(c.hallucinated) for c in found.per_caption]
    named = [(len(c.true_positives), len(c.truth)) for c in found.per_caption]
    return {
        "Hal": (found.chair_s, intervals.interval(wrong)),
        "Cover": (found.cover, intervals.interval(named, intervals.ratio)),
    }


# %%
rows = [(split, metric) for split in scenes for metric in ("Hal", "Cover")]
table = {}
for name in first if track.name == "pocket" else ():
    found = {split: hal_and_cover(hallucination(name, split)) for split in scenes}
    table[name] = [found[split][metric] for split, metric in rows]
    print(
        f"{name:8}",
        *(f"{s} {m} {v:.0%}  " for (s, m), (v, _) in zip(rows, table[name], strict=True)),
    )

# %% [markdown]
# The same as a picture: a dot for each model, its line the interval. Where lines overlap widely, do
# not tell a story.

# %%
if table:
    before_after(
        [f"{split} {metric}" for split, metric in rows],
        {name: [value for value, _ in cells] for name, cells in table.items()},
        {name: [ends for _, ends in cells] for name, cells in table.items()},
    )

# %% [markdown]
# Read the control first. How far does it go from base towards tuned? That part of the gain needed no
# rejected answers. Is the rest real? The same scenes were given to both, so compare scene by scene:

# %%
if table:
    false = {n: [bool(c.hallucinated) for c in hallucination(n, "trap").per_caption] for n in first}
    beyond = intervals.paired(false["control"], false["tuned"])
    print(
        f"control -> tuned: {beyond.difference:+.1%} of trap captions with a false object "
        f"[{beyond.low:+.1%}, {beyond.high:+.1%}], p = {beyond.p:.2g}, n = {beyond.n}"
    )

# %% [markdown]
# At these settings DPO goes further than the control, in false objects and in lost Cover. To call all
# of it the work of the *preference*, you would also give the control its own best learning rate: its
# loss is a mean over tokens where DPO sums, and both had the same rate here.

# %% [markdown]
# ## Wins and regressions
#
# A mean hides who paid for it. On the same scenes, which captions got better and which got worse? An
# error is an object that is named and not there, or there and not named.


# %%
def errors(name, split):
    found = hallucination(name, split).per_caption
    return np.array([len(c.hallucinated) + len(c.truth - c.true_positives) for c in found])


gain = {}
for split in scenes if track.name == "pocket" else ():
    gain[split] = values = errors("base", split) - errors("tuned", split)
    print(
        f"{split:5}: {(values > 0).sum()} better, {(values < 0).sum()} worse, {(values == 0).sum()} equal"
    )

# %% [markdown]
# The gallery is chosen by rule: the largest gain and the largest losses over both kinds of scene.
# Never by hand.

# %%
ranked = sorted(((gain[s][i], s, i) for s in gain for i in range(COUNT)), key=lambda row: row[0])
for change, split, i in [ranked[-1], ranked[0], ranked[1]] if track.name == "pocket" else ():
    scene, given = scenes[split][i], {name: says[name][split][i] for name in ("base", "tuned")}
    wrong = set(NOUNS) - scene.nouns
    axis = answer_card(draw(scene), DESCRIBE, given, wrong, scene.nouns)
    axis.set_title(
        f"{split} scene {i}: {abs(change)} object(s) {'better' if change > 0 else 'worse'}",
        fontsize=11,
    )

# %% [markdown]
# Compare the counts of the two kinds of scene. In traps hardly a caption got worse. In the world as it
# is, more got worse than better: fewer ghosts were paid for with real things left out. In the losses
# shown, what is lost is a pencil drawing.

# %% [markdown]
# ## Because of the image?
#
# A model could learn to prefer the chosen *style* without looking: shorter, say, or without forks.
# The test: keep question and answers, and hand each pair the picture of another pair. If the
# preference is grounded in the picture, the margin must fall.

# %%
others = swapped(list(held_out["image"]), SEED)
blind = {name: pair_margins(first[name], others) for name in ("base", "tuned")}
for name, values in blind.items():
    fall = intervals.paired(margins[name], values)
    print(
        f"{name:6} accuracy {metrics.preference_accuracy(margins[name]):.0%} -> "
        f"{metrics.preference_accuracy(values):.0%} with swapped pictures; "
        f"margin {fall.difference:+.2f} nats [{fall.low:+.2f}, {fall.high:+.2f}]"
    )

# %%
axis = plt.subplots(figsize=(7, 3.5), layout="constrained")[1]
axis.hist(
    [margins["tuned"], blind["tuned"]],
    bins=30,
    label=["its own picture", "another picture"],
    color=[TUNED, "0.7"],
)
axis.axvline(0, color="black", linewidth=1)
axis.set(title="The tuned model's margins", xlabel="margin of a pair, in nats", ylabel="pairs")
_ = axis.legend()

# %% [markdown]
# Both models fall, so both look. But that the tuned model looks does not show that its *gain* needed
# the picture. So ask how much of the gain stays when both get the wrong one:

# %%
for label, b, t in (
    ("its own picture", margins["base"], margins["tuned"]),
    ("another picture", blind["base"], blind["tuned"]),
):
    gained = intervals.paired(b, t)
    print(f"{label}: gain {gained.difference:+.2f} nats [{gained.low:+.2f}, {gained.high:+.2f}]")

# %% [markdown]
# What stays with the wrong picture was learned without looking: the *style* of the chosen answers.
# Only the difference between the two lines needed the picture. Lesson 06 swaps the pictures while
# the model speaks.

# %% [markdown]
# ## Three seeds
#
# One run is an anecdote. Another seed draws other adapter weights and another order of pairs. Here
# is each run, on the same scenes, with the mean and the spread.

# %%
scores = {("base", SEED): {s: hallucination("base", s) for s in scenes}} if table else {}
for (name, seed), model in models.items() if table else ():
    texts = says[name] if seed == SEED else speak(model)
    scores[name, seed] = {s: scene_hallucination(texts[s], scenes[s]) for s in scenes}

# %%
summary = {}
for name in dict.fromkeys(name for name, _ in scores):
    found = [value for (method, _), value in scores.items() if method == name]
    cells = {
        f"{s} {m}": [getattr(f[s], k) for f in found]
        for s in scenes
        for m, k in (("Hal", "chair_s"), ("Cover", "cover"))
    }
    summary[name] = {key: np.mean(values) for key, values in cells.items()}
    print(
        f"{name:8}",
        *(f"{k} {np.mean(v):.1%}±{np.std(v, ddof=len(v) > 1):.1%} " for k, v in cells.items()),
    )

# %% [markdown]
# The spread over seeds is far smaller than the differences between the methods, and smaller than the
# intervals over pictures above: here the pictures are the larger uncertainty.

# %% tags=["key-figure"]
if summary:
    b, c, t = (summary[name] for name in ("base", "control", "tuned"))
    print(
        f"trap Hal: base {b['trap Hal']:.0%}, control {c['trap Hal']:.0%}, DPO {t['trap Hal']:.0%}"
        f" (mean of {len(seeds)} seeds); Cover trap {t['trap Cover'] - b['trap Cover']:+.1%},"
        f" iid {t['iid Cover'] - b['iid Cover']:+.1%}"
    )
else:
    print(f"held-out accuracy: {metrics.preference_accuracy(margins['tuned']):.0%}")

# %% [markdown]
# ## Publish it, with what was measured
#
# An adapter is small enough to share. What makes it useful to a stranger is its *card*: base model,
# data and their licence, settings, and the change that you measured, with n and an interval. First
# the measurements.

# %%
right = {name: margins[name] > 0 for name in ("base", "tuned")}
compared = {"held-out pairs whose chosen answer is likelier": right}
if table:
    false = {n: [bool(c.hallucinated) for c in hallucination(n, "trap").per_caption] for n in right}
    compared["trap captions that name a false object"] = false
measured = []
for metric, items in compared.items():
    change = intervals.paired(items["base"], items["tuned"])
    means = [np.mean(items[name]) for name in ("base", "tuned")]
    measured.append(Measured(metric, *means, change.low, change.high, change.n))

# %% [markdown]
# Then the data, with the revision that was downloaded, and the card.

# %%
if track.name == "pocket":
    data = Data("the course's pocket pairs", None, "cc0-1.0", len(train), len(held_out))
else:
    source = source_of(track.dataset)
    data = Data(source.name, source.revision, source.licence, len(train), len(held_out))
trainer = trainers["tuned", SEED]
settings, hardware = settings_of(trainer), str(this_machine())
card = adapter_card(PUSH_TO or "me/my-adapter", track.model, data, settings, measured, hardware)
Markdown(card.text)

# %% [markdown]
# Set `PUSH_TO` in the parameters to push. The repository is private until you decide otherwise, and
# only the weights as safetensors, their configuration and the card leave this machine. RLAIF-V's
# licence, CC-BY-NC-4.0, goes along.

# %%
if PUSH_TO:
    print(push_adapter(trainer, PUSH_TO, card))
else:
    print("not pushed: PUSH_TO is None")

# %% [markdown]
# ## Recap
#
# - Held-out pairs, never training pairs; an interval beside every figure; the same items for all.
# - The control shows how much of the gain is plain supervised learning.
# - Hal beside Cover, wins beside regressions, chosen by rule.
# - Swapped pictures: if the margin does not fall, the model learned a style, not to look.
# - Three seeds, mean and spread, or it is an anecdote.
# - Publish the measurements with the weights.
#
# **Try it.** Set `SEEDS = 1` and shuffle the *training* pictures among the pairs before `tune`.
# Predict trap Hal and the swapped-picture margin, then run.
#
# What do the field's benchmarks say of such a model, and what fools them?
#
# [Next: 06 · Measure hallucination](06_measure_hallucination.ipynb)
