# %% [markdown]
# # 06 · Measure hallucination
#
# **The question:** what do the field's benchmarks measure, what fools them, and did DPO help
# because of the image?
#
# | track | time |
# |---|---|
# | pocket | about 30 seconds on 2 CPU cores, measured |
# | t4, ampere | not measured on this hardware |
#
# **You need** the training runs of lesson 05; they are loaded if you ran it, and made if you did
# not. **You will have** CHAIR, AMBER's and POPE's figures with their intervals, beside answerers that
# fool them, and a gallery of wins and regressions chosen by rule.

# %% tags=["parameters"]
TRACK = "auto"  # "pocket", "t4", "ampere", or "auto"
MODEL = None  # another model for the track, such as "HuggingFaceTB/SmolVLM-500M-Instruct" on t4
QUICK = False  # True: few pairs, few scenes
SEED = 0
SCENES = 600  # of each kind, to describe
PROBES = 300  # yes/no questions of each kind
OUT = "runs/05"  # the adapters of lesson 05
KEPT = "runs/06"  # answers, as they come: an interrupted evaluation goes on from there
AMBER = None  # a folder with AMBER's files, for the GPU tracks; see the last section

# %% [markdown]
# The metrics live in `helpers.evaluation.metrics`, the intervals in `helpers.evaluation.intervals`,
# and AMBER's files are read by `helpers.evaluation.amber`. Given the same answers,
# `tools/public_programs.py` gives the same figures as the public programs of CHAIR, AMBER and POPE.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from helpers.dpo.checkpoints import trained
from helpers.dpo.trainer import dpo_trainer
from helpers.evaluation import amber, intervals, metrics
from helpers.evaluation.controls import blanked, degenerate, swapped
from helpers.evaluation.metrics import scene_hallucination
from helpers.evaluation.probes import amber_queries, photo_probes, probes_for
from helpers.pairs.format import to_conversational
from helpers.pairs.load import load_raw
from helpers.plots.cards import TUNED, answer_card
from helpers.setup.tracks import choose
from helpers.vlm.answers import answers, yes_no_answers
from helpers.vlm.load import load_policy
from helpers.world.scenes import ASSOCIATES, DESCRIBE, NOUNS, draw, sample_scenes

# %%
tracks = {t.name: t for t in (choose("pocket"), choose(TRACK, model=MODEL))}
track = list(tracks.values())[-1]
print(f"track {track.name}: {track.machine}")

# %% [markdown]
# Hallucination is best learned where the truth is known. So the first sections use the pocket
# models on every track. The last one asks your track's models, on public benchmarks if it is a GPU
# track.

# %%
LOSSES = {"control": "sft", "tuned": "sigmoid"}
FOLDER = Path(OUT, "quick") if QUICK else Path(OUT)


def models_of(track):
    """(models, processor): base, supervised control and DPO; runs of lesson 05 are loaded."""
    base, processor = load_policy(track)
    few = 2 * track.batch_size * track.accumulate if QUICK else None
    pairs, models = to_conversational(load_raw(track, "train", few)), {"base": base}
    for name, loss in LOSSES.items():
        trainer = dpo_trainer(
            load_policy(track)[0], processor, pairs, track, FOLDER / f"{track.name}-{loss}-{SEED}",
            loss_type=[loss], seed=SEED, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        models[name] = trained(trainer)
    return models, processor


families = {name: models_of(t) for name, t in tracks.items()}
models, processor = families["pocket"]

# %% [markdown]
# ## CHAIR, by hand
#
# CHAIR ([Rohrbach and others, 2018](https://arxiv.org/abs/1809.02156)) reads the objects that a
# caption names and compares them with those in the picture. Three captions of one scene:

# %% tags=["cover"] alt="A card: a drawn scene, the question what you see, and three captions; what they name is green if it is in the picture, and in a box if it is not."
scene = sample_scenes(1, "trap", "test", seed=SEED)[0]
print("in the picture:", ", ".join(sorted(scene.nouns)))
(absent,) = [a for c, a in ASSOCIATES.items() if c in scene.nouns and a not in scene.nouns][:1]
present = sorted(scene.nouns)[0]
three = [f"I see a {present}.", f"I see a {present} and a {absent}.", f"A {absent}. Two {absent}s."]
numbered = {f"caption {i}": text for i, text in enumerate(three, start=1)}
card = answer_card(draw(scene), DESCRIBE, numbered, {absent}, scene.nouns)

# %% [markdown]
# Two figures come out. *CHAIRi* is the share of object **mentions** that are wrong; repeats count.
# *CHAIRs* is the share of **captions** with a wrong mention; AMBER calls it Hal. **Predict** both
# before you run.

# %%
wrong, named = [0, 1, 2], [1, 2, 2]  # mentions of absent objects, and of all, in each caption
print(f"CHAIRi = {sum(wrong)} of {sum(named)} mentions")
print(f"CHAIRs = {sum(map(bool, wrong))} of {len(three)} captions")
found = scene_hallucination(three, [scene] * 3)
assert (found.hallucinated_mentions, found.mentions) == (sum(wrong), sum(named))
assert (found.hallucinating_captions, found.captions) == (2, 3)

# %% [markdown]
# Neither asks what was left out. AMBER ([Wang and others, 2023](https://arxiv.org/abs/2311.07397))
# adds *Cover*, the share of objects in the picture that are named, and *Cog*: of the absent objects
# that the picture tempts a model to say, the share that it says. Here those are the associates.
#
# ## Everybody on the same scenes
#
# Now the answers. The models first; then DPO with its eyes closed (the picture painted grey) and
# with the wrong picture (every scene gets another one's); then two that never look: silence, and the
# longest caption given to every picture.

# %%
count = 60 if QUICK else SCENES
scenes = [s for split in ("trap", "iid") for s in sample_scenes(count, split, "test", seed=SEED)]
pictures, asked = [draw(s) for s in scenes], [DESCRIBE] * len(scenes)


def say(model, images):
    return answers(model, processor, images, asked, folder=KEPT, batch_size=256)


says = {name: say(model, pictures) for name, model in models.items()}
says["tuned, blind"] = say(models["tuned"], blanked(pictures))
says["tuned, wrong picture"] = say(models["tuned"], swapped(pictures, SEED))
lazy = degenerate(says["base"])
says |= {name: lazy[name] for name in ("silence", "longest caption")}

# %% [markdown]
# Stop that cell and run it again: answers are kept as they come, and only the missing ones are made.
# They are found again by model, adapter, picture, question and settings, so an old answer is never
# taken for a new model's.
#
# Each figure gets a 95% interval, a bootstrap over pictures, and its n. **Predict** who has the
# lowest Hal, and who has the highest Cover.


# %%
def figures(texts, chosen):
    """{metric: Estimate} of the captions of the chosen scenes (their positions)."""
    found = scene_hallucination([texts[i] for i in chosen], [scenes[i] for i in chosen])
    each = found.per_caption
    counts = {
        "CHAIRi": [(len(c.hallucinated), len(c.mentioned)) for c in each],
        "Cover": [(len(c.true_positives), len(c.truth)) for c in each],
        "Cog": [(len(c.prone_mentioned), len(c.prone)) for c in each],
    }
    estimates = {"Hal": intervals.estimate([bool(c.hallucinated) for c in each])}
    return estimates | {m: intervals.estimate(c, intervals.ratio) for m, c in counts.items()}


traps, usual = range(count), range(count, 2 * count)
results = {name: figures(texts, traps) for name, texts in says.items()}


# %%
def cell(e):
    return "-" if np.isnan(e.value) else f"{e.value:.1%} [{e.low:.1%}, {e.high:.1%}]"


table = pd.DataFrame(
    {name: {m: cell(e) for m, e in row.items()} for name, row in results.items()}
).T
table["words"] = [f"{np.mean([len(t.split()) for t in texts]):.1f}" for texts in says.values()]
print(f"n = {count} traps; in brackets 95% over pictures; words in a caption, mean")
table

# %% [markdown]
# Silence wins on Hal, and has no CHAIRi at all: nothing was mentioned. A report that shows CHAIR
# and not Cover rewards it. The tuned model with its eyes closed does the same, as it says that there
# is nothing; with the wrong picture it describes that one, and nearly every caption is false here.
# What it does well, it does by looking.
#
# The same as one picture. Good is the upper left corner.

# %%
figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
for name, row in results.items():
    hal, cover = row["Hal"], row["Cover"]
    x, y = ([[e.value - e.low], [e.high - e.value]] for e in (hal, cover))
    ax.errorbar(hal.value, cover.value, xerr=x, yerr=y, fmt="o", capsize=3, label=name)
ax.set(title=f"{count} traps", xlabel="Hal: captions with a false object", ylabel="Cover")
ax.legend(bbox_to_anchor=(1, 1))
ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
plt.show()

# %% [markdown]
# ## Is the difference real?
#
# Two intervals that overlap can still hide a clear difference, because all models saw the *same*
# pictures. So compare picture by picture: in how many captions did the false object go, in how many
# did one come? For such yes/no items the exact test is McNemar's.


# %%
def false_in(name, chosen):
    found = scene_hallucination([says[name][i] for i in chosen], [scenes[i] for i in chosen])
    return [bool(c.hallucinated) for c in found.per_caption]


for split, chosen in (("trap", traps), ("iid", usual)):
    for before, after in (("base", "control"), ("base", "tuned"), ("control", "tuned")):
        change = intervals.paired(false_in(before, chosen), false_in(after, chosen))
        print(
            f"{split:4} {before:7} -> {after:7} {change.difference:+.1%} "
            f"[{change.low:+.1%}, {change.high:+.1%}]  {change.lower} went, {change.higher} came, "
            f"p = {change.p:.2g}, n = {change.n}"
        )

# %% [markdown]
# The first line of each kind is what supervised training on the chosen answers gives without any
# rejected answer. The last line is what DPO adds at these settings, its loss and not only its pairs:
# the control was not given a learning rate of its own.
#
# ## Wins and regressions, by rule
#
# The five largest improvements and the five largest regressions, over both kinds of scene. An error
# is an object that is named and not there, or there and not named. Ties go to the first scene. In a
# box: not in the picture. Green: in it.


# %%
def errors(name):
    found = scene_hallucination(says[name], scenes).per_caption
    return np.array([len(set(c.hallucinated)) + len(c.truth - c.true_positives) for c in found])


gain = errors("base") - errors("tuned")
order = np.argsort(-gain, kind="stable")
best = [i for i in order[:5] if gain[i] > 0]
worst = [i for i in np.argsort(gain, kind="stable")[:5] if gain[i] < 0]
print(f"{(gain > 0).sum()} better, {(gain < 0).sum()} worse, {(gain == 0).sum()} equal")


# %%
def gallery(chosen, title):
    figure, axes = plt.subplots(len(chosen), figsize=(9, 2.6 * len(chosen)), layout="constrained")
    for ax, i in zip(np.atleast_1d(axes), chosen):
        given = {name: says[name][i] for name in ("base", "tuned")}
        wrong = set(NOUNS) - scenes[i].nouns
        answer_card(pictures[i], DESCRIBE, given, wrong, scenes[i].nouns, ax)
        ax.set_title(f"{title}: {abs(gain[i])} object(s)", fontsize=11)
    plt.show()


if best:
    gallery(best, "better by")

# %% [markdown]
# And the price:

# %%
if worst:
    gallery(worst, "worse by")

# %% [markdown]
# The usual regression is a faint thing that is there and is no longer named: fewer ghosts, and some
# real forks lost with them.
#
# ## Yes or no
#
# POPE ([Li and others, 2023](https://arxiv.org/abs/2305.10355)) asks "Is there a fork?" about things
# that are there and things that are not. What is not there is chosen in three ways: at *random*; the
# most *popular* absent object; and *adversarial*, what usually comes with an object that is there.
# **Predict** which kind is the hardest, and for whom.


# %%
def replies(model, processor, probes, images):
    """Yes or no from the first token's logits: which of the two is more likely. Nothing is generated."""
    return yes_no_answers(model, processor, images, probes["question"], folder=KEPT)


probes = probes_for(choose("pocket"), 60 if QUICK else PROBES, SEED)
images = list(probes["image"])
replied = {name: replies(model, processor, probes, images) for name, model in models.items()}
replied["tuned, blind"] = replies(models["tuned"], processor, probes, blanked(images))
replied["tuned, wrong picture"] = replies(models["tuned"], processor, probes, swapped(images, SEED))
replied |= {f"always {word}": [word] * len(probes) for word in ("yes", "no")}

# %% [markdown]
# Several questions are about one picture and are no independent witnesses, so the interval draws
# pictures. The yes-ratio stands beside accuracy, because a one-sided answerer is right half of the
# time on balanced questions.


# %%
def scored(replied, probes):
    """A table: accuracy for each kind of question, POPE's and AMBER's F1, the share of yes."""
    kinds, groups = np.array(probes["kind"]), np.array(probes["group"])
    labels, rows = np.array(probes["label"]), {}
    for name, given in replied.items():
        right = np.array(given) == labels
        row = rows[name] = {
            kind: cell(intervals.estimate(right[kinds == kind], clusters=groups[kinds == kind]))
            for kind in dict.fromkeys(kinds)
        }
        row["F1, yes is positive"] = f"{metrics.yes_no(given, labels).f1:.3f}"
        no = metrics.yes_no(given, labels, positive="no")
        row |= {"F1, no is positive": f"{no.f1:.3f}", "yes-ratio": f"{no.yes_ratio:.0%}"}
    print(f"n = {len(labels)} questions about {len(set(groups))} pictures; 95% over pictures")
    return pd.DataFrame(rows).T


scored(replied, probes)

# %% [markdown]
# DPO on captions has changed what the model *says* and hardly what it *answers*. If you want other
# answers, you need pairs of answers. With closed eyes, or the wrong picture, the answers are not far
# from those of a coin.
#
# The same replies have two F1: POPE calls "yes" the positive class, AMBER calls "no" so. "Always yes"
# looks respectable in one and "always no" in the other. Compare figures only within one convention.
#
# AMBER's score is the mean of 100 - CHAIR and F1, with "no" positive. **Predict** the score of a model
# that describes nothing and always says no.

# %%
for name in ("base", "control", "tuned"):
    f1 = metrics.yes_no(replied[name], probes["label"], positive="no").f1
    print(f"{name:8} {amber.amber_score(results[name]['CHAIRi'].value, f1):5.1f}")
f1 = metrics.yes_no(replied["always no"], probes["label"], positive="no").f1
print(f"nothing, and no: {amber.amber_score(0, f1):.1f} here, where half of the answers are yes")

# %% [markdown]
# On AMBER's own files the same answerer gets 89.85 from the public program, above most models in its
# paper: an empty caption has CHAIR 0 there, and its existence questions are all answered by "no". So
# look at Cover and at the yes-ratio before you look at a score.
#
# ## A published claim
#
# [A public post](https://huggingface.co/blog/dpo_vlm) tunes Idefics2-8B with DPO and reports AMBER's
# discriminative part, without an interval:
#
# | | accuracy | F1 |
# |---|---|---|
# | Idefics2 | 85.8 | 89.1 |
# | Idefics2 + DPO | 85.9 | 89.4 |
#
# Is +0.1 something? The part has 14,216 questions. First the interval that such an accuracy has by
# itself, then how many questions it takes to see +0.1 with power 80%. That hangs on how many answers
# changed at all, which a table of results does not tell.

# %%
n = 14_216
right = np.arange(n) < 0.858 * n
alone = intervals.estimate(right)
print(
    f"85.8% of {n:,} has the interval [{alone.low:.1%}, {alone.high:.1%}], if all are independent"
)
for disagree in (0.002, 0.01, 0.05, 0.10):
    print(
        f"if {disagree:.1%} of the answers change in being right: n = {intervals.needed(0.001, disagree):,}"
    )

# %%
shares = np.geomspace(0.0012, 0.2, 40)
figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
ax.loglog(shares, [intervals.needed(0.001, share) for share in shares], color=TUNED)
ax.axhline(n, color="black", linestyle=":", label="AMBER's 14,216 questions")
ax.set(title="To see +0.1 points", xlabel="share of answers that change in being right")
ax.set(ylabel="questions needed")
ax.legend()
plt.show()

# %% [markdown]
# Only if hardly any answer changed could 14,216 questions show +0.1. And AMBER asks them about
# a thousand pictures, so the true interval is wider still. The post may be right that DPO did no
# harm; that it helped, this table cannot say.
#
# ## Your track's model
#
# Now the same questions to the model of your track. On a GPU track these are POPE's own, downloaded from
# the Hub, about photographs. On pocket you have seen the answer.

# %%
if track.name != "pocket":
    mine, reader = families[track.name]
    theirs = probes_for(track, 30 if QUICK else PROBES, SEED)
    images = list(theirs["image"])
    given = {name: replies(model, reader, theirs, images) for name, model in mine.items()}
    given["tuned, blind"] = replies(mine["tuned"], reader, theirs, blanked(images))
    display(scored(given, theirs))
else:
    print("pocket: the tables above are its answer")

# %% [markdown]
# The 160 questions about the bundled photographs: too few to rank models, enough to see whether one
# looks at all. (The pocket model has never seen a photograph.)

# %%
if track.name != "pocket":
    few = photo_probes()
    images = list(few["image"])
    given = {name: replies(model, reader, few, images) for name, model in mine.items()}
    display(scored(given, few))

# %% [markdown]
# AMBER's pictures are not on the Hub: copy the folder `data` of github.com/junyangwang0410/AMBER,
# unpack the images that its README links to beside it, and set `AMBER` to that folder. Its 1,004
# pictures are described and scored as above.

# %%
if AMBER and track.name != "pocket":
    questions, described = amber_queries(AMBER)
    benchmark, pictures = amber.load(AMBER), list(described["image"])
    settings = {"batch_size": track.eval_batch, "max_new_tokens": track.max_new_tokens}
    for name, model in mine.items():
        texts = answers(model, reader, pictures, described["question"], folder=KEPT, **settings)
        found = amber.generative(dict(zip(described["id"], texts)), benchmark)
        print(
            f"{name:8} CHAIR {found.chair_i:.1%}, Cover {found.cover:.1%}, n = {len(texts)}:",
            end=" ",
        )
        print(cell(intervals.estimate([bool(c.hallucinated) for c in found.per_caption])), "Hal")
elif AMBER is None:
    print("AMBER is None: no files of AMBER to look at")

# %% [markdown]
# And its yes/no questions, in the same table as before; their kinds are AMBER's.

# %%
if AMBER and track.name != "pocket":
    images = list(questions["image"])
    given = {name: replies(model, reader, questions, images) for name, model in mine.items()}
    display(scored(given, questions))

# %% tags=["key-figure"]
base, tuned = results["base"], results["tuned"]
print(
    f"trap Hal {base['Hal'].value:.0%} -> {tuned['Hal'].value:.0%}, Cover "
    f"{base['Cover'].value:.0%} -> {tuned['Cover'].value:.0%}; with the wrong picture Hal "
    f"{results['tuned, wrong picture']['Hal'].value:.0%} (n = {count})"
)

# %% [markdown]
# ## Recap
#
# - CHAIR counts what is false, Cover what is there. Either alone can be had by cheating.
# - Never a figure without n, and the interval over pictures. Compare models on the same items.
# - POPE's "yes" is positive, AMBER's is "no". Look at the yes-ratio.
# - Close the model's eyes, or give it the wrong picture: what stays was not earned by looking.
# - Wins and regressions by rule, never by hand.
#
# **Try it.** Score another model: write its answers as AMBER's or POPE's files and run
# `python -m tools.score --help`. Then set `SEED = 1`: which figures move more than their intervals?
#
# [Next: 07 · Make your own preferences](07_make_preferences.ipynb)
