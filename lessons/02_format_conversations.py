# %% [markdown]
# # 02 · Format conversations
#
# **The question:** how does a row become exactly the tokens that are scored?
#
# | track | time |
# |---|---|
# | pocket | about 20 seconds on 2 CPU cores, measured |
# | t4, ampere | not measured on this hardware |
#
# **You need** lesson 01, or a look at its pair cards. **You will have** pairs in the form TRL trains
# on: checked, split without a leak, and saved.

# %% tags=["parameters"]
TRACK = "auto"  # or "pocket", "t4", "ampere"
MODEL = None  # another model for the track, such as "HuggingFaceTB/SmolVLM-500M-Instruct" on t4
QUICK = False  # True: fewer pairs and fewer splits, for a fast look
SEED = 0  # of the splits
PAIRS = 64  # how many pairs of the track to format
TEST_SHARE = 0.2  # of the rows, for the held-out side
OUT = "runs/02"  # where the formatted pairs are saved

# %% [markdown]
# Run the setup and these imports, and see which track you are on.

# %%
import copy
import hashlib
import io
from collections import defaultdict

import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import Dataset, Image, List
from PIL import Image as PILImage
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

# %%
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.pairs.images import image_digest, rows
from helpers.pairs.load import load, load_photos, load_raw, save, split_by_image
from helpers.plots.cards import REJECTED, image_grid, pair_card, print_wrapped
from helpers.plots.curves import KINDS, token_strip
from helpers.setup.tracks import choose
from helpers.vlm.load import load_policy

track = choose(TRACK, model=MODEL)
print(track.machine)

# %% [markdown]
# ## From a raw row to a conversation
#
# A raw row has a picture, a question and two answers. TRL's `DPOTrainer` wants four other columns:
# `images`, `prompt`, `chosen` and `rejected`. Start with a photograph. Formatting needs no pixels,
# so tell the column not to decode: you get the file as it is stored, its bytes.

# %%
photos = load_photos()
stored = photos.cast_column("image", Image(decode=False))
raw = stored[3]
print(f"{raw['image']['path']}, {len(raw['image']['bytes'])} bytes")
pair_card(raw)
plt.show()

# %% [markdown]
# Now write the four columns by hand. A conversation is a list of *messages*, each with a role and a
# list of typed parts. The part `{"type": "image"}` is a *placeholder*: it says where the picture
# goes, and the picture itself waits in `images`.


# %%
def turn(role, *parts):
    parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": role, "content": parts}]


by_hand = {
    "images": [{**raw["image"], "path": None}],  # the bytes are all it takes
    "prompt": turn("user", {"type": "image"}, raw["question"]),
    "chosen": turn("assistant", raw["chosen"]),
    "rejected": turn("assistant", raw["rejected"]),
}
by_hand["prompt"]

# %%
photo_pairs = to_conversational(photos)
assert list(rows(photo_pairs))[3] == by_hand
print(photo_pairs)

# %% [markdown]
# The helper, `to_conversational`, does the same for a whole dataset, or for a stream. `rows` reads
# back what is stored, without decoding; so equal means equal to the last byte of the photograph.
#
# **The naive way** maps over the decoded pictures. It looks harmless: picture in, picture out.
# *Predict:* how many of the photographs come out with the bytes they went in with?


# %%
def naive_format(row):
    return {"images": [row["image"]], "prompt": row["question"]}


naive = photos.map(naive_format, remove_columns=photos.column_names)
naive = naive.cast_column("images", List(Image(decode=False)))
before = [row["image"]["bytes"] for row in stored]
for name, formatted in (("naive", naive), ("helper", photo_pairs)):
    after = [row["images"][0]["bytes"] for row in rows(formatted)]
    same = sum(a == b for a, b in zip(before, after, strict=True))
    print(f"{name}: {same} of {len(after)} unchanged, {sum(map(len, after)):,} bytes in all")

# %% [markdown]
# The naive way decoded every JPEG and compressed it once more, at PIL's default quality. How far
# are the pixels off, on a scale from 0 to 255? The right panel shows where the worst photograph
# moved, ten times amplified.


# %%
def pixels(data):
    return np.asarray(PILImage.open(io.BytesIO(data)).convert("RGB"), dtype=float)


after = [row["images"][0]["bytes"] for row in rows(naive)]
moved = [np.abs(pixels(a) - pixels(b)).mean() for a, b in zip(before, after, strict=True)]
print(f"mean pixel difference {np.mean(moved):.1f}, worst photograph {max(moved):.1f}, of 255")
worst = int(np.argmax(moved))
was, now = pixels(before[worst]), pixels(after[worst])
panels = [was, now, (10 * np.abs(was - now)).clip(0, 255)]
panels = [PILImage.fromarray(panel.astype("uint8")) for panel in panels]
image_grid(panels, ["stored", "after the naive map", "difference, times 10"], columns=3)
plt.show()
# %% [markdown]
# You hardly see the loss in the middle panel. It is there all the same, most of it where the
# picture is full of detail. The *fingerprint* of each file has changed as well, so nobody can find
# the photograph again by its bytes, not even to see that it leaked into a test set.
#
# ## What Arrow does to a message
#
# A `Dataset` is an Arrow table, and in a table all parts of a content share one set of keys. A
# placeholder has no `text`. *Predict:* what does it have after `Dataset.from_list`?

# %%
table = Dataset.from_list([{"prompt": by_hand["prompt"]}])
table[0]["prompt"][0]["content"]

# %% [markdown]
# Arrow filled the gap with `None`. Whether this matters is up to the *chat template*, the small
# program that turns messages into text and comes with the model. Your track's template asks for the
# `type` of a part. Write a careless one that asks whether there is a text, and give both the prompt
# by hand, then the one from the table.

# %%
model, processor = load_policy(track)
CARELESS = (
    "{% for part in messages[0]['content'] %}"
    "{% if 'text' in part %}{{ part['text'] }}{% else %}<image>{% endif %} {% endfor %}"
)
for template in (processor.chat_template, CARELESS):
    for prompt in (by_hand["prompt"], table[0]["prompt"]):
        print(repr(processor.apply_chat_template(prompt, chat_template=template)))

# %% [markdown]
# In the last line the picture became the word "None", and nothing complained. It happens to real
# models, too. Some scripts put the picture inside its part; then Arrow gives the *question* an empty
# `image`. Here is what Qwen2.5-VL's own template, of which TRL ships a copy, makes of that.
# The last line shows the types that `to_conversational` declares.

# %%
from trl.chat_template_utils import qwen2_5_vl_chat_template

inside = turn("user", {"type": "image", "image": "cat.jpg"}, raw["question"])
filled = Dataset.from_list([{"prompt": inside}])[0]["prompt"]
for prompt in (inside, filled):
    words = processor.apply_chat_template(prompt, chat_template=qwen2_5_vl_chat_template)
    print(words.split("<|im_start|>")[-1])
print(photo_pairs.features["prompt"])

# %% [markdown]
# Two pictures, and the question is gone. That template takes any part with an `image` key for a
# picture, even if it is empty. The cure is in the last line: `datasets` can store each part as
# `Json`, with the keys it has and no others.
#
# ## From messages to tokens
#
# From here on you work with the pairs of your track. On the pocket track those are drawn scenes,
# and the two answers describe one.

# %%
raw_pairs = load_raw(track, "train", 8 if QUICK else PAIRS)
pairs = to_conversational(raw_pairs)
pair_card(raw_pairs[0])
plt.show()
# %% [markdown]
# A *processor* holds the chat template, the tokenizer and the image processor of a model. First the
# text. The prompt ends with the words that hand over to the assistant. The *completion* is what the
# whole conversation has beyond the prompt. TRL's own function must give the same strings.

# %%
from trl.data_utils import apply_chat_template

pair = pairs[0]
prompt = processor.apply_chat_template(pair["prompt"], add_generation_prompt=True)
whole = processor.apply_chat_template(pair["prompt"] + pair["chosen"])
chosen = whole[len(prompt) :]
print_wrapped(f"{prompt!r}\n{chosen!r}")
turns = {column: pair[column] for column in ("prompt", "chosen", "rejected")}
by_trl = apply_chat_template(turns, processor)
assert (by_trl["prompt"], by_trl["chosen"]) == (prompt, chosen)

# %% [markdown]
# Notice how the completion ends: the template closes the answer with `<end_of_utterance>`. The model
# is scored on stopping, too.
#
# The prompt holds one `<image>`. *Predict:* how many image tokens are there after the tokenizer
# alone, and how many after the whole processor?

# %%
alone = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
full = processor(images=[pair["images"]], text=[prompt], add_special_tokens=False)["input_ids"][0]
for name, ids in (("tokenizer", alone), ("processor", full)):
    print(f"{name}: {ids.count(processor.image_token_id)} image tokens, {len(ids)} in all")

# %% [markdown]
# The processor knows how many vectors the vision tower delivers for this picture, and makes room
# for each. The tokenizer knows nothing of pictures, and says nothing. Pass TRL's *collator*, which
# makes batches, a tokenizer; then a prompt with no placeholder, and one with two.


# %%
def attempt(call, *arguments, **options):
    """What a call returns, or its error in one line."""
    try:
        return call(*arguments, **options)
    except Exception as error:
        print_wrapped(f"{type(error).__name__}: {error}")


attempt(DataCollatorForVisionPreference(processor.tokenizer), [pairs[0]])

# %%
collate = DataCollatorForVisionPreference(processor)
for count in (0, 2):
    placeholders = [{"type": "image"}] * count
    attempt(collate, [{**pairs[0], "prompt": turn("user", *placeholders, "What is it?")}])
attempt(collate, [{**pairs[0], "prompt": filled}])

# %% [markdown]
# The tokenizer gets an unhelpful sentence. `DPOTrainer` is no better: according to its source, it
# then says that your *model* does not seem to be a vision language model.
#
# The placeholders are loud and clear. The last line is the empty `image` of the section above: loud
# as well, but misleading. TRL counts no placeholder, as both parts claim to hold their picture.
#
# ## One collated batch
#
# First by hand: the prompt's tokens, then the completion's, and a mask that is 1 where a token is
# scored. Then TRL's collator on four pairs. Without the padding, its first row must be ours.

# %%
completion = processor(text=[chosen], add_special_tokens=False)["input_ids"][0]
ids = full + completion
mask = [0] * len(full) + [1] * len(completion)
batch = collate([pairs[i] for i in range(4)])
real = batch["attention_mask"][0].bool()
assert batch["input_ids"][0][real].tolist() == ids
assert batch["completion_mask"][0][real].tolist() == mask
for name, tensor in batch.items():
    print(f"{name:21}{tuple(tensor.shape)}")

# %% [markdown]
# Four pairs became eight rows: all chosen answers, then all rejected ones, so each picture is there
# twice. The two masks and the image token tell the parts of a row apart; padding fills the shorter
# rows.

# %%
PARTS = np.array(["padding", "prompt", "image", "completion"])


def parts_of(batch):
    """For each position a number from 0 to 3, an index into PARTS."""
    part = batch["attention_mask"] + 2 * batch["completion_mask"]  # 0 padding, 1 prompt, 3 scored
    return part.masked_fill(batch["input_ids"] == processor.image_token_id, 2).numpy()


# %% tags=["cover"] alt="A batch of four pairs as a grid of token positions: in each row the prompt with the picture's tokens in it, then the completion; padding fills the shorter rows."
from matplotlib.colors import to_rgb

figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
colours = [KINDS[part] for part in PARTS]
ax.imshow(np.array([to_rgb(c) for c in colours])[parts_of(batch)], aspect="auto")
ax.set_yticks(range(8), [f"{side} {i}" for side in ("chosen", "rejected") for i in range(4)])
ax.set(xlabel="position (tokens)", ylabel="row of the batch", title="One batch of four pairs")
for name, colour in zip(PARTS, colours, strict=True):
    ax.plot([], [], "s", color=colour, markeredgecolor="grey", label=name)
ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
plt.show()

# %% [markdown]
# The prompt opens, the picture's tokens follow, then the question. These are given, so they are
# never scored. Only the yellow part is. Now the first chosen row, word by word, and its rejected
# partner, four rows further down.


# %%
def show(batch, row):
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][row].tolist())
    return token_strip(tokens, PARTS[parts_of(batch)[row]].tolist())


for row in (0, 4):
    show(batch, row)

# %% [markdown]
# Up to the first yellow box the strips are the same. DPO compares the sums of the log-probabilities
# of the yellow boxes, and nothing else.
#
# And the picture? The processor resizes it and moves its numbers to between -1 and 1. Undo that to
# see what the model receives, and the square that each image token stands for.

# %%
mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
tile = batch["pixel_values"][0, -1]  # the last tile of a picture shows all of it
seen = tile.permute(1, 2, 0).numpy() * std + mean
seen = PILImage.fromarray((255 * seen).round().clip(0, 255).astype("uint8"))
full_size = pair["images"][0]
names = [f"{name}, {p.width} x {p.height}" for name, p in (("stored", full_size), ("seen", seen))]
axes = image_grid([full_size, seen, seen], [*names, "a square, an image token"], columns=3)
side = round(processor.image_seq_len**0.5)
for line in np.linspace(-0.5, seen.width - 0.5, side + 1):
    axes[2].axhline(line, color="#0072B2", linewidth=2.5)
    axes[2].axvline(line, color="#0072B2", linewidth=2.5)
plt.show()

# %% [markdown]
# On the pocket track the picture arrives with half its edge and becomes nine image tokens, one for
# each place of the tray. The grain averages out, but a faint pencil drawing stays faint: weak
# evidence, which leaves room to guess.
#
# SmolVLM-256M spends far more. Its configuration says: tiles of 512 pixels, 64 tokens a tile,
# longest edge 2048. Let its image processor cut a picture, and count the tiles.

# %%
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

print(f"{'photograph':12}{'longest edge':>13}{'tiles':>7}{'image tokens':>14}")
for size in ((1000, 1000), (1000, 750)):
    for edge in (2048, 512):
        edges = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": 512}}
        tiled = Idefics3ImageProcessorPil(**edges)([[PILImage.new("RGB", size)]])
        tiles = len(tiled["pixel_values"][0])
        print(f"{size[0]} x {size[1]:<5}{edge:13}{tiles:7}{64 * tiles:14}")
pocket_tokens = full.count(processor.image_token_id)
print(f"this track: {pocket_tokens} image tokens for {full_size.width} x {full_size.height}")

# %% [markdown]
# A small photograph is blown up to 2048 first, then cut into tiles, and a view of the whole is
# added. So the t4 track sets the edge to 512.
#
# > **Can you spot it?** A notebook trains SmolVLM-256M with the default edge and with `DPOConfig`'s
# > default `max_length=1024`. What happens to each of the two photographs?
#
# Try it small. Cut inside the picture, then right behind the prompt, and run the model.

# %%
for cut in (10, len(full)):
    short = DataCollatorForVisionPreference(processor, max_length=cut)([pairs[0]])
    scored = short.pop("completion_mask")
    print(f"max_length={cut}: {scored.sum(1).tolist()} tokens scored, chosen and rejected")
    attempt(model, **short.to(model.device))

# %% [markdown]
# The second cut raises no error, and leaves nothing to score. Then it does not matter what the
# model thinks. Take any log-probabilities of the tokens, for policy and reference and both answers,
# and sum the scored ones (lesson 03 explains the loss):

# %%
from helpers.dpo.losses import dpo_loss

per_token = torch.randn(4, 1, cut, requires_grad=True)
losses, _, _ = dpo_loss(*(per_token * scored[0]).sum(-1), beta=0.1)
losses.sum().backward()
print(f"loss {losses.item():.4f}, largest gradient {per_token.grad.abs().max().item():.1f}")

# %% [markdown]
# A calm 0.6931, for ever. So, for the box: the square photograph needs more image tokens than fit,
# and the model refuses to run. The other one fits, and leaves 192 positions for markers, question
# and answer. A long answer loses its end in silence. This course sets `max_length=None`.
#
# One more silent loss. Plain strings instead of messages are accepted:

# %%
plain = {column: raw_pairs[0][column] for column in ("chosen", "rejected")}
plain["prompt"] = processor.image_token + raw_pairs[0]["question"]
plain["images"] = pairs[0]["images"]
for name, row in (("messages", pairs[0]), ("strings", plain)):
    one = collate([row])
    last = one["input_ids"][0][one["completion_mask"][0].bool()].tolist()
    print(f"{name:9} {len(last)} scored, the end: {processor.tokenizer.decode(last[-3:])!r}")

# %% [markdown]
# With strings the template is skipped: no roles, and no end of the answer. A model trained this way
# is never scored on stopping.
#
# ## Check, split, save
#
# Bad rows rarely stop a training run. Break five rows on purpose: equal answers, a blank one, a
# second placeholder, a file cut off, a blank question. *Predict:* which will TRL's collator refuse?

# %%
sick = [copy.deepcopy(row) for row in rows(pairs.select(range(5)))]
sick[0]["rejected"] = sick[0]["chosen"]
sick[1]["chosen"] = turn("assistant", " ")
sick[2]["prompt"][0]["content"].insert(0, {"type": "image"})
sick[3]["images"][0]["bytes"] = sick[3]["images"][0]["bytes"][:2000]
sick[4]["prompt"][0]["content"] = turn("user", {"type": "image"}, "")[0]["content"]
sick = Dataset.from_list(sick, features=pairs.features)
for i in range(5):
    print(i, end=" ")
    if attempt(lambda row: collate([sick[row]]), i):
        print("accepted")

# %% [markdown]
# Three pass. A blank answer, or a pair without a difference, costs time and teaches nothing good.
# And the file that is cut off stops the run only when its turn comes, perhaps after hours.
# `check_pairs` looks at every row first. Given the processor and a `max_length`, it also counts
# tokens as TRL does: the last two lines are about your own pairs.

# %%
for problem in check_pairs(sick):
    print_wrapped(f"row {problem.row} [{problem.code}] {problem.message}")
print(f"{len(check_pairs(pairs, processor))} problems in {len(pairs)} pairs")
problems = check_pairs(pairs.select([0]), processor, max_length=cut)
print_wrapped(problems[0].message)

# %% [markdown]
# **Split.** A test picture that was also trained on shows what the model remembers, not what it
# sees. Many photographs here have two pairs. *Predict:* a random split holds out a fifth of the
# rows. How many photographs end up on both sides? One split may be luck, so draw many.

# %%
digests = [image_digest(row["image"]) for row in stored]
numbers = Dataset.from_dict({"row": range(len(photos))})


def leaked(train_rows, test_rows):
    return len({digests[i] for i in train_rows} & {digests[i] for i in test_rows})


def random_leak(seed):
    split = numbers.train_test_split(TEST_SHARE, seed=seed)
    return leaked(split["train"]["row"], split["test"]["row"])


# %%
leaks = [random_leak(SEED + i) for i in range(10 if QUICK else 100)]
figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
values, counts = np.unique(leaks, return_counts=True)
ax.bar(values, counts / len(leaks), color=REJECTED)
ax.axvline(np.mean(leaks), color="black", ls="--", label=f"mean {np.mean(leaks):.1f}")
ax.set(xlabel="photographs on both sides", ylabel="share of the splits", xlim=(-0.5, None))
ax.set_title(f"What a random split of the rows leaks, {len(leaks)} seeds")
ax.legend()
plt.show()
# %% [markdown]
# The cure: whole photographs change sides, not rows. Group the rows by picture, and order the
# groups by a hash of seed and picture. So neither the order of the rows nor a new photograph
# shuffles everything anew. Then fill the test side.

# %%
held_out = round(TEST_SHARE * len(photos))
groups = defaultdict(list)
for i, digest in enumerate(digests):
    groups[digest].append(i)
test_rows = []
for name in sorted(groups, key=lambda d: hashlib.sha256(f"{SEED}/{d}".encode()).digest()):
    if len(test_rows) < held_out:
        test_rows += groups[name]
train_rows = sorted(set(range(len(photos))) - set(test_rows))
print(f"{leaked(train_rows, test_rows)} leaked, {len(test_rows)} rows held out")

# %%
train, test = split_by_image(photo_pairs, TEST_SHARE, seed=SEED)
assert list(rows(test)) == list(rows(photo_pairs.select(sorted(test_rows))))
assert not check_pairs(train, other=test)
print(f"{len(train)} rows to train on, {len(test)} to test on, no photograph on both sides")

# %% [markdown]
# The helper splits the same way, and handles rows with several images as well. `check_pairs` also
# compares two sides.
#
# **Save.** Saving must change nothing either. Write the training side, read it back, and compare
# every row, bytes included.

# %%
save(train, f"{OUT}/pairs")
again = load(f"{OUT}/pairs")
assert list(rows(again)) == list(rows(train))
print(f"{len(again)} pairs, each the same to the byte")

# %% [markdown]
# To do all of this for RLAIF-V, and to push the result to the Hub under your name with a card that
# says where it comes from, there is a command: `python -m tools.format_rlaifv --help`.

# %% tags=["key-figure"]
print(f"{pocket_tokens} image tokens a picture; a random split leaks {np.mean(leaks):.1f} photos")

# %% [markdown]
# ## Recap
#
# - A pair is `images`, `prompt`, `chosen`, `rejected`, with one placeholder for each image.
# - Do not decode pictures on the way: mapping over them saves every JPEG anew.
# - Arrow fills missing keys with `None`. Parts stored as JSON keep the keys they have.
# - Scored are the completion's tokens, its end token included. See that the mask is not empty.
# - Check before training, and split by image, not by row.
#
# **Try it.** Set `TEST_SHARE = 0.5` and predict which way the bars move. Then collate one list of
# rows twice, `few = [pairs[0]]; collate(few); collate(few)`, and explain the error.
#
# [Next: 03 · Configure DPO](03_configure_dpo.ipynb)
