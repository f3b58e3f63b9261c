# %% [markdown]
# # 07 · Make your own preferences
#
# **The question:** where can pairs come from, and what does each source teach?
#
# | track | time |
# |---|---|
# | pocket | about 50 seconds on 2 CPU cores, measured |
# | t4, ampere | not measured on this hardware |
#
# **You need** lessons 04 and 06. **You will have** a folder of pairs that you made, with a card that
# says how each came to be; a measured comparison of what twelve kinds of pairs teach; and labels of
# your own.

# %% tags=["parameters"]
TRACK = "auto"  # "pocket", "t4", "ampere", or "auto": whatever this machine can do
MODEL = None  # another model for the track, such as "HuggingFaceTB/SmolVLM-500M-Instruct" on t4
QUICK = False  # True: few prompts, to see the lesson run
SEED = 0
OUT = "runs/07"  # on Colab: "/content/drive/MyDrive/vlm-dpo/07"
ANNOTATOR = None  # your name: then you label, too
ADAPTER = None  # pocket: "runs/04/pocket/adapter" lets the model that you tuned answer, too
PAINTER = None  # t4, ampere: another text-to-image checkpoint, a Hub id or a folder
SIZE = 512  # of its pictures, in pixels
IMAGE_REWARD = None  # likewise, what ranks the pictures
TEXT_REWARD = None  # and the judge of answers that reads text alone

# %% [markdown]
# What makes pairs, and what lets people label them, is in `helpers.feedback`.

# %%
import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from PIL import Image

from helpers.dpo import checkpoints
from helpers.dpo.trainer import check_setup, dpo_trainer

# %%
from helpers.evaluation.intervals import estimate
from helpers.feedback import agreement, sources
from helpers.feedback import pocket_stages as stages
from helpers.feedback.annotation import Session, pair_keys
from helpers.feedback.pairing import length_of, rlaifv_pairs
from helpers.feedback.pipeline import Pipeline, Settings, run
from helpers.feedback.stages import Prompt, SynthesisError
from helpers.feedback.widget import annotate
from helpers.pairs.check import require_sound
from helpers.pairs.format import to_conversational
from helpers.pairs.load import load_photos, load_raw
from helpers.plots.cards import image_grid, pair_cards, print_wrapped
from helpers.setup.tracks import choose
from helpers.vlm import pocket
from helpers.vlm.answers import answer_logps
from helpers.vlm.load import load_policy
from helpers.world import scenes as world

# %% [markdown]
# The track, its policy, and the folder of everything that is made below:

# %%
track = choose(TRACK, model=MODEL)
model, processor = load_policy(track)
folder = Path(OUT, track.name, "quick" if QUICK else "all")
SIDES = ("chosen", "rejected")
print(f"track {track.name}: {track.machine}")

# %% [markdown]
# ## A pipeline: from sentences to pairs
#
# No pictures, no annotators, no data? PDS-DPO ([2412.17417](https://arxiv.org/abs/2412.17417)) makes
# everything: a text-to-image model draws several pictures for a prompt and an image reward keeps the
# best; several models answer a question about it; an answer reward scores the answers. The best is
# chosen, the worst is rejected.
#
# Five stages, one signature: a list of items in, one result for each out.
#
# | stage | pocket | t4, ampere |
# |---|---|---|
# | generator | a drawer with flaws | sd-turbo |
# | image reward | the exact truth | PickScore |
# | answerers | the pocket model at three temperatures; yours from lesson 04, if you like | SmolVLM-256M and 500M |
# | answer reward | the exact truth | a VLM that is asked whether all of it is true |
#
# `helpers.feedback.hub_stages` says why these. On a GPU they are loaded one after another.


# %%
def pocket_pipeline():
    answerers = [stages.PocketAnswerer(model, processor, heat) for heat in (0.3, 1.0, 1.3)]
    if ADAPTER:
        answerers.append(stages.PocketAnswerer(*stages.adapted(ADAPTER), name="tuned pocket"))
    return Pipeline(stages.Drawer(), stages.matches_prompt, answerers, stages.tells_truth)


def gpu_pipeline():
    from helpers.feedback import hub_stages as hub
    from helpers.feedback import vlm_stages as vlm

    painter = hub.Weights(PAINTER, variant="fp16") if PAINTER else hub.SD_TURBO
    judge = hub.Weights(IMAGE_REWARD) if IMAGE_REWARD else hub.PICKSCORE
    tracks = [track] if MODEL else vlm.answer_tracks(track)
    answerers = [vlm.Answerer(one, heat) for one in tracks for heat in (0.3, 1.0)]
    draw, fits = hub.Painter(painter, size=SIZE), hub.PromptFit(judge)
    return Pipeline(draw, fits, answerers, vlm.SightedReward(track))


# %% [markdown]
# A prompt says what the picture is to show, and carries the question that is asked about it later.
# Yours can come from anywhere; ask for what your model gets wrong.

# %%
THINGS = ("a table with a plate", "a bed in a small room", "a boat on a lake", "two cups on a table",
          "a house by a road", "a bird on a fence", "a bicycle by a wall", "fruit on a chair")  # fmt: skip
if track.name == "pocket":
    pipeline = pocket_pipeline()
    prompts = stages.pocket_prompts(24 if QUICK else 240, seed=SEED)
else:
    pipeline = gpu_pipeline()
    prompts = [Prompt(f"a photo of {text}", "What is in the image?") for text in THINGS]
settings = Settings(seed=SEED, candidates=2 if QUICK else 4, batch_size=64)
print(f"{len(prompts)} prompts, the first: {prompts[0].text}")

# %% [markdown]
# The power will fail. A stage may hand out its results one by one, and each is kept as soon as it is
# there. So pull the plug in the middle of the drawing. **Predict:** how many pictures will the
# second run draw, and how many twice?


# %%
class Unplugged:
    """A generator until the power fails."""

    def __init__(self, generator, pictures):
        self.generator, self.left, self.drawn = generator, pictures, []
        self.name, self.settings = generator.name, generator.settings

    def __call__(self, items):
        for item in items:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.drawn.append(item.key)
            yield from self.generator([item])


# %%
unplugged = Unplugged(pipeline.generator, pictures=10)
try:
    run(prompts, replace(pipeline, generator=unplugged), settings, folder, "first")
except KeyboardInterrupt:
    print(f"the power failed after {len(unplugged.drawn)} pictures")

# %% [markdown]
# The same call again, now with power. The table that it prints is the *funnel*: what went into each
# stage, what came out, and why the rest was dropped.

# %%
before, unplugged.left = len(unplugged.drawn), -1  # it fails no more
made = run(prompts, replace(pipeline, generator=unplugged), settings, folder, "first")
drawn = unplugged.drawn
print(f"\n{len(drawn) - before} pictures by the second run, {len(drawn) - len(set(drawn))} twice")

# %% [markdown]
# Read the funnel from the top. Most pictures are *not among the best*: four are drawn so that one
# can be kept. Answers that repeat one another make no pair, and neither do ties. The published
# code has no filter after the best and the worst are taken: of the ten pairs in the sample beside it
# (`step3_sanity.json`), three have a rejected answer of one word or none.
#
# Here are the candidates of the first prompt, with what the image reward says of each.

# %% tags=["cover"] alt="Four drawings that a drawer with flaws made for one prompt, each with the score that an image reward gave it."
items = map(json.loads, (folder / "first" / "items.jsonl").read_text("utf-8").splitlines())
mine = [item for item in items if item["item"].startswith("0/")]
print(prompts[0].text)
_ = image_grid(
    [Image.open(folder / item["file"]) for item in mine if item["stage"] == "pictures"],
    [f"score {item['score']:.1f}" for item in mine if item["stage"] == "image_scores"],
)

# %% [markdown]
# On pocket the score is minus the number of phrases that differ from the prompt; 0 is perfect. And
# these are the first two pairs:

# %%
_ = pair_cards([made[i] for i in range(2)])

# %% [markdown]
# A rejected answer may be broken English, said by the hottest answerer. Such a pair teaches grammar
# and not looking; if you see many, cool the answerer.
#
# A pair without a history is worth little: next year nobody knows which judge preferred it. Every
# pair carries its own in `origin_split`, and the folder has a card for the dataset.

# %%
history = json.loads(made[0]["origin_split"])
for side in SIDES:
    print(f"{side}: by {history[side]['answerer']}, score {history[side]['score']:.1f}")
card = Path(folder / "first" / "README.md").read_text(encoding="utf-8")
print(card[card.index("## How every pair") : card.index("**Of each pair**")])

# %% [markdown]
# They go through the checks of lesson 01, the format of lesson 02 and the training of lesson 04 like
# any others. So few pairs change little; here you only see that they fit. The margin is that of the
# same pairs.

# %%
pairs = to_conversational(require_sound(made))
few = {"num_train_epochs": 2, "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
trainer = dpo_trainer(load_policy(track)[0], processor, pairs, track, folder / "trained", **few)
print(f"loss before the first step: {check_setup(trainer)['loss']:.4f} (ln 2 is 0.6931)")
checkpoints.train(trainer)
after = trainer.evaluate(pairs)
print(f"after {trainer.state.global_step} steps: margin {after['eval_rewards/margins']:+.3f}")

# %% [markdown]
# ## Who judges?
#
# The pictures and answers are made. Only the judge changes now: in the same folder nothing is drawn
# or answered again. PDS-DPO scores answers with a language model that never sees the picture. How
# much can such a judge know? We take the simplest one, which likes many words (so it says nothing
# about theirs), and two others: the truth with noise added, and RLAIF-V's way
# ([2405.17220](https://arxiv.org/abs/2405.17220)), which splits an answer into facts and asks a model
# about each with a yes/no question. Here the pocket model checks itself.
#
# **Predict** for each judge: how many pairs will it find, and in what share of them is the chosen
# answer really the better one?


# %%
def gpu_judges():
    from helpers.feedback import hub_stages, vlm_stages

    text = hub_stages.Weights(TEXT_REWARD) if TEXT_REWARD else hub_stages.SKYWORK
    return {"facts counted": vlm_stages.FactCount(track), "blind": hub_stages.TextOnlyReward(text)}


def pocket_judges():
    facts = stages.PocketFactCount(model, processor)
    noisy = stages.noisy(stages.tells_truth, spread=1.5)
    return {"noisy": noisy, "facts counted": facts, "blind": stages.likes_length}


def judged(name, judge, **changes):
    print(f"\n{name}:")
    asked = replace(pipeline, answer_reward=judge, **changes)
    try:
        made_by[name] = run(prompts, asked, settings, folder, name)
    except SynthesisError as sentence:  # when it finds all answers equally good, say
        print_wrapped(sentence)


# %%
judges = pocket_judges() if track.name == "pocket" else gpu_judges()
made_by = {"the truth" if track.name == "pocket" else "sighted": made}
for name, judge in judges.items():  # the funnel counts what was made before, too
    judged(name, judge)

# %% [markdown]
# A judge is right where the answer that it prefers has fewer false and missed phrases; of two equally
# good ones neither is better. That can be counted where the truth is known. Elsewhere you can only
# see how often the chosen answer is the longer one.


# %%
def percent(values):
    share = estimate(values)
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def truly_better(row):
    scene = world.Scene.from_json(json.loads(row["origin_split"])["scene"])
    chosen, rejected = (sum(world.grade(scene, row[side])) for side in SIDES)
    return chosen < rejected


for name, pairs in made_by.items():
    longer = length_of(pairs).longer / len(pairs)
    print(f"{name:14} {len(pairs):4} pairs, chosen has more words in {longer:.0%}", end="")
    better = [truly_better(row) for row in pairs] if track.name == "pocket" else []
    print(f", is better in {percent(better)}" if better else "")

# %% [markdown]
# The blind scorer chooses the longer answer by construction, and is right in about a quarter of its
# pairs: where models add what is not there, length is a bad thing to pay for. Counted facts are right
# about as often as the noisy truth, but find less than half as many pairs; all else are ties. And
# they never show what an answer leaves out.
#
# RLAIF-V's public code takes more than the best and the worst: every two answers whose scores differ
# by one or more, at most two of an instruction. Then a *length balance* drops pairs whose chosen
# answer is much shorter, until chosen and rejected are equally long on average. With and without:

# %%
facts = judges["facts counted"]
judged("RLAIF-V", facts, pairing=rlaifv_pairs)
judged("unbalanced", facts, pairing=partial(rlaifv_pairs, balance=False))

# %% [markdown]
# **Can you spot it?** Suppose a reward model is given the picture's *prompt* beside the answer, and is
# called blind. (It is not: the prompt says what the picture shows. `text_only` withholds the picture,
# the prompt and all that the generator knows.)

# %% [markdown]
# ## Other sources
#
# You need no pipeline to get pairs. Each of these is a page in `helpers.feedback.sources`, for the
# pocket world. First SeVa ([2404.10501](https://arxiv.org/abs/2404.10501)): the model answers once
# about the picture and once about the same picture under noise. The second answer is rejected, and
# nobody judges at all.

# %%
scenes = sources.preference_scenes(40 if QUICK else 200, SEED)
pocket_model, pocket_reader = pocket.load()
noised = sources.noised_pictures(pocket_model, pocket_reader, scenes, seed=SEED)
drawing = world.draw(scenes[0])
strengths = (0.1, 0.25, 0.5, 0.78)
views = [drawing, *(sources.noised(drawing, strength) for strength in strengths)]
_ = image_grid(views, ["as it is", *map(str, strengths)], columns=5)

# %% [markdown]
# 0.25 is as strong as SeVa's noise after 500 of 1,000 steps. An answer that the noise does not change
# makes no pair, which is why there are fewer pairs than scenes. Then *injection*: a true answer, and the same with
# an object added that is not there. And yes/no questions about objects, the true answer chosen.
# Read what is rejected in each.

# %%
injected = sources.injected_in_truth(scenes, SEED)
yes_no = sources.balanced_yes_no(scenes, SEED)
for name, pairs in {"noise": noised, "injected": injected, "yes/no": yes_no}.items():
    print(f"{name}, {len(pairs)} pairs of {len(scenes)} scenes: {pairs[0]['question']}")
    print_wrapped(f"  chosen:   {pairs[0]['chosen']}")
    print_wrapped(f"  rejected: {pairs[0]['rejected']}")

# %% [markdown]
# Two things to ask of any source before you train on it. Is the chosen answer better? And could the
# *model* have said both? Pairs of the model's own answers are called on-policy. An injected answer
# is not; it may teach the model to avoid words that it was never going to say.

# %%
own = load_raw(choose("pocket"), "train", 64)  # the model's own samples, ranked by the truth
pools = {"own samples": own, "noise": noised, "injected": injected}
for name, pool in pools.items():
    few = pool.select(range(min(64, len(pool))))
    said = [answer_logps(pocket_model, pocket_reader, few["image"], few["question"], few[side])
            for side in SIDES]  # fmt: skip
    print(f"{name:12} log-prob of chosen {said[0].mean():6.1f}, of rejected {said[1].mean():6.1f}")

# %% [markdown]
# All are scored beside the clean picture. The injected answers are the least likely, partly because
# they are longer; our injector speaks as the model does. A text by another model, GPT-4 say, can be
# much further away. Measure yours.
#
# ## What each source teaches
#
# Now the same training on every source: a new adapter, the pocket track's settings, up to 1,280 pairs,
# three seeds. Counted facts find fewer pairs, so they train in fewer steps. All of it takes more than
# an hour, too long for a lesson: the figures are kept with the course, and
# `python -m benchmarks.preference_sources` makes them again.
#
# All models describe the same 500 fresh scenes of each kind. Half of the scenes that pairs are made
# about are traps, and injection adds what traps tempt to say: these sources fit this test well.
#
# **Predict** before you look: which source gives the lowest trap Hal? Which costs Cover?

# %%
report = json.loads(Path("benchmarks/results/preference_sources.json").read_text(encoding="utf-8"))
rows = report["rows"]
usual, fast = sorted({row["lr"] for row in rows if row["lr"]})
print(f"{report['command']}\n{report['machine']}")


def over_seeds(values):
    if values.isna().any():
        return ""
    if len(values) == 1 or values.name == "pairs":
        return f"{values.mean():.4g}"
    return f"{values.mean():.1f}±{values.std():.1f}"


# %%
def table_at(lr):
    shown = ["pairs", "right", "trap_hal", "trap_cover", "iid_cover", "probes", "yes", "words"]
    found = pd.DataFrame([row for row in rows if row["lr"] in (None, lr)])
    table = found.groupby("title", sort=False)[shown].agg(over_seeds)
    return table.rename_axis(index=None, columns=f"learning rate {lr:.0e}")


table_at(usual)

# %% [markdown]
# In percent, with the standard deviation over three seeds. *right*: pairs whose chosen answer is truly
# better. *probes*: right answers to POPE's random questions, of which half are true; *yes*: answers
# "yes" to them. *words*: of a caption. "Supervised" is the control of lesson 05, on the chosen
# answers of the row above it; *sft* adds that loss to DPO's. What the numbers say:
#
# - **A judge that pays for length makes it far worse**: a false object is one thing more to say.
# - **Ranking the model's own samples works**, by the truth or by CHAIR, which counts false objects
#   alone. The truth costs 1.6 points of iid Cover, CHAIR 3: what is left out costs it nothing.
# - **Noise works as well, and nobody judged.** Chosen is better in about three pairs of four.
# - **Injection works as CHAIR does**, in false objects and in Cover.
# - **Questions change captions, too.** "No" about what is not there takes trap Hal from 34 to 28. No
#   row changes the answers to yes/no questions.
#
# One row does not fit. RLAIF-V's rule leaves a model that is worse than the base, though its judge
# looks, and chosen is better in most of its pairs. Without the length balance the same rule works. (It
# then has twice the pairs; but fewer good pairs would help less, not do harm.) A look at the pairs says
# why. In a trap, what is false is mostly a last sentence, "I also see ...". So count how often only one
# side has it:

# %%
for name, pairs in made_by.items() if track.name == "pocket" else ():
    ends = [tuple("I also see" in row[side] for side in SIDES) for row in pairs]
    only_chosen, only_rejected = ends.count((True, False)), ends.count((False, True))
    print(
        f"{name:14} {len(pairs):4} pairs: chosen alone has a last sentence in {only_chosen:3}, ",
        end="",
    )
    print(f"rejected alone in {only_rejected:3}")

# %% [markdown]
# An answer that leaves out a false sentence is much shorter. So the balance drops the very pairs in
# which leaving it out is chosen, and keeps those in which adding it is: compare the last two lines. A
# filter judges, too: look at what it drops.
#
# ## Harder
#
# Two things that papers warn of are missing above: injected pairs that silence a model, and "No" pairs
# that teach it to say "No". Was the training too gentle? The same with five times the learning rate.
# **Predict** which sources stand it.

# %%
table_at(fast)

# %% [markdown]
# As a picture, a mark for each seed, for the base a dashed line. Lower Hal is better, higher Cover and
# probes are; mind that Cover's axis does not begin at 0.

# %%
shown = {"trap_hal": "trap Hal (%)", "iid_cover": "iid Cover (%)", "probes": "right probes (%)"}
titles = list(dict.fromkeys(row["title"] for row in rows))
figure, axes = plt.subplots(1, 3, figsize=(12, 5), sharey=True, layout="constrained")
for ax, (name, label) in zip(axes, shown.items()):
    for lr, color, mark, up in ((usual, "#0072B2", "o", 0.15), (fast, "#D55E00", "s", -0.15)):
        dots = [(row[name], titles.index(row["title"]) - up) for row in rows if row["lr"] == lr]
        ax.plot(*zip(*dots), mark, color=color, alpha=0.6, label=f"{lr:.0e}")
    ax.axvline(rows[0][name], color="black", linestyle="--", linewidth=1)
    ax.set(xlabel=label)
    ax.grid(alpha=0.25)
axes[0].set_yticks(range(1, len(titles)), titles[1:])
axes[0].invert_yaxis()
axes[0].legend(title="learning rate")
plt.show()

# %% [markdown]
# And in words: what five of the models say about the same scene.

# %%
for source in ("base", "truth", "chair", "inject", "inject-sft"):
    row = next(row for row in rows if row["source"] == source and row["lr"] != usual)
    print_wrapped(f"{row['title']}:\n  {row['says']['iid'][1]}")

# %% [markdown]
# - **Silence.** CHAIR and injection leave 1 to 4% of false captions in traps, and do not name a third
#   of what is there in iid scenes, 40 to 50% in traps. Some sentences break off. Whoever looks at Hal
#   alone calls that the best model. Even the truth costs much Cover now.
# - **An anchor helps**: injection plus *sft* keeps 84% of iid Cover, at 9% trap Hal instead of 2. At
#   the gentle rate it changes nothing.
# - **"No" teaches "No"**: a third of all answers are "yes" where half should be, and probes fall.
# - **Balanced questions are the quiet surprise**: trap Hal 20%, and hardly anything is lost.
# - **What is wrong with the pairs gets louder**: length, and RLAIF-V's balance.
# - The control stands still: 17 and 18% at either rate.
#
# What a source teaches depends on how hard you train on it: the pairs that cure at one learning rate
# silence at another. And all this is one small model that judges or checks itself. Measure yours.

# %% [markdown]
# ## People
#
# All judges so far were programs. Now you: a picture, a question, two answers, and you do not know
# which one the dataset calls chosen. The sides are shuffled. Set `ANNOTATOR` to your name and run
# this cell in JupyterLab or Colab: keys 1 and 2 choose, the buttons say the rest. Every choice is on
# disk before the next pair shows.


# %%
def to_label(raw, count=20):
    return raw.shuffle(seed=7).select(range(min(count, len(raw))))


LABELS = Path(OUT, "labels")
photos = to_label(load_photos())
drawn = to_label(load_raw(choose("pocket"), "test", 200))
if ANNOTATOR:
    display(annotate(Session(photos, ANNOTATOR, LABELS / "photographs")))
else:
    print("set ANNOTATOR to your name and run this cell again to label 20 photographs")

# %% [markdown]
# The photographs have no exact truth; a course author's texts say which answer is better. The
# drawings have one. Label those too, and find out how good *you* are:

# %%
if ANNOTATOR:
    display(annotate(Session(drawn, ANNOTATOR, LABELS / "drawings")))

# %% [markdown]
# A class has many annotators. Three programs stand in for them and label through the code that the
# buttons call. No one looks: *Ada* is told which answer has fewer errors, and says the opposite one
# time in seven. *Ben* takes the answer with more words, the left one if both have as many. *Cy* does
# as Ada three times in ten, else takes the left one. They show what the figures can tell apart, and
# nothing about people.


# %%
scene_of = {
    key: world.Scene.from_json(json.loads(about)["scene"])
    for key, about in zip(pair_keys(drawn), drawn["origin_split"])
}

# %% [markdown]
# What each of them goes by:


# %%
def looks(card, rng):
    errors_left, errors_right = (
        sum(world.grade(scene_of[card.key], text)) for text in (card.left, card.right)
    )
    if errors_left == errors_right:
        return "tie"
    better, worse = "AB" if errors_left < errors_right else "BA"
    return worse if rng.random() < 0.15 else better


def counts_words(card, rng):
    return "AB"[len(card.left.split()) < len(card.right.split())]


def hurries(card, rng):
    return looks(card, rng) if rng.random() < 0.3 else "A"


# %%
for name, picks in {"Ada looks": looks, "Ben counts": counts_words, "Cy hurries": hurries}.items():
    session, rng = Session(drawn, name, LABELS / "drawings"), random.Random(name)
    while (card := session.card) is not None:
        session.label(picks(card, rng))
    session.close()

# %% [markdown]
# **Predict**: who agrees with whom? Who leans to the left side? Cohen's kappa is agreement beyond what
# two would reach by chance who pick the dataset's chosen answer as often as these two do: 1 is full, 0
# is none beyond that, below 0 is less. It is not truth: two who both count words agree fully. The last
# column compares with the exact truth.

# %%
votes = agreement.read_votes(LABELS / "drawings", drawn)
print(agreement.report(votes))

# %% [markdown]
# Ada and Ben disagree more than by chance: length and truth point apart. The other two intervals hold
# 0, so twenty pairs do not tell them from chance. Ben leans left without meaning to, by his rule for
# ties. And Ada alone is right in 75%, the majority in 65%, though twenty pairs cannot tell these apart:
# a vote helps if most voters look.
#
# Where they disagree, look at the pair first: with people the question is often unclear. Here you see
# the annotators' rules.

# %%
_ = agreement.conflict_cards(votes, drawn, most=2)

# %% [markdown]
# The folder becomes one dataset: the majority decides, undecided pairs are left out, and each pair
# keeps every vote.

# %%
labelled = require_sound(agreement.to_preferences(votes, drawn))
told = [json.loads(about) for about in labelled["origin_split"]]
print(f"{len(labelled)} of {len(drawn)} pairs decided; the first:\n{told[0]['votes']}")
right = [about["as_in_source"] for about in told]
print(f"the majority agrees with the truth in {percent(right)}")


# %% tags=["key-figure"]
def harder(source):
    found = [row for row in rows if row["source"] == source and row["lr"] != usual]
    return "/".join(f"{np.mean([row[f] for row in found]):.0f}" for f in ("trap_hal", "iid_cover"))


names = {"base": "base", "truth": "truth", "blind": "blind", "inject": "injected",
         "inject-sft": "injected + sft", "yes-no": "balanced yes/no"}  # fmt: skip
print_wrapped("Hal/Cover % at the high rate:", ", ".join(f"{names[s]} {harder(s)}" for s in names))

# %% [markdown]
# ## Recap
#
# - A run is a folder. It can be killed, goes on, and its card says how every pair came to be.
# - Filter what the published code lets through: ties, empty answers, repeats. Know what a filter drops.
# - A judge teaches what it pays for. Measure how often yours is right before you train on it.
# - Source and learning rate decide together what is learned: look at Hal *and* Cover, and at probes.
# - When a row surprises you, read its pairs: what differs between chosen and rejected?
# - People disagree too. Shuffle the sides, keep every vote, report kappa and the lean.
#
# **Try it**
#
# 1. Set `ANNOTATOR` and label the drawings. Are you better than Ada?
# 2. Write a judge of your own, three lines long, and predict how often it is right.
# 3. Add a source of your own to `benchmarks/preference_sources.py`. Predict its row, then run it
#    with `--sources`, `--seeds 0` and `--out runs/mine.json`.
#
# [Next: A · The pocket model](A_pocket_model.ipynb)
