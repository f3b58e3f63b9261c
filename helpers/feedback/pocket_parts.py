"""The pipeline's parts on the pocket track: a drawer with flaws, those who answer, and judges.

    model, processor = pocket.load()
    answerers = [PocketAnswerer(model, processor, heat) for heat in (0.5, 1.0)]
    parts = Parts(Drawer(), matches_prompt, answerers, tells_truth)
    pairs = run(pocket_prompts(200), parts, Settings(batch_size=128), "runs/07/truth")

A prompt describes a scene, and the drawer, who knows it, forgets things and takes wrong colours.
What it drew is known too: `about` holds both scenes, "intended" and "scene", so that every judge
can be held against the exact truth.
"""

import hashlib
import random
import re
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from peft import PeftModel
from tqdm.auto import tqdm

from helpers.feedback.items import (
    Drawn,
    Prompt,
    Score,
    name_of,
    release,
    settings_of,
    text_only,
)
from helpers.feedback.own_samples import preference_scenes
from helpers.feedback.pairing import fact_score
from helpers.vlm import pocket
from helpers.vlm.answers import answers, yes_no_answers
from helpers.vlm.load import ModelError, model_digest
from helpers.world.drawings import COLOURS
from helpers.world.scenes import (
    COUNTS,
    DESCRIBE,
    FREE,
    NOUNS,
    Scene,
    describe,
    draw,
    grade,
    part_of,
)

TOGETHER = 256  # pictures at once in the pocket model


def pocket_prompts(count, seed=0):
    """Prompts that describe scenes, every other one a trap, none of them a test scene.

    The same for the same arguments; different seeds share no scene.
    """
    scenes = preference_scenes(count + count % 2, seed)[:count]
    return [
        Prompt(f"Draw this: {describe(scene)}", DESCRIBE, {"intended": scene.to_json()})
        for scene in scenes
    ]


# --- the generator ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawer:
    """Draws what a prompt of `pocket_prompts` intends, with flaws; every candidate differs.

    missing: how often one kind of thing is left out; recoloured: how often one gets another colour.
    A `Drawn` knows its "scene". A flaw never makes a scene of the test part.
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

    def __call__(self, items):
        return [self._draw(item) for item in items]

    def _draw(self, item):
        rng, intended = random.Random(item.seed), _scene(item, "intended")
        things = self._flawed(intended.things, rng)
        for _ in range(20):
            if part_of(things) != "test":
                break
            things = self._flawed(intended.things, rng)
        else:
            things = intended.things
        scene = Scene(tuple(things), rng.randrange(2**31))  # a grain of its own
        return Drawn(draw(scene), {"scene": scene.to_json()})

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


# --- answerers -------------------------------------------------------------------------------


class PocketAnswerer:
    """A pocket model that answers at a temperature; 0 is greedy.

    One random generator serves a batch, seeded from the seeds of its items.
    """

    def __init__(self, model, processor, temperature=1.0, name="pocket"):
        self.model, self.processor, self.temperature = model, processor, temperature
        self.name = f"{name} at {temperature:g}"
        self.settings = {"temperature": temperature, "weights": model_digest(model)}

    def __call__(self, items):
        seeds = ",".join(str(item.seed) for item in items)
        return answers(
            self.model,
            self.processor,
            [item.image for item in items],
            [item.question for item in items],
            batch_size=TOGETHER,
            temperature=self.temperature,
            seed=int(hashlib.sha256(seeds.encode()).hexdigest()[:12], 16),
            bar=_no_bar(),
        )


def adapted(folder):
    """(model, processor): the pocket model with the adapter in a folder, such as lesson 04's.

    Raises ModelError if there is none.
    """
    if not Path(folder, "adapter_config.json").exists():
        raise ModelError(f"no adapter in {folder}: train one with lesson 04, or name its folder")
    model, processor = pocket.load()
    return PeftModel.from_pretrained(model, folder).eval(), processor


# --- judges of pictures ----------------------------------------------------------------------


def matches_prompt(items):
    """The exact truth: minus the phrases that tell the drawn scene from the intended one."""
    return [_errors(_scene(item, "intended"), describe(_scene(item))) for item in items]


def noisy(reward, spread=1.0):
    """The reward plus normal noise of this standard deviation, from each item's seed."""

    def judge(items):
        return [
            _with_noise(score, random.Random(item.seed).gauss(0, spread))
            for item, score in zip(items, reward(items), strict=True)
        ]

    judge.name = f"{name_of(reward)} with noise"
    judge.settings = {"spread": spread, **settings_of(reward)}
    judge.release = partial(release, reward)
    return judge


def _with_noise(score, error):
    if isinstance(score, Score):
        return score if score.nothing else Score(score + error, score.about)
    return score + error


# --- judges of answers -----------------------------------------------------------------------


def tells_truth(items):
    """The exact truth: minus the phrases that are false of the drawn scene or missing."""
    return [_errors(_scene(item), item.answer) for item in items]


def count_words(items):
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

    def __call__(self, items):
        asked = [(item, question) for item in items for question in facts_of(item.answer)]
        images, questions = [item.image for item, _ in asked], [question for _, question in asked]
        said = yes_no_answers(
            self.model, self.processor, images, questions, batch_size=TOGETHER, bar=_no_bar()
        )
        found = {item.key: [] for item in items}
        for (item, question), answer in zip(asked, said, strict=True):
            found[item.key].append((question, answer == "yes"))
        return [_fact_score(found[item.key]) for item in items]


PHRASE = re.compile(
    rf"\b(?:({'|'.join(COUNTS)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(NOUNS)})s?\b"
)


def facts_of(answer):
    """The facts of an answer as questions of `world.probes`' kinds: existence, colour, count.

    Counts are asked of the things that may come several times. Where a thing is has no such
    question, and is not asked.
    """
    return [question for said in PHRASE.findall(answer) for question in _questions(*said)]


def _questions(count, colour, noun):
    many = count in COUNTS[2:]
    verb, name = ("Are", noun + "s") if many else ("Is", noun)
    yield f"Is there {'an' if noun[0] in 'aeiou' else 'a'} {noun}?"
    if colour:
        yield f"{verb} the {name} {colour}?"
    if noun in FREE and count in COUNTS[1:]:
        yield f"{verb} there exactly {count if many else 'one'} {name}?"


def _fact_score(facts):
    return Score(fact_score(accepted for _, accepted in facts), {"facts": facts})


def _errors(scene, caption):
    return -float(sum(grade(scene, caption)))


def _scene(item, which="scene"):
    return Scene.from_json(item.about[which])


def _no_bar():
    """The run has one bar; the model's own would come between."""
    return tqdm(disable=True)
