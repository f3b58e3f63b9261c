# %% [markdown]
# # 01 · Inspect the preferences
#
# **The question:** what is in a preference dataset, and what is wrong with it?
#
# | track | time |
# |---|---|
# | pocket | about 20 seconds on 2 CPU cores, measured |
# | t4, ampere | not measured; a shard of the pairs, under 1 GB, is downloaded once, so the network decides |
#
# **You need** lesson 00; no GPU, and no network on the pocket track. **You will have** checks to run
# on any preference data, and two datasets that you know well.

# %% tags=["parameters"]
TRACK = "auto"  # "pocket", "t4" or "ampere"; "auto" takes what fits this machine
QUICK = False  # True looks at a few pairs only
SEED = 0  # of samples, splits and bootstrap draws
SAMPLE = 6  # how many rows you look at by eye

# %% [markdown]
# ## One row, and where it came from
#
# DPO learns from *pairs*: one picture, one question, and two answers. One of them was preferred (*chosen*), the other was not (*rejected*). The training sees nothing else. So before you train, look.

# %%
import io
import json
import math
import random
import re
from collections import Counter
from difflib import SequenceMatcher

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from datasets import Image

# %%
from helpers.evaluation.intervals import interval, ratio
from helpers.pairs.check import check_pairs, require_sound
from helpers.pairs.images import image_digest
from helpers.pairs.load import load_photos, load_raw, split_by_image, word_diff
from helpers.plots.cards import CHOSEN, REJECTED, pair_cards, print_wrapped
from helpers.plots.curves import length_histogram
from helpers.setup.storage import PreferenceDataError
from helpers.setup.tracks import choose
from helpers.world.scenes import Scene, describe, grade

track = choose(TRACK)
print(track.name, "-", track.machine)

# %% [markdown]
# Two datasets: the photographs that came with the course, and the pairs of your track.

# %%
photos = load_photos()
pairs = load_raw(track, "train", 200 if QUICK else None)
name = pairs[0]["ds_name"]
print(f"photos: {len(photos)} pairs, {name}: {len(pairs)} pairs. One row:\n")
row = photos[4]
for column, value in row.items():
    print(f"{column:15}", getattr(value, "size", value))  # of a picture, its width and height

# %% [markdown]
# The columns are those of [RLAIF-V](https://huggingface.co/datasets/openbmb/RLAIF-V-Dataset), a large public set of which the GPU tracks download a part. Training uses `image`, `question`, `chosen` and `rejected`. The others say where a row came from; `origin_split` holds JSON, different in every set.
#
# A card is easier to judge. Words that differ are coloured. First four photographs, then two pairs of your track. On pocket these are drawings: things in colour, and some in faint pencil.

# %% tags=["cover"] alt="Cards of four photographs, each with a question and two answers, chosen and rejected; the words in which they differ are coloured."
cards = pair_cards([photos[i] for i in (4, 5, 14, 31)])
cards = pair_cards([pairs[i] for i in (0, 1)])

# %% [markdown]
# Three ways of making pairs stand behind these columns:
#
# | set | who wrote the answers | who preferred |
# |---|---|---|
# | photos | an AI system, looking at each picture; *rejected* imitates what models get wrong | the writer: nothing was ranked |
# | pocket | the pocket model itself, four samples a picture | a program that knows the exact truth |
# | RLAIF-V | models, ten samples a question | a model that checks each claim |
#
# RLAIF-V ([Yu and others, 2024](https://arxiv.org/abs/2405.17220)) cuts an answer into claims and asks a model about each, as a yes/no question. The score is minus the number of refused claims. Two answers whose scores differ by one or more may become a pair. The set has 83,132 of them. Its licence, CC-BY-NC-4.0, forbids commercial use.

# %% [markdown]
# ## The pictures, without decoding them
#
# A picture is stored as the bytes of its file, and `datasets` decodes it whenever you touch it. For size and mode the header is enough, a few bytes at the start. So tell `datasets` not to decode; `PIL.Image.open` is lazy and reads the header only.


# %%
def stored(dataset):
    """The rows as dicts, each image as the bytes of its file."""
    return dataset.cast_column("image", Image(decode=False)).to_list()


def header(row):
    return PIL.Image.open(io.BytesIO(row["image"]["bytes"]))


sets = {"photos": stored(photos), name: stored(pairs)}

# %%
for key, rows in sets.items():
    kinds = Counter(f"{header(row).format} {header(row).mode}" for row in rows)
    pictures = len({image_digest(row["image"]) for row in rows})
    questions = len({row["question"] for row in rows})
    print(f"{key}: {len(rows)} pairs, {pictures} pictures, {questions} questions, {dict(kinds)}")

# %% [markdown]
# Pictures were counted by *digest*, a fingerprint of the bytes. One that serves several pairs must not be on both sides of a train/test split (lesson 02), and its pairs are not independent witnesses.
#
# RGB means three numbers a pixel. A set from the web may also have L (grey), P (palette), RGBA (transparency) or CMYK (print). Look at some before a processor converts them.

# %%
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for key, rows in sets.items():
    sizes = {header(row).size for row in rows}
    ax.scatter(*zip(*sizes, strict=True), alpha=0.6, label=f"{key} (different: {len(sizes)})")
ax.set(xlabel="width (pixels)", ylabel="height (pixels)", title="Picture sizes")
legend = ax.legend(loc="center left")

# %% [markdown]
# Odd dots are what you look for: icons, banners, pictures far larger than the model can use. Size is cost: a larger picture can become more image tokens, as lesson 03 shows.
#
# ## Judges that never look at the picture
#
# A test for every set: let someone guess the chosen answer *without the picture*. If the guess beats a coin, there is something to learn that needs no eyes, and DPO can learn that instead of seeing. The best known giveaway is length.
#
# **Predict.** In which of the two sets is the chosen answer the longer one: mostly, rarely, half of the time?


# %%
def lengths(rows, column):
    return np.array([len(row[column].split()) for row in rows])


fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for ax, (key, rows) in zip(axes, sets.items(), strict=True):
    length_histogram(lengths(rows, "chosen"), lengths(rows, "rejected"), ax)
    ax.set(xlabel=f"{key}: words in an answer")

# %% [markdown]
# The bars mix all pairs; they do not show which answer belongs with which. So look pair by pair. Our first blind judge says "the longer one wins". With equal lengths it tosses a coin, worth half a point.


# %%
def longer_wins(rows):
    """1 for a pair whose chosen answer has more words, 0 for fewer, 0.5 for equally many."""
    return (np.sign(lengths(rows, "chosen") - lengths(rows, "rejected")) + 1) / 2


for key, rows in sets.items():
    points = longer_wins(rows)
    print(f"{key}: {points.mean():.1%} of the points; {(points == 0.5).mean():.0%} are ties")

# %% [markdown]
# Is that far from chance, 50%? It depends on the number of pairs. A *bootstrap interval* tells: draw again and again with replacement, score each draw, keep the middle 95%. We draw pictures and not pairs, because pairs about one picture come together.


# %%
def score(rows, points):
    """(share of points, low, high), with a 95% interval over pictures."""
    of_picture = {}
    for row, point in zip(rows, points, strict=True):
        of_picture.setdefault(image_digest(row["image"]), []).append(point)
    sums = [(sum(mine), len(mine)) for mine in of_picture.values()]
    return np.mean(points), *interval(sums, ratio, seed=SEED)


# %%
results = {f"{key}: longer wins": score(rows, longer_wins(rows)) for key, rows in sets.items()}
for label, (share, low, high) in results.items():
    verdict = "could be chance" if low <= 0.5 <= high else "is not chance"
    print(f"{label}: {share:.1%}, interval {low:.1%} to {high:.1%}: {verdict}")

# %% [markdown]
# An interval around 50% does not prove that length is harmless, only that so few pairs cannot show it. Below 50% is a giveaway too: "the shorter one wins".
#
# Why care? DPO scores an answer by the *sum* of its tokens' log-probs, and models trained with it were seen to drift to longer answers ([Park and others, 2024](https://arxiv.org/abs/2403.19159)). Measure the bias now, or you cannot tell later where a drift came from.
#
# The second judge reads words. It notes which words stand in only one of the two answers.


# %%
def words(text):
    return set(re.findall(r"\w+", text.lower()))


def giveaways(rows):
    """{word: (pairs where only the chosen answer has it, pairs where only the rejected has it)}."""
    chosen, rejected = Counter(), Counter()
    for row in rows:
        chosen.update(words(row["chosen"]) - words(row["rejected"]))
        rejected.update(words(row["rejected"]) - words(row["chosen"]))
    return {word: (chosen[word], rejected[word]) for word in sorted(chosen | rejected)}


# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for ax, (key, rows) in zip(axes, sets.items(), strict=True):
    notes = giveaways(rows)
    found = sorted(notes, key=lambda word: abs(notes[word][0] - notes[word][1]))[-12:]
    ax.barh(found, [notes[w][0] for w in found], color=CHOSEN, label="chosen only")
    ax.barh(found, [-notes[w][1] for w in found], color=REJECTED, label="rejected only")
    ax.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}")
    ax.set(title=f"{key}: the most one-sided words", xlabel="pairs where only one answer has it")
legend = fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)

# %% [markdown]
# Each bar is a lesson that a model could learn without eyes: "say this", "never say that". The judge lets every word vote, weighted by the logarithm of its ratio, and picks the answer with more votes.
#
# **Predict.** How well does it do? First the naive way: it is scored on the pairs it learned from.


# %%
def by_words(rows, notes):
    """The points of a judge that adds up what the words of each answer are worth."""
    worth = {word: math.log((c + 1) / (r + 1)) for word, (c, r) in notes.items()}
    votes = [
        sum(worth.get(word, 0) for word in words(row["chosen"]))
        - sum(worth.get(word, 0) for word in words(row["rejected"]))
        for row in rows
    ]
    return (np.sign(np.round(votes, 9)) + 1) / 2


# %%
for key, rows in sets.items():
    print(f"{key}: {by_words(rows, giveaways(rows)).mean():.0%} right on the pairs it learned from")

# %% [markdown]
# It seems to know nearly everything about photographs that it never saw. It does not: with a few dozen pairs and hundreds of words, it has learned the pairs by heart. The honest way: learn from one half of the *pictures*, judge the other half.

# %%
for key, dataset in (("photos", photos), (name, pairs)):
    seen, unseen = map(stored, split_by_image(dataset, test_share=0.5, seed=SEED))
    notes = giveaways(seen)
    results[f"{key}: words, same pairs"] = score(seen, by_words(seen, notes))
    results[f"{key}: words, new pictures"] = score(unseen, by_words(unseen, notes))

# %%
fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
for label, (share, low, high) in sorted(results.items(), reverse=True):
    ax.plot([low, share, high], [label] * 3, "ko-", markevery=[1])
ax.axvline(0.5, color="grey", linestyle=":", label="chance")
ax.set(title="Judges that never look", xlabel="share of points, 95% interval", xlim=(0, 1.03))
legend = ax.legend(loc="lower left")

# %% [markdown]
# Read "new pictures" against the dotted line. What lies clearly to the right of it can be learned with closed eyes. (The photographs are few, so their interval is wide: another `SEED` splits them otherwise and moves the dot.) That is the floor: a model tuned on these pairs shows that it *sees* only by what it gains above. Lesson 05 measures this by swapping the pictures.
#
# ## Where two answers differ, and which is wrong
#
# The loss compares whole answers, but the signal is where they differ. Python's `difflib` turns one list of words into the other, step by step. The helper `word_diff` does the same.

# %%
left, right = row["chosen"].split(), row["rejected"].split()
steps = SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
for op, a, b, c, d in steps:
    print(f"{op:8} {' '.join(left[a:b]):32} {' '.join(right[c:d])}")
same = [left[a:b] for op, a, b, c, d in steps if op == "equal"]
pieces = word_diff(row["chosen"], row["rejected"])
assert same == [piece for op, piece in pieces if op == "same"]

# %% [markdown]
# How much of a pair differs? Near 0 it turns on a word or two. Near 1 the answers share nothing: content, tone and length all differ, and nobody can say which of them was preferred.


# %%
def changed(row):
    """The share of the words of both answers that are not common to them."""
    pieces = word_diff(row["chosen"], row["rejected"])
    common = sum(2 * len(piece) for op, piece in pieces if op == "same")
    return 1 - common / sum(len(row[column].split()) for column in ("chosen", "rejected"))


# %%
fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for key, rows in sets.items():
    shares = [changed(row) for row in rows]
    ax.hist(shares, np.linspace(0, 1, 21), alpha=0.6, density=True, label=key)
ax.set(xlabel="share of words that differ", ylabel="density of pairs")
legend = ax.legend(title="How different are the answers?")

# %% [markdown]
# Now the hard question. The chosen answer was *preferred*. Was it *right*? For photographs and RLAIF-V, only someone who looks can tell. For the pocket pairs we know: each scene was drawn from a list. `origin_split` holds it, and for each answer how many phrases are *false*, and how many true ones it *missed*.

# %%
known = pairs if track.name == "pocket" else load_raw(choose("pocket"), "train")
truths = [json.loads(text) for text in known["origin_split"]]
scenes = [Scene.from_json(truth["scene"]) for truth in truths]
print_wrapped("truth:   ", describe(scenes[0]))
for column in ("chosen", "rejected"):
    print_wrapped(f"{column + ':':9}", known[0][column], truths[0][f"{column}_false_missed"])

# %% [markdown]
# Do not believe a stored label that you can compute: `world.grade` counts again. Then see how often the winner is wrong too.
#
# **Predict.** In how many of these pairs does the *chosen* answer say something false?

# %%
graded = [list(grade(*both)) for both in zip(scenes, known["chosen"], strict=True)]
assert graded == [truth["chosen_false_missed"] for truth in truths]
false = np.array([[t[f"{c}_false_missed"][0] for c in ("chosen", "rejected")] for t in truths])
less_wrong = (false[:, 0] > 0).mean()
print(f"the chosen answer says something false in {less_wrong:.1%} of the pairs")
print(f"and no fewer than the rejected one in {(false[:, 0] >= false[:, 1]).mean():.1%}")

# %%
table = np.zeros(false.max(0) + 1, int)
np.add.at(table, tuple(false.T), 1)
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.imshow(np.sqrt(table), cmap="Blues", origin="lower", vmax=2 * np.sqrt(table.max()))
for (c, r), count in np.ndenumerate(table):
    ax.text(r, c, count, ha="center", va="center")
ax.set(xlabel="false phrases in the rejected answer", ylabel="in the chosen answer")
ax.set(xticks=range(table.shape[1]), yticks=range(len(table)))
title = ax.set_title("How many pairs have how many false phrases")

# %% [markdown]
# In the bottom row the chosen answer says nothing false. Above it, *chosen* means "less wrong". Where both numbers are equal, the chosen answer won because it missed less. Two pairs from the top follow. Find what is false in the chosen answers, then read the truth.

# %%
worst = np.argsort(-false[:, 0], kind="stable")[:2].tolist()
pair_cards([known[i] for i in worst])
plt.show()
for i in worst:
    print_wrapped("truth:", describe(scenes[i]))

# %% [markdown]
# A false phrase that stands in both answers roughly cancels out of the loss. One that stands in the chosen answer alone is pushed *up* with it. So never use *chosen* as ground truth in an evaluation.
#
# ## Faults that looking does not find
#
# So far the data was whole. Real sets are not: downloads break, merges repeat rows, exports lose texts. Plant six such faults in a copy of the photographs.

# %%
faulty = [dict(row) for row in sets["photos"]]
faulty[7]["rejected"] = faulty[7]["chosen"]  # both answers are one
faulty[19]["chosen"] = "  "  # an empty answer
faulty[23] = dict(faulty[22])  # a pair that occurs twice
faulty[31]["image"] = None  # no picture
faulty[40]["image"] = {"bytes": faulty[40]["image"]["bytes"][:5000], "path": None}  # cut off
faulty[55]["question"] = None  # no question
planted = {7, 19, 23, 31, 40, 55}

# %% [markdown]
# **Predict.** The usual way is to look at a handful of rows. Say that your eyes miss nothing. How many of the six faulty rows are among six rows drawn at random?

# %%
looked_at = random.Random(SEED).sample(range(len(faulty)), SAMPLE)
for i in looked_at:
    print(f"row {i:2}  {faulty[i]['question']}  {str(faulty[i]['chosen'])[:40]}...")
print(f"found: {len(planted & set(looked_at))} of {len(planted)} faults")

# %% [markdown]
# Was that bad luck? Count all possible samples. With $n$ rows, $m$ of them faulty, and $k$ that you look at, the chance to meet none is $\binom{n-m}{k} / \binom{n}{k}$, and to meet all is $\binom{n-m}{k-m} / \binom{n}{k}$.
#
# Even whoever looks at every row needs luck: a duplicate looks fine on its own, and a file that is cut off opens well, as the cell after the plot shows.

# %%
n, m = len(faulty), len(planted)
ks = np.arange(m, n + 1)
none = [math.comb(n - m, k) / math.comb(n, k) for k in ks]
every = [math.comb(n - m, k - m) / math.comb(n, k) for k in ks]
fig, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
ax.plot(ks, none, label="you meet no fault at all")
ax.plot(ks, every, label="you meet all six")
ax.set(xlabel=f"rows you look at, of {n}", ylabel="chance", title="What looking finds")
ax.legend()
print(f"six rows: no fault in {none[0]:.0%} of the samples, all six in one of {1 / every[0]:,.0f}")

# %%
cut = header(faulty[40])
print("the header says:", cut.format, cut.size, cut.mode)
try:
    cut.load()
except OSError as error:
    print("the pixels say: ", error)

# %% [markdown]
# Headers are blind to this fault; only decoding to the end finds it. `check_pairs` does that once, before training, and compares each row with those before it. A problem has a row, a code, and a sentence that says what to do.
#
# `require_sound` is the same check as a gate: it gives the data back, or stops. It never drops a row behind your back.

# %%
problems = check_pairs(faulty)
for problem in problems:
    print_wrapped(f"row {problem.row}  {problem.code}\n        {problem.message}")
assert {problem.row for problem in problems} == planted

# %%
assert require_sound(sets["photos"]) is sets["photos"]
try:
    require_sound(photos.rename_column("chosen", "preferred"))
except PreferenceDataError as error:
    print_wrapped(error)

# %% [markdown]
# **Can you spot it?** Four softer faults follow, all easy to make. Which of them will be found?

# %%
soft = [dict(row) for row in sets["photos"]]
soft[7]["rejected"] = soft[7]["chosen"].rstrip(".")  # differs by a full stop
soft[19]["chosen"], soft[19]["rejected"] = soft[19]["rejected"], soft[19]["chosen"]  # swapped
soft[30]["image"], soft[40]["image"] = soft[40]["image"], soft[30]["image"]  # wrong pictures
again = io.BytesIO()
header(soft[22]).save(again, "JPEG", quality=60)  # the same picture and pair, in other bytes
soft.append({**soft[22], "image": {"bytes": again.getvalue(), "path": None}})
print("problems found:", len(check_pairs(soft)))

# %% [markdown]
# None: each row is well formed. The first pair is about punctuation, the second teaches the opposite, the third is about another picture, and the last has a new digest. A checker sees form. For meaning, someone must look at the picture.
#
# ## What no column can tell you
#
# Where the truth is known, two gaps can be counted. What does *neither* answer mention? To DPO it is invisible. And by how much is the winner better? The columns hold an order, no distance: one error less or five, each pair enters the loss in the same way.

# %%
both = zip(scenes, known["chosen"], known["rejected"], strict=True)
silent = [{noun for noun in scene.nouns if noun not in c + r} for scene, c, r in both]
print(f"something is there that neither answer names: {np.mean([bool(s) for s in silent]):.1%}")
print("what they leave out:", Counter(noun for s in silent for noun in s).most_common(4))
gaps = [sum(t["rejected_false_missed"]) - sum(t["chosen_false_missed"]) for t in truths]
print_wrapped("errors less than the rejected answer: pairs", dict(sorted(Counter(gaps).items())))

# %% [markdown]
# And these cannot be counted here at all:
#
# | question | why the columns cannot answer | where the course does |
# |---|---|---|
# | Are these the questions your users ask? | somebody else chose them | lesson 07 |
# | Who preferred, and would you? | no name and no reason; every judge has a taste | lesson 07 |
# | How many pairs are swapped? | a swapped pair is well formed | lesson 07 |
# | Is an answer true of *this* picture? | an order is not a truth | lesson 06 |
# | Would *your* model say this? | answers of others may be far from its own | lessons 07, 08 |
# | Will training on it help? | only a measurement on other pictures can say | lesson 05 |
#
# Lesson 08 is planned, not yet written.

# %% tags=["key-figure"]
share, low, high = results[f"{name}: longer wins"]
print_wrapped(
    f"the longer answer wins {share:.0%} ({low:.0%} to {high:.0%}) of {name}; "
    f"of the pocket pairs, {less_wrong:.0%} have a chosen answer that is partly false"
)

# %% [markdown]
# ## Recap
#
# - A pair says "this one rather than that one", not "this one is true".
# - Blind judges give the floor: what can be learned without the picture. Score them on new pictures, with an interval.
# - Read headers for sizes and modes; decode to the end to find broken files.
# - A few rows by eye miss most faults. `check_pairs` finds those of form, and none of meaning.
# - Distance, what nobody mentions, taste and your users' questions are not in the columns.
#
# **Try it**
#
# 1. Set `SAMPLE = 30`. Predict how many of the six faults you will meet, then run it.
# 2. Let `lengths` count characters instead of words. Predict: does the verdict on length change?
#
# [Next: 02 · Format conversations](02_format_conversations.ipynb)
