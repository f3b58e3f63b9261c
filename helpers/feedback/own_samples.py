"""Make preference pairs: from a model's own answers, or by a whole pipeline of models.

    pairs = rank_own_samples(model, processor, preference_scenes(400))     # raw RLAIF-V columns

Four sampled answers to one question about one picture are graded by the exact truth of the pocket
world; the best is chosen, the worst is rejected, and equally good ones make no pair. That is the
short way, here on one page. The long one draws pictures for prompts and has models judge:

    pairs = run(prompts, Parts(generator, image_reward, answerers, answer_reward), Settings(), out)

| module | what is in it |
|---|---|
| `items` | what goes through the pipeline, and what a stage is |
| `plan` | the parts and settings of a run, and its identity |
| `pipeline` | `run`: draw, rank, answer, score, pair |
| `calling`, `store` | a stage called on batches, faults named; the folder that keeps the results |
| `pairing`, `filters`, `card` | rules for pairs; what is dropped; how every pair came to be |
| `pocket_parts` | stages of the pocket track |
"""

import itertools
import json

from datasets import Dataset, Image

from helpers.vlm.pocket import captions
from helpers.world.scenes import DESCRIBE, grade, png, sample_scenes


def preference_scenes(count, seed=0):
    """Scenes to make pairs about: every other one a trap, the rest as the world has them.

    With traps alone the model would learn to leave associates out; with both it must look.
    """
    traps = sample_scenes(count - count // 2, "trap", "preference", seed)
    usual = sample_scenes(count // 2, "iid", "preference", seed)
    both = itertools.zip_longest(traps, usual)
    return [scene for two in both for scene in two if scene is not None]


def rank_own_samples(model, processor, scenes, samples=4, temperature=1.0, seed=0):
    """A dataset in RLAIF-V's raw columns, at most one pair a scene.

    The score of an answer is minus its false phrases minus the true ones it misses; as in RLAIF-V
    (arXiv 2405.17220, section 3) a pair needs scores that differ by one or more. `origin_split` is
    JSON: the scene, and the false and missed phrases of both answers. Raises ValueError when no
    scene makes a pair.
    """
    asked = [scene for scene in scenes for _ in range(samples)]
    texts = captions(model, processor, asked, temperature=temperature, seed=seed)
    rows = []
    for i, scene in enumerate(scenes):
        said = [text for text in texts[i * samples : (i + 1) * samples] if text]  # not silence
        errors = [sum(grade(scene, text)) for text in said]
        if len(set(errors)) > 1:
            chosen, rejected = (said[errors.index(pick(errors))] for pick in (min, max))
            rows.append(_row(scene, chosen, rejected, len(rows)))
    if not rows:
        raise ValueError(
            f"no pair from {len(scenes)} scenes: every scene's {samples} answers are equally good; "
            "ask about more scenes, or raise the temperature"
        )
    return Dataset.from_list(rows).cast_column("image", Image())


def _row(scene, chosen, rejected, idx):
    truth = {
        "scene": scene.to_json(),
        "chosen_false_missed": grade(scene, chosen),
        "rejected_false_missed": grade(scene, rejected),
    }
    return {
        "ds_name": "pocket",
        "image": {"bytes": png(scene), "path": None},
        "question": DESCRIBE,
        "chosen": chosen,
        "rejected": rejected,
        "origin_dataset": "pocket world",
        "origin_split": json.dumps(truth),
        "idx": idx,
        "image_path": f"{scene.seed}.png",
    }
