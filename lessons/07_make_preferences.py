# %% [markdown]
# # 07 · Make your own preferences
#
# **The question:** where can pairs come from, and what does each source teach?
#
# | track | time |
# |---|---|
# | pocket | about 1 minute on 2 CPU cores, measured |
# | t4, ampere | not measured on this hardware |
#
# **You need** lessons 04 and 06. **You will have** a folder of pairs that you made, with a card that
# says how each came to be; a measured comparison of twelve sources; and labels of your own.

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
# What makes pairs lives in `helpers.synthesis`, what lets people label them in `helpers.annotate`.

# %%
import json
import random
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from PIL import Image

from benchmarks import preference_sources
from helpers import agreement, annotate, checkpoints, plots, pocket, synthesis, world
from helpers.generate import answer_logps
from helpers.intervals import estimate
from helpers.models import load_policy
from helpers.preferences import load_photos, load_raw, require_sound, to_conversational
from helpers.synthesis import Parts, Prompt, Settings, SynthesisError, rlaifv_pairs, sources
from helpers.synthesis import pocket_parts as parts
from helpers.synthesis.store import read_parts
from helpers.tracks import choose

# %%
from helpers.trainer import check_setup, dpo_trainer

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
# `helpers.synthesis.real_parts` says why these. On a GPU they are loaded one after another.


# %%
def pocket_pipeline():
    answerers = [parts.PocketAnswerer(model, processor, heat) for heat in (0.3, 1.0, 1.3)]
    if ADAPTER:
        answerers.append(parts.PocketAnswerer(*parts.adapted(ADAPTER), name="tuned pocket"))
    return Parts(parts.Drawer(), parts.matches_prompt, answerers, parts.tells_truth)


def gpu_pipeline():
    from helpers.synthesis import real_parts as real

    painter = real.Weights(PAINTER, variant="fp16") if PAINTER else real.SD_TURBO
    judge = real.Weights(IMAGE_REWARD) if IMAGE_REWARD else real.PICKSCORE
    tracks = [track] if MODEL else real.answer_tracks(track)
    answerers = [real.Answerer(one, heat) for one in tracks for heat in (0.3, 1.0)]
    draw, fits = real.Painter(painter, size=SIZE), real.PromptFit(judge)
    return Parts(draw, fits, answerers, real.SightedReward(track))


# %% [markdown]
# A prompt says what the picture is to show, and carries the question that is asked about it later.
# Yours can come from anywhere; ask for what your model gets wrong.

# %%
THINGS = ("a table with a plate", "a bed in a small room", "a boat on a lake", "two cups on a table",
          "a house by a road", "a bird on a fence", "a bicycle by a wall", "fruit on a chair")  # fmt: skip
if track.name == "pocket":
    pipeline = pocket_pipeline()
    prompts = parts.pocket_prompts(24 if QUICK else 240, seed=SEED)
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
weak = Unplugged(pipeline.generator, pictures=10)
try:
    synthesis.run(prompts, replace(pipeline, generator=weak), settings, folder / "first")
except KeyboardInterrupt:
    print(f"the power failed after {len(weak.drawn)} pictures")

# %% [markdown]
# The same call again, now with power. The table that it prints is the *funnel*: what went into each
# stage, what came out, and why the rest was dropped.

# %%
weak.left = -1  # never
made = synthesis.run(prompts, replace(pipeline, generator=weak), settings, folder / "first")
twice = len(weak.drawn) - len(set(weak.drawn))
print(f"\n{len(weak.drawn)} pictures drawn in this notebook, {twice} of them twice")

# %% [markdown]
# Read the funnel from the top. Most pictures are *not among the best*: four are drawn so that one
# can be kept. Answers that repeat one another make no pair, and neither do ties. The published
# pipeline has no filter after the best and the worst are taken. Of its ten sample pairs, three have
# a rejected answer of one word or none.
#
# Here are the candidates of the first prompt, with what the image reward says of each.

# %%
pictures, scores = (read_parts(folder / "first", s) for s in ("pictures", "image_scores"))
mine = [key for key in pictures if key.startswith("0/")]
print(prompts[0].text)
_ = plots.image_grid(
    [Image.open(folder / "first" / pictures[key]["file"]) for key in mine],
    [f"score {scores[key]['score'] + 0.0:.0f}" for key in mine],
)

# %% [markdown]
# On pocket the score is minus the number of phrases that differ from the prompt; 0 is perfect. And
# these are the first two pairs:

# %%
_ = plots.pair_cards([made[i] for i in range(2)])

# %% [markdown]
# A pair without a history is worth little: next year nobody knows which judge preferred it. Every
# pair carries its own in `origin_split`, and the folder has a card for the dataset.

# %%
history = json.loads(made[0]["origin_split"])
for side in SIDES:
    print(f"{side}: by {history[side]['answerer']}, score {history[side]['score'] + 0.0:.0f}")
card = Path(folder / "first" / "README.md").read_text(encoding="utf-8")
print(card[card.index("## How every pair") : card.index("**Of each pair**")])

# %% [markdown]
# They go through the checks of lesson 01, the format of lesson 02 and the training of lesson 04 like
# any others. So few pairs change little; here you only see that they fit.

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
# The pictures and answers are made. Only the judge changes now: `reuse` takes over all that was made
# in the same way. PDS-DPO scores answers with a model that never sees the picture. How much can it
# know? We take the simplest scorer of that kind, which likes long answers, and two that look: one
# with noise, and RLAIF-V's way ([2405.17220](https://arxiv.org/abs/2405.17220)), which splits an
# answer into facts and asks each back as a yes/no question.
#
# **Predict** for each judge: in what share of its pairs is the chosen answer really the better one?


# %%
def gpu_judges():
    from helpers.synthesis import real_parts as real

    text = real.Weights(TEXT_REWARD) if TEXT_REWARD else real.SKYWORK
    return {"facts counted": real.FactCount(track), "blind": real.TextOnlyReward(text)}


def pocket_judges():
    facts = parts.PocketFactCount(model, processor)
    noisy = parts.noisy(parts.tells_truth, spread=1.5)
    return {"noisy": noisy, "facts counted": facts, "blind": parts.likes_length}


def judged(name, judge, **changes):
    print(f"\n{name}:")
    asked = replace(pipeline, answer_reward=judge, **changes)
    try:
        found[name] = synthesis.run(prompts, asked, settings, folder / name, folder / "first")
    except SynthesisError as sentence:  # when it finds all answers equally good, say
        print(sentence)


# %%
judges = pocket_judges() if track.name == "pocket" else gpu_judges()
found = {"the truth" if track.name == "pocket" else "sighted": made}
for name, judge in judges.items():
    judged(name, judge)

# %% [markdown]
# A score is right where the answer that it prefers has fewer false and missed phrases. That can be
# counted where the truth is known; elsewhere you can only see how long the chosen answers are.


# %%
def percent(values):
    found = estimate(values)
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"


def truly_better(row):
    scene = world.Scene.from_json(json.loads(row["origin_split"])["scene"])
    chosen, rejected = (sum(world.grade(scene, row[side])) for side in SIDES)
    return chosen < rejected


for name, pairs in found.items():
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in pairs) / len(pairs)
    print(f"{name:14} {len(pairs):4} pairs, chosen is longer in {longer:.0%}", end="")
    right = [truly_better(row) for row in pairs] if track.name == "pocket" else []
    print(f", is better in {percent(right)}" if right else "")

# %% [markdown]
# The blind scorer chooses the longer answer by construction, and the longer answer is the one that
# names one thing more. In a world where models add what is not there, that is a bad judge. Counting
# facts never sees what an answer leaves out: a short answer has fewer facts to be rejected.
#
# RLAIF-V's public rule takes more than the best and the worst: every two answers whose scores differ
# by one or more, at most two of an instruction, and then a filter that evens out the lengths.

# %%
judged("RLAIF-V", judges["facts counted"], pairing=rlaifv_pairs)
if track.name == "pocket":
    right = [truly_better(row) for row in found["RLAIF-V"]]
    print(f"\nchosen is better in {percent(right)}")

# %% [markdown]
# **Can you spot it?** A reward model was given the picture's *prompt* beside the answer, and people
# called it blind. (It is not: the prompt says what the picture shows. `text_only` withholds the
# picture, the prompt and all that the generator knows.)

# %% [markdown]
# ## Other sources
#
# You need no pipeline to get pairs. Each of these is a page in `helpers.synthesis.sources`, for the
# pocket world. First SeVa ([2404.10501](https://arxiv.org/abs/2404.10501)): the model answers once
# about the picture and once about the same picture under noise. The second answer is rejected, and
# nobody judges at all.

# %%
scenes = synthesis.preference_scenes(40 if QUICK else 200, SEED)
pocket_model, pocket_reader = pocket.load()
noised = sources.noised_pictures(pocket_model, pocket_reader, scenes, seed=SEED)
drawing = world.draw(scenes[0])
strengths = (0.1, 0.25, 0.5, 0.78)
views = [drawing, *(sources.noised(drawing, strength) for strength in strengths)]
_ = plots.image_grid(views, ["as it is", *map(str, strengths)], columns=5)

# %% [markdown]
# 0.25 is SeVa's noise after 500 of 1,000 steps. Then *injection*: a true answer, and the same with
# an object added that is not there. And yes/no questions about objects, the true answer chosen.
# Read what is rejected in each.

# %%
injected = sources.injected_in_truth(scenes, SEED)
yes_no = sources.balanced_yes_no(scenes, SEED)
for name, pairs in {"noise": noised, "injected": injected, "yes/no": yes_no}.items():
    print(f"{name} ({len(pairs)} pairs)\n  chosen:   {pairs[0]['chosen']}")
    print(f"  rejected: {pairs[0]['rejected']}")

# %% [markdown]
# Two things to ask of any source before you train on it. Is the chosen answer better? And could the
# *model* have said both? Pairs of the model's own answers are called on-policy. An injected answer
# is not; it may teach the model to avoid words that it was never going to say.

# %%
own = load_raw(choose("pocket"), "train", 64)  # the model's own samples, ranked by the truth
pools = {"own samples": own, "noise": noised, "injected": injected}
for name, pairs in pools.items():
    rows = pairs.select(range(min(64, len(pairs))))
    said = [answer_logps(pocket_model, pocket_reader, rows["image"], rows["question"], rows[side])
            for side in SIDES]  # fmt: skip
    print(f"{name:12} log-prob of chosen {said[0].mean():6.1f}, of rejected {said[1].mean():6.1f}")

# %% [markdown]
# The injected answers are the least likely ones, but not by much: our injector speaks as the model
# does. A text that another model wrote, GPT-4 say, can be much further away. Measure yours.
#
# ## What each source teaches
#
# Now the same training on every source: as many pairs, a new adapter, the pocket track's settings,
# three seeds, the same fresh scenes to be measured on. That takes too long for a lesson, so its
# figures are kept with the course; `python -m benchmarks.preference_sources` makes them again.
#
# **Predict** before you look: which source gives the lowest trap Hal? Which costs Cover? Which
# changes the yes/no answers?

# %%
report = json.loads(preference_sources.RESULTS.read_text(encoding="utf-8"))
rows = report["rows"]
usual, fast = sorted({row["lr"] for row in rows if row["lr"]})
print(f"{report['command']}\n{report['machine']}\n")
print(preference_sources.table([row for row in rows if row["lr"] != fast]))

# %% [markdown]
# *right* is the share of pairs whose chosen answer truly has fewer false and missed phrases; *yes* the
# share of "yes" among answers to questions of which half are true. What the numbers say:
#
# - **A judge that does not look makes it far worse.** Length is what it pays for, and a false object
#   is one more thing to say.
# - **Ranking the model's own samples works**, by the truth or by CHAIR. CHAIR costs Cover in iid
#   scenes: what an answer leaves out costs it nothing.
# - **Noise works as well, and nobody judged.** Its chosen answer is really the better one in about
#   three pairs of four.
# - **Injection removes false objects too**, and costs as much of what is there as CHAIR.
# - **Yes/no pairs barely move anything**, one-sided ones included.
#
# A row that does not fit deserves a look before a story. RLAIF-V's rule leaves a model that is worse
# than the base, though its judge looks, and though chosen is better in most of its pairs. What do
# the pairs show? In a trap the last sentence, "I also see ...", is often the false one. So count how
# often only one side has it, in the pairs that you made:

# %%
for name, pairs in found.items() if track.name == "pocket" else ():
    ends = [tuple("I also see" in row[side] for side in SIDES) for row in pairs]
    print(
        f"{name:14} {len(pairs):4} pairs; has a last sentence more: only chosen "
        f"{ends.count((True, False)):3}, only rejected {ends.count((False, True)):3}"
    )

# %% [markdown]
# Under the truth, leaving that sentence out is chosen ten times as often as adding it. Under RLAIF-V's
# rule it is never chosen. Why? An answer that leaves out a false object is shorter, and the rule's
# length balance takes out pairs whose chosen answer is shorter until both sides are equally long. It
# was made for a judge that prefers short answers; here it takes out the very pairs that matter. The
# same facts with the best and the worst answer of each picture (*facts counted* in the table) lower
# trap Hal. A filter is a judge, too.
#
# ## More of the same
#
# Two things that others have seen are missing above: injected pairs that silence a model, and "No"
# pairs that teach it to say "No". Was it just too little? The same once more with five times the
# learning rate. **Predict** which sources stand it.

# %%
print(preference_sources.table([row for row in rows if row["lr"] != usual]))

# %% [markdown]
# As a picture, a dot for each seed; the dashed line is the base. False objects in traps: lower is
# better. Cover, in the world as it is: higher is better. "Yes": half is right.

# %%
titles = list(dict.fromkeys(row["title"] for row in rows))
labels = {"trap_hal": "trap Hal (%)", "iid_cover": "iid Cover (%)", "yes": 'answers "yes" (%)'}
figure, axes = plt.subplots(1, 3, figsize=(12, 4.5), sharey=True, layout="constrained")
for ax, (name, label) in zip(axes, labels.items()):
    for lr, color in {usual: "#0072B2", fast: "#D55E00"}.items():
        dots = [(row[name], titles.index(row["title"])) for row in rows if row["lr"] == lr]
        ax.plot(*zip(*dots), "o", color=color, alpha=0.6, label=f"{lr:.0e}")
    ax.axvline(rows[0][name], color="black", linestyle="--", linewidth=1)
    ax.set(xlabel=label)
    ax.grid(alpha=0.25)
axes[0].set_yticks(range(1, len(titles)), titles[1:])
axes[0].invert_yaxis()
axes[0].legend(title="learning rate")
plt.show()

# %% [markdown]
# What five times the learning rate shows:
#
# - **Silence.** CHAIR and injected pairs leave hardly a false object, and a third of what is there is
#   no longer named. Whoever looks at Hal alone calls them the winners. Even the truth costs Cover now.
# - **An anchor helps.** The same injected pairs with the supervised term (`sft`) keep most of Cover.
# - **"No" teaches "No".** One-sided pairs lower the share of "yes" by a third and cost accuracy;
#   balanced ones hardly do.
# - **Bad judges are worse when they are heard.** Look at blind and RLAIF-V's rule.
# - The supervised control stays where it was.
#
# So what a source teaches depends on how much of it there is: the pairs that cure at one learning
# rate silence at another. Measure at yours.

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
    display(annotate.annotate(annotate.Session(photos, ANNOTATOR, LABELS / "photographs")))
else:
    print("set ANNOTATOR to your name and run this cell again to label 20 photographs")

# %% [markdown]
# The photographs have no exact truth; a course author's texts say which answer is better. The
# drawings have one. Label those too, and find out how good *you* are:

# %%
if ANNOTATOR:
    display(annotate.annotate(annotate.Session(drawn, ANNOTATOR, LABELS / "drawings")))

# %% [markdown]
# A class has many annotators. Three simulated ones label the drawings through the code that the
# buttons call, and see nothing but the card: one looks and errs at times, one counts words, one is
# in a hurry. (They say nothing about real people; they show what the figures can tell apart.)


# %%
scene_of = {
    key: world.Scene.from_json(json.loads(about)["scene"])
    for key, about in zip(annotate.pair_keys(drawn), drawn["origin_split"])
}


def looks(card, rng):
    left, right = (sum(world.grade(scene_of[card.key], t)) for t in (card.left, card.right))
    return "tie" if left == right else "AB"[(left > right) ^ (rng.random() < 0.15)]


def counts_words(card, rng):
    return "AB"[len(card.left.split()) < len(card.right.split())]


def hurries(card, rng):
    return looks(card, rng) if rng.random() < 0.3 else "A"


# %%
for name, picks in {"Ada looks": looks, "Ben counts": counts_words, "Cy hurries": hurries}.items():
    session, rng = annotate.Session(drawn, name, LABELS / "drawings"), random.Random(name)
    while (card := session.card) is not None:
        session.label(picks(card, rng))
    session.close()

# %% [markdown]
# **Predict** from their names: who agrees with whom? Who leans to the left side? Cohen's kappa is
# agreement beyond chance: 1 is full, 0 is what two who never look would have. The last column is the
# exact truth. With twenty pairs every interval is wide; that is what twenty pairs are worth.

# %%
votes = annotate.read_votes(LABELS / "drawings", drawn)
print(agreement.report(votes))

# %% [markdown]
# Where people disagree, look at the pair, not at the people. Often the question was unclear.

# %%
_ = annotate.conflict_cards(votes, drawn, most=2)

# %% [markdown]
# The folder becomes one dataset: the majority decides, ties go, and each pair keeps every vote.

# %%
labelled = require_sound(annotate.to_preferences(votes, drawn))
told = [json.loads(about) for about in labelled["origin_split"]]
print(f"{len(labelled)} of {len(drawn)} pairs decided; the first: {told[0]['votes']}")
right = [about["as_in_source"] for about in told]
print(f"the majority agrees with the truth in {percent(right)}")


# %% tags=["key-figure"]
def mean(source, figure):
    found = [row[figure] for row in rows if row["source"] == source and row["lr"] != fast]
    return np.mean(found)


told = {"base": "base", "truth": "judged by the truth", "blind": "blind", "inject": "injected"}
print("trap Hal/Cover:", end=" ")
print(
    *(
        f"{title} {mean(s, 'trap_hal'):.0f}/{mean(s, 'trap_cover'):.0f}%"
        for s, title in told.items()
    ),
    sep=", ",
)

# %% [markdown]
# ## Recap
#
# - A run is a folder. It can be killed, goes on, and its card says how every pair came to be.
# - Filter what the published pipeline lets through: ties, empty answers, repeats, length.
# - A judge that does not look cannot prefer what is true. Measure your judge before you use it.
# - Source and dose decide what is learned: look at Hal *and* Cover, and at the yes-ratio.
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
