"""Where preference pairs come from: what is chosen, what is rejected, and who says so.

    scenes = preference_scenes(400)
    said = own_answers(model, processor, scenes)          # four samples a scene
    pairs = ranked(scenes, said, fewest_false)            # judged by any answer reward
    pairs = noised_pictures(model, processor, scenes)     # or without a judge

Every source gives RLAIF-V's raw columns, about scenes of the pocket world; `origin_split` is JSON
with the scene. `benchmarks/preference_sources.py` trains on each of them.

| source | chosen | rejected |
|---|---|---|
| `ranked` | the sample that a reward likes best | the one that it likes least |
| `noised_pictures` | the answer to the picture | the answer to the same picture under noise |
| `injected_in_truth` | the true description | the same with an associate that is not there |
| `injected_in_own` | the model's answer | the same with an associate that is not there |
| `always_no` | "No", about something that is absent | "Yes" |
| `balanced_yes_no` | "Yes" or "No", whichever is true | the other |
"""

import json
import random
import re
from collections.abc import Iterable

import numpy as np
from datasets import Dataset, Image, concatenate_datasets
from PIL import Image as PILImage

from helpers.evaluation.metrics import scene_hallucination
from helpers.feedback.calling import Fault, read_score
from helpers.feedback.filters import Filters, sound_answers, sound_pairs
from helpers.feedback.items import Item, SynthesisError, name_of
from helpers.feedback.pairing import Scored, best_worst
from helpers.feedback.plan import seed_of
from helpers.pairs.images import RAW_COLUMNS, PreferenceDataError
from helpers.vlm import pocket
from helpers.vlm.answers import answers
from helpers.world.scenes import (
    ASSOCIATES,
    COLUMNS,
    DESCRIBE,
    NOUNS,
    Scene,
    describe,
    draw,
    grade,
    png,
    probes,
)

# --- the model's own samples, ranked by a reward ---------------------------------------------


def own_answers(model, processor, scenes, samples=4, temperature=1.0, seed=0, bar=None):
    """`samples` texts about each scene: a list of lists. `bar`: as in `generate.answers`."""
    asked = [scene for scene in scenes for _ in range(samples)]
    how = {"temperature": temperature, "seed": seed, "bar": bar}
    texts = pocket.captions(model, processor, asked, **how)
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def ranked(scenes, said, reward, rule=best_worst, least=1):
    """Pairs of each scene's answers, by what `reward` makes of them.

    `said`: the answers about each scene (`own_answers`); silence and repetitions are left out.
    `reward`: an answer reward, a stage as in `helpers.feedback.items`. It alone decides what is
    learned: the truth, CHAIR (`fewest_false`), a scorer that never sees the picture (PDS-DPO, arXiv
    2412.17417), or counted facts (RLAIF-V, arXiv 2405.17220). `rule`: of
    `helpers.feedback.pairing`. Pairs whose scores differ by less than `least` go. Raises
    SynthesisError naming the answer for a score that is no finite number.
    """
    filters = Filters(least_margin=least)
    pairs, dropped = rule(_judged(scenes, [_sound(texts, filters) for texts in said], reward))
    kept, faults = sound_pairs(pairs, filters)
    rows = [
        _captions(scenes[int(p.chosen.key.split("/")[0])], p.chosen.text, p.rejected.text)
        for p in kept
    ]
    why = ", ".join(f"{reason} ({count})" for reason, count in (dropped + faults).items())
    return _dataset(rows, len(scenes), f"{why or 'nothing was said'}; let the answers differ more")


def _sound(texts, filters):
    faults = sound_answers(texts, filters)
    return [text for text, fault in zip(texts, faults, strict=True) if fault is None]


def _judged(scenes, said, reward):
    """The `Scored` answers about each scene."""
    if len(said) != len(scenes):
        raise SynthesisError(
            f"answers to {len(said)} scenes, of {len(scenes)}: pass a list for each"
        )
    items = []
    for i, (scene, texts) in enumerate(zip(scenes, said, strict=True)):
        about, image = {"scene": scene.to_json()}, draw(scene)
        for k, text in enumerate(texts):
            seed = seed_of(scene.seed, "answer_scores", f"{k}")  # a noisy judge errs on each anew
            items.append(Item(f"{i}/{k}", "", DESCRIBE, seed, image, text, about))
    scores = reward(items)
    if not isinstance(scores, Iterable):
        raise SynthesisError(f"{name_of(reward)!r} gave {scores!r:.80}, not a list of scores")
    scores = list(scores)
    if len(scores) != len(items):
        raise SynthesisError(f"{name_of(reward)!r} gave {len(scores)} scores, not {len(items)}")
    groups = [[] for _ in scenes]
    for item, score in zip(items, scores, strict=True):
        try:
            record = read_score(score, item, {})
        except Fault as fault:
            raise SynthesisError(f"{name_of(reward)!r} on {item.answer!r:.80}: {fault}") from None
        about = json.loads(record["about"])
        found = Scored(item.key, item.answer, record["score"], about)
        groups[int(item.key.split("/")[0])].append(found)
    return groups


def fewest_false(items):
    """CHAIR as an answer reward (CHAIR-DPO, arXiv 2508.20181): minus the objects named and not
    there. What an answer leaves out costs it nothing."""
    scenes = [Scene.from_json(item.about["scene"]) for item in items]
    found = scene_hallucination([item.answer for item in items], scenes)
    return [-float(len(caption.hallucinated)) for caption in found.per_caption]


# --- the picture under noise -----------------------------------------------------------------


def noised_pictures(model, processor, scenes, strength=0.25, seed=0, bar=None):
    """SeVa (arXiv 2404.10501): the model's answer to the picture, and to the picture under noise.

    Both answers are greedy, and equal ones make no pair. Nobody judges: that seeing less makes an
    answer worse is an assumption. Raises ValueError for a strength outside (0, 1).
    """
    noisy = [noised(draw(scene), strength, [seed, scene.seed]) for scene in scenes]
    clean = pocket.captions(model, processor, scenes, bar=bar)
    asked = [DESCRIBE] * len(scenes)
    blurred = answers(model, processor, noisy, asked, batch_size=256, bar=bar)
    rows = [
        _captions(scene, chosen, rejected)
        for scene, chosen, rejected in zip(scenes, clean, blurred, strict=True)
        if chosen and rejected and chosen != rejected
    ]
    return _dataset(rows, len(scenes), "the noise changes no answer: raise the strength")


def noised(image, strength, seed=0):
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


def injected_in_truth(scenes, seed=0):
    """The true description against itself with a false object, where HA-DPO (arXiv 2311.16839) and
    POVID (arXiv 2402.11411) have GPT-4 write one. Neither text is the model's own."""
    return _injected(scenes, [describe(scene) for scene in scenes], seed)


def injected_in_own(model, processor, scenes, seed=0, bar=None):
    """The model's greedy answer, right or wrong, against itself with a false object."""
    return _injected(scenes, pocket.captions(model, processor, scenes, bar=bar), seed)


def _injected(scenes, texts, seed):
    rows = []
    for scene, text in zip(scenes, texts, strict=True):
        rng = random.Random(f"{seed}/{scene.seed}")
        if text and (choice := _tempting(scene, text)):
            noun, column = rng.choice(choice), rng.choice(COLUMNS)
            rejected = with_drawing(text, f"a {noun} {column}")
            rows.append(_captions(scene, text, rejected, injected=noun))
    return _dataset(rows, len(scenes), "every associate is there or named: take more scenes")


def _tempting(scene, text):
    """Associates that are neither there nor named: those of a context on the tray, else all."""
    named = re.findall(r"\w+", text)
    absent = [n for n in ASSOCIATES.values() if n not in scene.nouns and n not in named]
    expected = {ASSOCIATES.get(noun) for noun in scene.nouns}
    return [noun for noun in absent if noun in expected] or absent


def with_drawing(caption, phrase):
    """The caption with one more thing in pencil, where the world's captions would name it."""
    coloured, _, pencil = caption.removesuffix(".").partition(". I also see ")
    phrases = sorted([*filter(None, re.split(r", | and ", pencil)), phrase], key=_order)
    listed = " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
    return f"{coloured}. I also see {listed}."


def _order(phrase):
    places = [i for i, noun in enumerate(NOUNS) if noun in phrase.split()]
    return min(places, default=len(NOUNS))


# --- yes/no questions ------------------------------------------------------------------------


def always_no(scenes, seed=0):
    """A question about a tempting absent object for each scene: "No" is chosen, always."""
    return _yes_no(scenes, ("no",), seed)


def balanced_yes_no(scenes, seed=0):
    """Two questions for each scene, about an object that is there and one that is not; the true
    answer is chosen, so that half of the pairs say "Yes"."""
    return _yes_no(scenes, ("yes", "no"), seed)


def _yes_no(scenes, labels, seed):
    """POPE's adversarial questions, one of each label for a scene."""
    rows = []
    for scene in scenes:
        rng = random.Random(f"{seed}/{scene.seed}")
        asked = [p for p in probes(scene, "adversarial") if p.kind == "existence"]
        for label in labels:
            probe = rng.choice([p for p in asked if p.answer == label])
            chosen, rejected = ("Yes", "No") if label == "yes" else ("No", "Yes")
            rows.append(_row(scene, probe.question, chosen, rejected, {"kind": probe.kind}))
    return _dataset(rows, len(scenes), "take one scene or more")


def mixed(*datasets, seed=0):
    """The pairs of several sources, shuffled, so that every batch has some of each."""
    rows = concatenate_datasets(datasets).shuffle(seed).remove_columns("idx")
    return rows.add_column("idx", range(len(rows))).select_columns(list(RAW_COLUMNS))


# --- rows ------------------------------------------------------------------------------------


def _captions(scene, chosen, rejected, **about):
    grades = {
        "chosen_false_missed": grade(scene, chosen),
        "rejected_false_missed": grade(scene, rejected),
    }
    return _row(scene, DESCRIBE, chosen, rejected, {**grades, **about})


def _row(scene, question, chosen, rejected, about):
    return {
        "ds_name": "pocket",
        "image": {"bytes": png(scene), "path": None},
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
