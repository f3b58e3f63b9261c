# %% [markdown]
# # 04 · Train with DPO
#
# **The question:** how do I train, see that it works while it runs, stop, and go on later?
#
# | track | time |
# |---|---|
# | pocket | about 50 seconds on 2 CPU cores, measured |
# | t4, ampere | not measured on this hardware |
#
# **You need** the loss and the settings of lesson 03. **You will have** an adapter (0.3 MB on
# pocket; about 20 MB on t4, by its shapes) that changes what the model says, a training curve that
# you can read, and a run that survives a lost connection.

# %% tags=["parameters"]
TRACK = "auto"  # "pocket", "t4", "ampere", or "auto": whatever this machine can do
MODEL = None  # another model for the track, such as "HuggingFaceTB/SmolVLM-500M-Instruct" on t4
QUICK = False  # True: pairs for four steps only, to see the lesson run
SEED = 0
OUT = "runs/04"  # checkpoints and the adapter; on Colab: "/content/drive/MyDrive/vlm-dpo"

# %% [markdown]
# On Colab, decide **now** where the checkpoints go: the machine's own disk is gone when the session
# ends. Run `from google.colab import drive; drive.mount("/content/drive")` in a cell of its own and
# set `OUT` to a folder there. (This was not run on Colab.)
#
# The usual imports. What is new here comes from `helpers.dpo.trainer`, a few lines around TRL's
# `DPOTrainer`, and from `helpers.dpo.checkpoints`, which keeps a run through a lost connection.

# %%
from pathlib import Path

import torch
from peft import PeftModel
from trl import DPOTrainer

# %%
from helpers.dpo import checkpoints
from helpers.dpo.timing import attended_pairs, step_times, text_flops, vision_flops
from helpers.dpo.trainer import LiveCurve, SetupError, StopAt, check_setup, dpo_trainer
from helpers.evaluation.metrics import scene_hallucination
from helpers.pairs.check import require_sound
from helpers.pairs.format import to_conversational
from helpers.pairs.load import load_raw
from helpers.plots.cards import answer_card, pair_cards, print_wrapped
from helpers.plots.curves import step_time_bars, training_curves
from helpers.setup.tracks import choose
from helpers.vlm import smolvlm
from helpers.vlm.answers import answer_logps, answers
from helpers.vlm.load import load_policy
from helpers.world.scenes import DESCRIBE, NOUNS, draw, sample_scenes

track = choose(TRACK, model=MODEL)
print(f"track {track.name}: {track.machine}; here: {track.dtype} on {track.device}")

# %% [markdown]
# ## The ingredients
#
# A policy with its processor, and pairs. The pairs of the pocket track were sampled from this very
# model and ranked by the exact truth. That is called *on-policy*: the model meets its own mistakes,
# not somebody else's.

# %%
model, processor = load_policy(track)
step = track.batch_size * track.accumulate  # pairs that one step sees
raw = load_raw(track, "train", 4 * step if QUICK else None)
pairs = require_sound(to_conversational(raw))
weights = model.num_parameters()
print(f"{weights:,} weights, {len(pairs):,} pairs")

# %% [markdown]
# Look at two of them before anything else. In the first pairs you read, what is usually wrong with
# the rejected answer: a thing too many, a thing too few, or a wrong colour?

# %% tags=["cover"] alt="Two cards: drawn scenes, each with the question what you see and two answers, chosen and rejected; the words in which they differ are coloured."
_ = pair_cards([raw[i] for i in range(2)])

# %% [markdown]
# `require_sound` has already stopped us if a row were broken. It cannot see a wrong *set-up*. That
# is the next section.

# %% [markdown]
# ## Before the first step
#
# `dpo_trainer` gives TRL's trainer the settings of lesson 03, a new LoRA adapter on the language
# model, and no reference, because the reference is the same model with the adapter switched off.
# What it builds is a `SharedImageDPOTrainer`: TRL's own, but for one thing that we look at below.

# %%
folder = Path(OUT, "quick", track.name) if QUICK else Path(OUT, track.name)
settings = {"seed": SEED, "logging_steps": 1 if QUICK else 4}
curve = LiveCurve(training_curves)  # drawn while it trains, further down
trainer = dpo_trainer(model, processor, pairs, track, folder, [curve], **settings)

# %% [markdown]
# A new adapter changes nothing yet. So before the first step policy and reference must agree on
# every answer. **Predict** the loss, the margin and the accuracy of a sound set-up, then run.

# %%
measured = check_setup(trainer)
for name, value in measured.items():
    print(f"{name:13} {value:,.4f}")

# %% [markdown]
# The loss is ln 2 = 0.6931 and the margin is 0. The accuracy is 0 and not one half, because TRL
# counts only margins strictly above 0. `image_effect` is how far the log-prob of an answer moves, in
# nats, when its picture is painted grey: the model does look.
#
# Those numbers cost a second and stop the most expensive mistakes. Here are three, made on purpose.
# None of them raises an error by itself.


# %%
def stopped(name, build):
    try:
        check_setup(build())
        print(f"{name}: passed")
    except SetupError as sentence:
        print_wrapped(f"{name}:\n    {sentence}\n")


# %% [markdown]
# First, a `max_length` that is too short. TRL's default is 1024 tokens, and one picture can take
# more than that on SmolVLM. We choose a limit that leaves room for the longest prompt and for two
# tokens of its answer. TRL cuts the rest and says nothing.

# %%
fresh = load_policy(track)[0]
rows = pairs.select(range(8))
batch = trainer.data_collator(list(rows))
limit = int(batch["completion_mask"].argmax(1).max()) + 2  # where the last answer begins, plus 2
cut = {"max_length": limit}
stopped("answers cut off", lambda: dpo_trainer(fresh, processor, rows, track, folder, **cut))

# %% [markdown]
# Second, a reference that is another model. It happens when weights are put into the new adapter
# after the trainer is built: with the adapter off, the model is not the one that training starts
# from. We fill the adapter with small numbers, as weights of an earlier training would.


# %%
def with_used_adapter():
    run = dpo_trainer(fresh, processor, rows, track, folder)
    for name, weight in run.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return run


fresh = load_policy(track)[0]
stopped("wrong reference", with_used_adapter)

# %% [markdown]
# Third, a model that is blind: a hook makes its connector give nothing, so every picture looks the
# same. Text alone can still bring the loss down.

# %%
blind = load_policy(track)[0]
blind.model.connector.register_forward_hook(lambda layer, given, out: torch.zeros_like(out))
stopped("blind model", lambda: dpo_trainer(blind, processor, rows, track, folder))

# %% [markdown]
# ## Where the time goes
#
# A pair is one picture and two answers. TRL's trainer puts the picture through the processor twice,
# once for each answer, and through the vision tower four times: policy and reference read both
# answers. But the tower is frozen, so it sees the same thing four times. Where the model is mostly
# tower, that is most of the work.
#
# `trainer_class=DPOTrainer` builds TRL's own. Neither of these two is trained: we only take one
# batch through them.


# %%
def build(**choice):
    model = load_policy(track)[0]
    return dpo_trainer(model, processor, pairs, track, folder / "once", **settings, **choice)


stock, shared = build(trainer_class=DPOTrainer), build()
batch_of_pairs = pairs.select(range(track.batch_size))

# %% [markdown]
# **Predict:** which part of TRL's step is the largest for this model, and which parts will shrink
# when each picture is looked at once?

# %%
trainers = {"TRL's DPOTrainer": stock, "each picture once": shared}
times = step_times(trainers, batch_of_pairs)
_ = step_time_bars(times)

# %% [markdown]
# The tower looks once instead of four times, and the picture is prepared once instead of twice. The
# head shrinks as well: on a CPU TRL scores every token of the prompt and throws it away; only the
# answer's tokens count. On pocket the language model is the larger part, so the step gains little:

# %%
whole = {name: sum(parts.values()) for name, parts in times.items()}
stock_time, shared_time = whole.values()
print(f"one step: {stock_time:.2f} s and {shared_time:.2f} s, {stock_time / shared_time:.1f} times")

# %% [markdown]
# SmolVLM is built the other way round. By arithmetic, for SmolVLM-256M: what does one look at a
# picture take, and what one reading of a row of prompt and answer?

# %%
shapes = smolvlm.shapes(smolvlm.config("256M"))  # without weights
for tiles in (1, 17):
    row = 66 * tiles + 30 + 100  # image tokens and markers, question, answer
    look = vision_flops(shapes, tiles)
    reading = text_flops(shapes, row, attended_pairs(0, row), 100)
    print(
        f"{tiles:2} tile(s): a look {look / 1e9:5.0f} GFLOP, a reading {reading / 1e9:4.0f} GFLOP"
    )

# %% [markdown]
# With 17 tiles TRL's four looks are by far the most of the step, before the backward pass sends
# gradients through the tower as well, which it does with checkpointing. At SmolVLM-256M's real size,
# on one core of a server, a step with checkpointing took 559 s, and 114 s with shared pictures, in a
# third of the memory (medians of 2 rounds; this and much more is in `benchmarks/results.md`).
#
# Faster is worth nothing if it is not the same. So: one batch, both trainers, the same weights.
# Compare the loss and the gradient of every trained weight. The difference is a share of the largest
# gradient, because rounding errors grow with the numbers that are added.


# %%
def loss_and_gradients(run):
    run.model.zero_grad()
    batch = run._prepare_inputs(run.data_collator(list(batch_of_pairs)))
    with run.compute_loss_context_manager():  # the track's precision
        loss = run.compute_loss(run.model.train(), batch)
    loss.backward()
    trained = {n: w for n, w in run.model.named_parameters() if w.requires_grad}
    return loss.item(), {name: weight.grad.cpu() for name, weight in trained.items()}


def share_apart(gradients, others):
    largest = max(g.abs().max() for g in gradients.values())
    return max(((others[n] - g).abs().max() / largest).item() for n, g in gradients.items())


rounding = 1e-4 if track.device == "cpu" else 5e-2  # half precision keeps three digits
(loss, gradients), (shared_loss, others) = map(loss_and_gradients, (stock, shared))
apart = share_apart(gradients, others)
print(f"loss {loss:.7f} and {shared_loss:.7f}; gradients apart by {apart:.1e} of the largest")
assert apart < rounding

# %% [markdown]
# The same to rounding. In float32 on a CPU not one bit differs on some machines, and on others the
# gradients are up to a few millionths of the largest apart: processor, batch size and number of
# threads decide in which order sums run. In half precision and on a GPU it may be more.
#
# How far apart would a *fault* be? Count the answer from one token too late, and compare again.

# %%
collate = shared.data_collator


def one_token_late(examples):
    batch = collate(examples)
    return {**batch, "completion_mask": batch["completion_mask"].roll(1, dims=1)}


shared.data_collator = one_token_late
fault = share_apart(gradients, loss_and_gradients(shared)[1])
print(f"apart by {fault:.0%} of the largest: {fault / rounding:,.0f} times what we allow")

# %% [markdown]
# When something on the picture's path is trained, sharing would be wrong; then the trainer says so
# and does what TRL does.
#
# Two more things can be saved on request, and are equal to rounding as well:
# `precompute_ref_log_probs=True` computes the reference once and keeps it on disk, and
# `share_prompt=True` reads the prompt of chosen and rejected once.

# %%
stock = shared = trainers = collate = None  # each holds a whole model

# %% [markdown]
# ## Train and watch
#
# The curve is drawn again at every log. While it runs, watch three things: the loss leaves ln 2,
# the margin grows, and the accuracy climbs above one half. **Predict** which way the *chosen*
# reward goes.

# %%
result = checkpoints.train(trainer)
print(f"{trainer.state.global_step} steps in {result.metrics['train_runtime']:.0f} s")

# %% [markdown]
# Read it from the lower left. The margin is what DPO optimises: how much more the policy prefers the
# chosen answer than the reference does. The chosen reward itself may rise or fall. People often
# take a falling chosen reward for a fault; it is allowed, as long as the rejected one falls faster.

# %%
logged = [row for row in trainer.state.log_history if "loss" in row]  # means over 4 steps
for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
    print(f"{name:20} {logged[0][name]:7.3f} at first, {logged[-1][name]:7.3f} at last")

# %% [markdown]
# Accuracy on the *training* pairs says that the pairs were learned, and nothing more. Lesson 05 asks
# the question that counts, on pictures that training never saw.
#
# **Can you spot it?** A published run ended with reward accuracy 0.27 while its text reported
# success. Where would 0.27 be in the picture above, and what does it mean? (Below the dotted line
# of chance: the policy had learned to prefer the rejected answers.)

# %% [markdown]
# ## Stop, and go on
#
# Colab ends sessions when it likes. A checkpoint holds the adapter, the optimiser, the schedule and
# the order of the data, so a run that goes on should repeat the missing steps. Let us check that
# rather than believe it: one short run straight through, one that is stopped at step 2.

# %%
short = {"max_steps": 4, "save_steps": 1, "save_total_limit": None}  # None: keep them all
short |= {"logging_steps": 1, "seed": SEED, "disable_tqdm": True}


def losses(run):
    return {r["step"]: r["loss"] for r in run.state.log_history if "loss" in r}


def start(name, **more):
    model = load_policy(track)[0]
    return dpo_trainer(model, processor, pairs, track, folder / name, **short, **more)


# %% [markdown]
# The straight run first. Then the same again, stopped by a callback after step 2, as a lost
# connection would, with its last checkpoints left on the disk.

# %%
straight = start("straight")
checkpoints.train(straight)

interrupted = start("interrupted", callbacks=[StopAt(2)])
checkpoints.train(interrupted)
print("on the disk:", sorted(p.name for p in (folder / "interrupted").glob("checkpoint-*")))

# %% [markdown]
# Suppose that you now change the learning rate, or the pairs, and start in the same folder. Going on
# from there would give a run that is neither one nor the other. `run.json` remembers what the
# checkpoints belong to. **Predict** what the next cell prints.

# %%
try:
    checkpoints.train(start("interrupted", learning_rate=1e-3))
except checkpoints.CheckpointError as sentence:
    print_wrapped(sentence)

# %% [markdown]
# Now a *new* trainer with the old settings, as after a restart. There is nothing special to call:
# `train` finds what the interrupted run left in its folder. You can kill the kernel in the long run
# above and run the notebook again: it goes on from its last checkpoint, one every ten steps.

# %%
resumed = start("interrupted")
checkpoints.train(resumed)
for step, loss in losses(straight).items():
    print(f"step {step:2}: straight {loss:.6f}   resumed {losses(resumed)[step]:.6f}")
apart = max(abs(losses(resumed)[step] - loss) for step, loss in losses(straight).items())
print(f"largest difference: {apart:.1e}")
assert apart < (1e-4 if track.device == "cpu" else 1e-2)

# %% [markdown]
# Equal to rounding; on a CPU with the same number of threads usually to the last digit. Each of
# these runs holds a whole model, so let go of them.

# %%
fresh = blind = straight = interrupted = resumed = None

# %% [markdown]
# `train` also looks before the first step whether the folder can be written, has room for the
# checkpoints, and, if it is on Drive, whether Drive is mounted. A full disk at step 300 is too late.

# %% [markdown]
# ## Save and load the adapter
#
# What training changed is the adapter alone, and `train` has saved it when it was finished. It takes
# no copy of the model.

# %%
adapter = folder / checkpoints.ADAPTER
size = {p.name: p.stat().st_size for p in adapter.glob("adapter_model*")}
print(size, f"= {sum(size.values()) / (4 * weights):.0%} of the model's bytes in float32")

# %% [markdown]
# Loading is base plus adapter. The test of a good save is not that it loads but that it *scores the
# same*. We compare log-probs of the chosen answers, before and after the round trip.

# %%
reloaded = PeftModel.from_pretrained(load_policy(track)[0], adapter).eval()
sample = raw.select(range(32))
columns = [sample["image"], sample["question"], sample["chosen"]]
trained = trainer.model.eval()
before, after = (answer_logps(m, processor, *columns) for m in (trained, reloaded))
print(f"largest difference: {(before - after).abs().max():.2e} nats")
assert torch.allclose(before, after, atol=1e-4)

# %% [markdown]
# With the adapter off, the same object is the reference again. That is why DPO with LoRA needs no
# second model in memory.

# %%
with reloaded.disable_adapter():
    reference = answer_logps(reloaded, processor, *columns)
print(f"mean change by training: {(after - reference).mean():+.2f} nats per chosen answer")

# %% [markdown]
# ## A first look
#
# On pictures that training never saw: what does it say now? We take traps, where the plate is there
# and the fork is not, and mark what is not in the picture. On another track we take held-out
# pictures of the data.

# %%
if track.name == "pocket":
    scenes = sample_scenes(60 if QUICK else 300, "trap", "test", seed=SEED)
    images = [draw(scene) for scene in scenes]
    questions = [DESCRIBE] * len(scenes)
else:
    SIDES, held_out = ("chosen", "rejected"), load_raw(track, "test", 16)
    images, questions = held_out["image"], held_out["question"]

# %%
sizes = {"batch_size": track.eval_batch, "max_new_tokens": track.max_new_tokens}
with trained.disable_adapter():
    base_says = answers(trained, processor, images, questions, **sizes)
tuned_says = answers(trained, processor, images, questions, **sizes)
changed = [i for i, (b, t) in enumerate(zip(base_says, tuned_says, strict=True)) if b != t]
print(f"{len(changed)} of {len(images)} answers changed")

# %% [markdown]
# The first two that changed, not the two that look best:

# %%
for i in changed[:2]:
    truth = scenes[i].nouns if track.name == "pocket" else set()
    marks = {"wrong": set(NOUNS) - truth, "right": truth} if truth else {}
    answer_card(images[i], questions[i], {"base": base_says[i], "tuned": tuned_says[i]}, **marks)

# %% [markdown]
# And counted over all of them: the share of trap captions that name something that is not there
# (Hal), and the share of what is there that they name (Cover). Both, always: a silent model has a
# perfect Hal.

# %% tags=["key-figure"]
if track.name == "pocket":
    b, t = (scene_hallucination(says, scenes) for says in (base_says, tuned_says))
    print(
        f"trap Hal {b.chair_s:.0%} -> {t.chair_s:.0%}, trap Cover {b.cover:.0%} -> {t.cover:.0%}"
        f" ({len(scenes)} scenes, one seed)"
    )
else:
    columns = held_out["image"], held_out["question"]
    with trained.disable_adapter():
        start = [answer_logps(trained, processor, *columns, held_out[c]) for c in SIDES]
    now = [answer_logps(trained, processor, *columns, held_out[c]) for c in SIDES]
    gain = (now[0] - start[0]) - (now[1] - start[1])
    print(f"the margin grew on {(gain > 0).float().mean():.0%} of {len(gain)} held-out pairs")

# %% [markdown]
# ## Recap
#
# - Before the first step: loss ln 2, margin 0, answers whole, pictures seen. `check_setup` stops
#   what is not so.
# - Watch the margin. The chosen reward may fall.
# - A checkpoint resumes to the same losses, and you have seen it.
# - The adapter is what you keep. Its round trip is tested by scores, not by loading.
#
# **Try it.** Set `track.learning_rate` aside: pass `learning_rate=1e-6`, TRL's default, to
# `dpo_trainer`. Predict the margin at the last step before you run it. Then try `3e-2`.
#
# One curve and two examples prove nothing yet. Is it better on many pictures, with an interval?
# Better than plain supervised training? Because of the picture?
#
# [Next: 05 · Compare answers](05_compare_answers.ipynb)
