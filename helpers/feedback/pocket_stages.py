"""The pipeline's stages on the pocket track: a drawer with flaws, those who answer, and judges.

    model, processor = pocket.load()
    answerers = [PocketAnswerer(model, processor, heat) for heat in (0.5, 1.0)]
    pipeline = Pipeline(Drawer(), matches_prompt, answerers, tells_truth)
    pairs = run(pocket_prompts(200), pipeline, Settings(batch_size=128), "runs/07", "truth")

A prompt describes a scene, and the drawer, who knows it, forgets things and takes wrong colours.
What it drew is known too: `about` holds both scenes, "intended" and "scene", so that every judge
can be held against the exact truth.
"""

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from peft import PeftModel
from tqdm.auto import tqdm

from helpers.feedback.pairing import fact_score
from helpers.feedback.sources import preference_scenes
from helpers.feedback.stages import (
    Drawn,
    Item,
    Prompt,
    Score,
    name_of,
    release,
    settings_of,
    text_only,
)
from helpers.vlm import pocket
from helpers.vlm.answers import answers, yes_no_answers
from helpers.vlm.load import ModelError, model_digest
from helpers.world import scenes as world
from helpers.world.drawings import COLOURS
from helpers.world.scenes import Scene

TOGETHER = 256  # pictures at once in the pocket model
PHRASE = re.compile(
    rf"\b(?:({'|'.join(world.COUNTS)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(world.NOUNS)})s?\b"
)


def pocket_prompts(count: int, seed: int | str = 0) -> list[Prompt]:
    """Prompts that describe scenes, every other one a trap, none of them a test scene.

    The same for the same arguments; different seeds share no scene.
    """
    scenes = preference_scenes(count + count % 2, seed)[:count]
    return [
        Prompt(f"Draw this: {world.describe(scene)}", world.DESCRIBE, {"intended": scene.to_json()})
        for scene in scenes
    ]


# --- the generator -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawer:
    """Draws what a prompt of `pocket_prompts` intends, with flaws; every candidate differs.

    missing: how often one kind of thing is left out; recoloured: how often one gets another colour.
    A `Drawn` knows its "scene". A flaw never makes a test scene.
    """

    missing: float = 0.4
    recoloured: float = 0.3
    name: ClassVar[str] = "drawer with flaws"

    def __post_init__(self):
        for name, value in self.settings.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}: it is a probability, from 0 to 1")

    @property
    def settings(self):
        return asdict(self)

    def __call__(self, items: list[Item]) -> list[Drawn]:
        return [self._draw(item) for item in items]

    def _draw(self, item):
        rng, intended = random.Random(item.seed), _scene(item, "intended")
        for _ in range(21):
            things = self._flawed(intended.things, rng)
            if world.part_of(things) != "test":
                break
        else:
            things = intended.things
        scene = Scene(tuple(things), rng.randrange(2**31))  # a grain of its own
        return Drawn(world.draw(scene), {"scene": scene.to_json()})

    def _flawed(self, things, rng):
        """One thing less, one in another colour, both or neither. Something coloured stays."""
        things = list(things)
        coloured = [thing for thing in things if thing.colour]
        if rng.random() < self.missing:
            spare = [t for t in things if len(coloured) > 1 or not t.colour]
            if spare:
                things.remove(rng.choice(spare))
        if rng.random() < self.recoloured:
            place = rng.choice([i for i, thing in enumerate(things) if thing.colour])
            others = [colour for colour in COLOURS if colour != things[place].colour]
            things[place] = replace(things[place], colour=rng.choice(others))
        return things


# --- answerers -----------------------------------------------------------------------------------


class PocketAnswerer:
    """A pocket model that answers at a temperature; 0 is greedy.

    One random generator serves a batch, seeded from the seeds of its items.
    """

    def __init__(self, model, processor, temperature: float = 1.0, name: str = "pocket"):
        self.model, self.processor, self.temperature = model, processor, temperature
        self.name, self.by_batch = f"{name} at {temperature:g}", temperature > 0
        self.settings = {"temperature": temperature, "weights": model_digest(model)}

    def __call__(self, items: list[Item]) -> list[str]:
        seeds = ",".join(str(item.seed) for item in items)
        return answers(
            self.model,
            self.processor,
            [item.image for item in items],
            [item.question for item in items],
            batch_size=TOGETHER,
            temperature=self.temperature,
            seed=int(hashlib.sha256(seeds.encode()).hexdigest()[:12], 16),
            bar=tqdm(disable=True),  # the run has one
        )


def adapted(folder: str | Path):
    """(model, processor): the pocket model with the adapter in a folder, such as lesson 04's.

    Raises ModelError if there is none.
    """
    if not Path(folder, "adapter_config.json").exists():
        raise ModelError(f"no adapter in {folder}: train one with lesson 04, or name its folder")
    model, processor = pocket.load()
    return PeftModel.from_pretrained(model, folder).eval(), processor


# --- judges --------------------------------------------------------------------------------------


def matches_prompt(items: list[Item]) -> list[float]:
    """The exact truth: minus the phrases that tell the drawn scene from the intended one."""
    return [_minus_errors(_scene(item, "intended"), world.describe(_scene(item))) for item in items]


def tells_truth(items: list[Item]) -> list[float]:
    """The exact truth: minus the phrases that are false of the drawn scene or missing."""
    return [_minus_errors(_scene(item), item.answer) for item in items]


def noisy(reward: Callable, spread: float = 1.0) -> Callable:
    """The reward plus normal noise of this standard deviation, from each item's seed."""

    def judge(items):
        scores = []
        for item, score in zip(items, reward(items), strict=True):
            noise = random.Random(item.seed).gauss(0, spread)
            if isinstance(score, Score):
                score = score if score.nothing else Score(score + noise, score.about)
            else:
                score += noise
            scores.append(score)
        return scores

    judge.name = f"{name_of(reward)} with noise"
    judge.settings = {"spread": spread, **settings_of(reward)}
    judge.release = partial(release, reward)
    return judge


def count_words(items: list[Item]) -> list[int]:
    return [len(item.answer.split()) for item in items]


likes_length = text_only(count_words)  # blind: all that it is handed is text


class PocketFactCount:
    """RLAIF-V's manner (arXiv 2405.17220, section 3): minus the facts that a model rejects.

    The answer is split into facts (`facts_of`), each is asked back about the picture as a yes/no
    question, and a no rejects it. A `Score` knows its "facts": [question, accepted] for each.
    What an answer leaves out costs nothing.
    """

    name = "rejected facts"

    def __init__(self, model, processor):
        self.model, self.processor = model, processor
        self.settings = {"weights": model_digest(model)}

    def __call__(self, items: list[Item]) -> list[Score]:
        asked = [(item, question) for item in items for question in facts_of(item.answer)]
        images, questions = [item.image for item, _ in asked], [question for _, question in asked]
        how = {"batch_size": TOGETHER, "bar": tqdm(disable=True)}
        said = yes_no_answers(self.model, self.processor, images, questions, **how)
        facts = {item.key: [] for item in items}
        for (item, question), answer in zip(asked, said, strict=True):
            facts[item.key].append((question, answer == "yes"))
        return [
            Score(fact_score(accepted for _, accepted in found), {"facts": found})
            for found in (facts[item.key] for item in items)
        ]


def facts_of(answer: str) -> list[str]:
    """The facts of an answer as questions of `world.probes`' kinds: existence, colour, count.

    Counts are asked of the things that may come several times. Where a thing is has no such
    question, and is not asked.
    """
    questions = []
    for count, colour, noun in PHRASE.findall(answer):
        many = count in world.COUNTS[2:]
        verb, name = ("Are", noun + "s") if many else ("Is", noun)
        questions.append(f"Is there {'an' if noun[0] in 'aeiou' else 'a'} {noun}?")
        if colour:
            questions.append(f"{verb} the {name} {colour}?")
        if noun in world.FREE and count in world.COUNTS[1:]:
            questions.append(f"{verb} there exactly {count if many else 'one'} {name}?")
    return questions


def _minus_errors(scene, caption):
    return -float(sum(world.grade(scene, caption)))


def _scene(item, which="scene"):
    return Scene.from_json(item.about[which])
