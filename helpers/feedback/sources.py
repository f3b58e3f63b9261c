"""Where preference pairs come from: what is chosen, what is rejected, and who says so.

    scenes = preference_scenes(400)
    pairs = rank_own_samples(model, processor, scenes)    # four samples a scene, and the truth
    said = own_answers(model, processor, scenes)
    pairs = ranked(scenes, said, fewest_false)            # or judged by any answer reward
    pairs = noised_pictures(model, processor, scenes)     # or without a judge

Every source gives RLAIF-V's raw columns, about scenes of the pocket world; `origin_split` is JSON
with the scene. `benchmarks/preference_sources.py` trains on each of them.

| source | chosen | rejected |
|---|---|---|
| `rank_own_samples` | the sample with the fewest errors | the one with the most |
| `ranked` | the sample that a reward likes best | the one that it likes least |
| `noised_pictures` | the answer to the picture | the answer to the same picture under noise |
| `injected_in_truth` | the true description | the same with an associate that is not there |
| `injected_in_own` | the model's answer | the same with an associate that is not there |
| `always_no` | "No", about something that is absent | "Yes" |
| `balanced_yes_no` | "Yes" or "No", whichever is true | the other |
"""

import itertools
import json
import random
import re
from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset, Image, concatenate_datasets
from PIL import Image as PILImage

from helpers.evaluation.metrics import scene_hallucination
from helpers.feedback.pairing import Filters, Scored, best_worst, sound_answers, sound_pairs
from helpers.feedback.stages import Fault, Item, SynthesisError, name_of, read_score, seed_of
from helpers.pairs.images import RAW_COLUMNS
from helpers.setup.storage import PreferenceDataError
from helpers.vlm import pocket
from helpers.vlm.answers import answers
from helpers.world import scenes as world
from helpers.world.scenes import Scene


def preference_scenes(count: int, seed: int | str = 0) -> list[Scene]:
    """Scenes to make pairs about: every other one a trap, the rest as the world has them.

    With traps alone the model would learn to leave associates out; with both it must look.
    """
    traps = world.sample_scenes(count - count // 2, "trap", "preference", seed)
    usual = world.sample_scenes(count // 2, "iid", "preference", seed)
    both = itertools.zip_longest(traps, usual)
    return [scene for two in both for scene in two if scene is not None]


# --- the model's own samples, ranked -------------------------------------------------------------


def own_answers(
    model, processor, scenes: Sequence[Scene], samples=4, temperature=1.0, seed=0, bar=None
) -> list[list[str]]:
    """`samples` texts about each scene. `bar`: a tqdm, as in `helpers.vlm.answers.answers`."""
    asked = [scene for scene in scenes for _ in range(samples)]
    how = {"temperature": temperature, "seed": seed, "bar": bar}
    texts = pocket.captions(model, processor, asked, **how)
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def rank_own_samples(
    model, processor, scenes: Sequence[Scene], samples=4, temperature=1.0, seed=0
) -> Dataset:
    """Pairs of the model's own answers by the exact truth, at most one a scene.

    The score of an answer is minus its false phrases minus the true ones it misses; as in RLAIF-V
    (arXiv 2405.17220, section 3) a pair needs scores that differ by one or more. Raises
    PreferenceDataError when no scene makes a pair.
    """
    rows = []
    said = own_answers(model, processor, scenes, samples, temperature, seed)
    for scene, texts in zip(scenes, said, strict=True):
        texts = [text for text in texts if text]  # silence is no answer
        errors = [sum(world.grade(scene, text)) for text in texts]
        if len(set(errors)) > 1:
            best, worst = errors.index(min(errors)), errors.index(max(errors))
            rows.append(_captions(scene, texts[best], texts[worst]))
    advice = (
        f"every scene's {samples} answers are equally good; ask about more scenes, or raise the "
        "temperature"
    )
    return _dataset(rows, len(scenes), advice)


def ranked(
    scenes: Sequence[Scene],
    said: Sequence[Sequence[str]],
    reward: Callable,
    rule: Callable = best_worst,
    least: float = 1,
) -> Dataset:
    """Pairs of each scene's answers, by what `reward` makes of them.

    `said`: the answers about each scene (`own_answers`); silence and repetitions are left out.
    `reward`: an answer reward, a stage as in `helpers.feedback.stages`. It alone decides what is
    learned: the truth, CHAIR (`fewest_false`), a scorer that never sees the picture (PDS-DPO, arXiv
    2412.17417), or counted facts (RLAIF-V, arXiv 2405.17220). `rule`: of
    `helpers.feedback.pairing`. Pairs whose scores differ by less than `least` go. Raises
    SynthesisError naming the answer for a score that is no finite number.
    """
    if len(said) != len(scenes):
        raise SynthesisError(
            f"answers to {len(said)} scenes, of {len(scenes)}: pass a list for each"
        )
    filters, items = Filters(least_margin=least), []
    for i, (scene, texts) in enumerate(zip(scenes, said, strict=True)):
        about, image = {"scene": scene.to_json()}, world.draw(scene)
        faults = sound_answers(texts, filters)
        sound = [text for text, fault in zip(texts, faults, strict=True) if fault is None]
        for k, text in enumerate(sound):
            seed = seed_of(scene.seed, "answer_scores", f"{k}")  # a noisy judge errs on each anew
            items.append(Item(f"{i}/{k}", "", world.DESCRIBE, seed, image, text, about))
    scores, who = reward(items), repr(name_of(reward))
    try:
        scores = list(scores)
    except TypeError:
        raise SynthesisError(f"{who} gave {scores!r:.80}, not a list of scores") from None
    if len(scores) != len(items):
        raise SynthesisError(f"{who} gave {len(scores)} scores, not {len(items)}")
    groups = [[] for _ in scenes]
    for item, score in zip(items, scores, strict=True):
        try:
            scored = Scored(item.key, item.answer, **read_score(score))
        except Fault as fault:
            raise SynthesisError(f"{who} on {item.answer!r:.80}: {fault}") from None
        groups[int(item.key.split("/")[0])].append(scored)
    pairs, dropped = rule(groups)
    kept, faults = sound_pairs(pairs, filters)
    rows = [
        _captions(scenes[int(pair.chosen.key.split("/")[0])], pair.chosen.text, pair.rejected.text)
        for pair in kept
    ]
    why = ", ".join(f"{reason} ({count})" for reason, count in (dropped + faults).items())
    return _dataset(rows, len(scenes), f"{why or 'nothing was said'}; let the answers differ more")


def fewest_false(items: list[Item]) -> list[float]:
    """CHAIR as an answer reward (CHAIR-DPO, arXiv 2508.20181): minus the objects named and not
    there. What an answer leaves out costs it nothing."""
    scenes = [Scene.from_json(item.about["scene"]) for item in items]
    found = scene_hallucination([item.answer for item in items], scenes)
    return [-float(len(caption.hallucinated)) for caption in found.per_caption]


# --- the picture under noise -----------------------------------------------------------------


def noised_pictures(
    model, processor, scenes: Sequence[Scene], strength=0.25, seed=0, bar=None
) -> Dataset:
    """SeVa (arXiv 2404.10501): the model's answer to the picture, and to the picture under noise.

    Both answers are greedy, and equal ones make no pair. Nobody judges: that seeing less makes an
    answer worse is an assumption. Raises ValueError for a strength outside (0, 1).
    """
    noisy = [noised(world.draw(scene), strength, [seed, scene.seed]) for scene in scenes]
    clean = pocket.captions(model, processor, scenes, bar=bar)
    asked = [world.DESCRIBE] * len(scenes)
    blurred = answers(model, processor, noisy, asked, batch_size=256, bar=bar)
    rows = [
        _captions(scene, chosen, rejected)
        for scene, chosen, rejected in zip(scenes, clean, blurred, strict=True)
        if chosen and rejected and chosen != rejected
    ]
    return _dataset(rows, len(scenes), "the noise changes no answer: raise the strength")


def noised(image: PILImage.Image, strength: float, seed=0) -> PILImage.Image:
    """The picture after forward diffusion: sqrt(1 - strength) x + sqrt(strength) noise, x in -1..1.

    `strength` is 1 - alpha-bar (arXiv 2006.11239, equation 4): SeVa's 500 of 1,000 steps are 0.25,
    and its 800 are 0.78. `seed`: an integer or a list of them. What leaves the range of a picture
    is clipped. Raises ValueError for a strength outside (0, 1).
    """
    if not 0 < strength < 1:
        raise ValueError(f"strength={strength}: choose one between 0 (the picture) and 1 (noise)")
    values = np.asarray(image) / 127.5 - 1
    noise = np.random.default_rng(seed).normal(size=values.shape)
    values = np.sqrt(1 - strength) * values + np.sqrt(strength) * noise
    return PILImage.fromarray(((values.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8))


# --- injected hallucinations -----------------------------------------------------------------


def injected_in_truth(scenes: Sequence[Scene], seed=0) -> Dataset:
    """The true description against itself with a false object, where HA-DPO (arXiv 2311.16839) and
    POVID (arXiv 2402.11411) have GPT-4 write one. Neither text is the model's own."""
    return _injected(scenes, [world.describe(scene) for scene in scenes], seed)


def injected_in_own(model, processor, scenes: Sequence[Scene], seed=0, bar=None) -> Dataset:
    """The model's greedy answer, right or wrong, against itself with a false object."""
    return _injected(scenes, pocket.captions(model, processor, scenes, bar=bar), seed)


def _injected(scenes, texts, seed):
    rows = []
    for scene, text in zip(scenes, texts, strict=True):
        rng, named = random.Random(f"{seed}/{scene.seed}"), re.findall(r"\w+", text)
        # What is neither there nor named: associates of a context on the tray, or else any.
        absent = [n for n in world.ASSOCIATES.values() if n not in scene.nouns and n not in named]
        expected = {world.ASSOCIATES.get(noun) for noun in scene.nouns}
        choice = [noun for noun in absent if noun in expected] or absent
        if text and choice:
            noun, column = rng.choice(choice), rng.choice(world.COLUMNS)
            rejected = with_drawing(text, f"a {noun} {column}")
            rows.append(_captions(scene, text, rejected, injected=noun))
    return _dataset(rows, len(scenes), "every associate is there or named: take more scenes")


def with_drawing(caption: str, phrase: str) -> str:
    """The caption with one more thing in pencil, where the world's captions would name it."""
    coloured, _, pencil = caption.removesuffix(".").partition(". I also see ")
    phrases = [*filter(None, re.split(r", | and ", pencil)), phrase]
    phrases.sort(
        key=lambda one: min(map(world.NOUNS.index, {*one.split()} & {*world.NOUNS}), default=99)
    )
    listed = " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
    return f"{coloured}. I also see {listed}."


# --- yes/no questions ------------------------------------------------------------------------


def always_no(scenes: Sequence[Scene], seed=0) -> Dataset:
    """A question about a tempting absent object for each scene: "No" is chosen, always."""
    return _yes_no(scenes, ("no",), seed)


def balanced_yes_no(scenes: Sequence[Scene], seed=0) -> Dataset:
    """Two questions for each scene, about an object that is there and one that is not; the true
    answer is chosen, so that half of the pairs say "Yes"."""
    return _yes_no(scenes, ("yes", "no"), seed)


def _yes_no(scenes, labels, seed):
    """POPE's adversarial questions, one of each label for a scene."""
    rows = []
    for scene in scenes:
        rng = random.Random(f"{seed}/{scene.seed}")
        asked = [p for p in world.probes(scene, "adversarial") if p.kind == "existence"]
        for label in labels:
            probe = rng.choice([p for p in asked if p.answer == label])
            chosen, rejected = ("Yes", "No") if label == "yes" else ("No", "Yes")
            rows.append(_row(scene, probe.question, chosen, rejected, {"kind": probe.kind}))
    return _dataset(rows, len(scenes), "take one scene or more")


def mixed(*datasets: Dataset, seed=0) -> Dataset:
    """The pairs of several sources, shuffled, so that every batch has some of each."""
    rows = concatenate_datasets(datasets).shuffle(seed).remove_columns("idx")
    return rows.add_column("idx", range(len(rows))).select_columns(list(RAW_COLUMNS))


# --- rows ------------------------------------------------------------------------------------


def _captions(scene, chosen, rejected, **about):
    grades = {
        "chosen_false_missed": world.grade(scene, chosen),
        "rejected_false_missed": world.grade(scene, rejected),
    }
    return _row(scene, world.DESCRIBE, chosen, rejected, {**grades, **about})


def _row(scene, question, chosen, rejected, about):
    return {
        "ds_name": "pocket",
        "image": {"bytes": world.png(scene), "path": None},
        "question": question,
        "chosen": chosen,
        "rejected": rejected,
        "origin_dataset": "pocket world",
        "origin_split": json.dumps({"scene": scene.to_json(), **about}),
        "image_path": f"{scene.seed}.png",
    }


def _dataset(rows, asked, advice):
    if not rows:
        raise PreferenceDataError(f"no pair from {asked} scenes: {advice}")
    rows = [{**row, "idx": idx} for idx, row in enumerate(rows)]
    return Dataset.from_list(rows).select_columns(list(RAW_COLUMNS)).cast_column("image", Image())
