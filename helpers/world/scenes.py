"""The pocket world: small drawn scenes whose truth is known exactly.

A scene is a tray of nine places with everyday things on it. Coloured things are easy to see. Four
of them, the *contexts* (plate, bed, boat, house), usually come with an *associate* (fork, lamp,
fish, tree) that is only a faint pencil drawing. A model that lives here learns to expect a fork
wherever there is a plate; a *trap* is a scene with the plate and without the fork.

    scene = sample_scene(7, split="trap")
    draw(scene), describe(scene), probes(scene, negatives="adversarial")
"""

import functools
import io
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from helpers.world.drawings import COLOURS, ICON, PAPER, icon

ASSOCIATES = {"plate": "fork", "bed": "lamp", "boat": "fish", "house": "tree"}
CONTEXTS = tuple(ASSOCIATES)
FREE = ("ball", "cup", "book", "umbrella")
NOUNS = CONTEXTS + FREE + tuple(ASSOCIATES.values())  # the order in which captions name them
COUNTS = ("no", "a", "two", "three")
COLUMNS = ("on the left", "in the middle", "on the right")
DESCRIBE = "What do you see?"

# How often a context comes with its associate in each kind of scene.
SPLITS = {"iid": 0.9, "trap": 0.0, "pair": 1.0, "fair": 0.5}
# A scene belongs to one part by a checksum of what is on it, so parts cannot share a scene.
PARTS = {"train": range(0, 6), "preference": range(6, 8), "test": range(8, 10)}

SIZE, CELL = 96, 32  # pixels: picture, place
CONTRAST = (0.05, 0.40)  # pencil drawings: the faintest and the clearest
NOISE = 0.14  # standard deviation of the grain, in units of the full scale


@dataclass(frozen=True)
class Thing:
    """One kind of object: `cells` holds a place (0 to 8, row by row) for each copy of it."""

    noun: str
    colour: str | None  # None: drawn in pencil
    cells: tuple[int, ...]
    contrast: float = 1.0


@dataclass(frozen=True)
class Scene:
    """What is on the tray, and the seed of the picture's grain and jitter."""

    things: tuple[Thing, ...]
    seed: int

    @property
    def nouns(self) -> set[str]:
        """The set of object names that are truly there."""
        return {thing.noun for thing in self.things}

    def to_json(self) -> str:
        """One line, from which `from_json` makes an equal scene."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """The scene that `to_json` wrote."""
        raw = json.loads(text)
        return cls(
            tuple(Thing(**{**t, "cells": tuple(t["cells"])}) for t in raw["things"]), raw["seed"]
        )


# --- sampling ------------------------------------------------------------------------------


def sample_scene(seed: int | str, split: str = "iid", part: str = "test") -> Scene:
    """A scene, the same for the same arguments.

    `split` is how often associates come with their context: "iid" (90%, the world as it is),
    "trap" (never), "pair" (always) or "fair" (half of the time). `part`: "train", "preference"
    or "test"; no scene is in two parts.
    Raises ValueError for an unknown split or part.
    """
    for name, value, known in (("split", split, SPLITS), ("part", part, PARTS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
    rng = random.Random(f"{part}/{split}/{seed}")
    while True:
        things = _sample_tray(rng, SPLITS[split])
        if part_of(things) == part:
            things = sorted(things, key=lambda thing: NOUNS.index(thing.noun))
            return Scene(tuple(things), rng.randrange(2**31))


def sample_scenes(
    count: int, split: str = "iid", part: str = "test", seed: int | str = 0
) -> list[Scene]:
    """`count` scenes; different seeds share none. Arguments and errors as `sample_scene`."""
    return [sample_scene(f"{seed}-{i}", split, part) for i in range(count)]


def _place(rng, coloured, counts):
    """Things in free places, each kind in one colour."""
    cells = iter(rng.sample(range(9), sum(counts)))
    return [
        Thing(noun, rng.choice(tuple(COLOURS)), tuple(sorted(next(cells) for _ in range(count))))
        for noun, count in zip(coloured, counts, strict=True)
    ]


def _sample_tray(rng, association):
    contexts = _zipf_choice(rng, CONTEXTS, rng.choice((1, 1, 2)))
    associates = [
        ASSOCIATES[c]
        for c in CONTEXTS
        if rng.random() < (association if c in contexts else 0.05)  # a few come alone
    ]
    free = rng.sample(FREE, rng.choice((1, 2)))
    counts = [1] * len(contexts) + [rng.choice((1, 1, 2, 3)) for _ in free]
    while sum(counts) + len(associates) > 9:
        counts[counts.index(max(counts))] -= 1
    coloured = _place(rng, contexts + free, counts)
    taken = {cell for thing in coloured for cell in thing.cells}
    empty = iter(rng.sample(sorted(set(range(9)) - taken), len(associates)))
    pencil = [
        Thing(noun, None, (next(empty),), round(rng.uniform(*CONTRAST), 3)) for noun in associates
    ]
    return coloured + pencil


def _zipf_choice(rng, items, count):
    """`count` different items; the first is twice as likely as the second, and so on (1/rank)."""
    pool, chosen = list(items), []
    for _ in range(count):
        weights = [1 / (items.index(item) + 1) for item in pool]
        chosen.append(pool.pop(rng.choices(range(len(pool)), weights)[0]))
    return chosen


def part_of(things: Iterable[Thing]) -> str:
    """The part of the world that a scene of these things is in, whatever its grain."""
    digit = _checksum(things) % 10
    return next(part for part, digits in PARTS.items() if digit in digits)


def _checksum(things):
    """Of what is where, whatever the order of mention and the strength of the pencil."""
    content = sorted((t.noun, t.colour or "", t.cells) for t in things)
    return zlib.crc32(repr(content).encode())


# --- drawing -------------------------------------------------------------------------------


def draw(scene: Scene) -> Image.Image:
    """The scene as a 96 x 96 RGB PIL image: exact drawings, jitter of 2 pixels, grain."""
    rng = np.random.default_rng(scene.seed)
    canvas = np.tile(PAPER, (SIZE, SIZE, 1))
    grain = rng.normal(0, NOISE, canvas.shape)
    for thing in scene.things:
        colour, alpha = icon(thing.noun, thing.colour)
        for cell in thing.cells:
            x, y = rng.integers(0, CELL - ICON + 1, 2) + CELL * np.array((cell % 3, cell // 3))
            spot = canvas[y : y + ICON, x : x + ICON]
            spot += thing.contrast * alpha * (colour - spot)
    return Image.fromarray(((canvas + grain).clip(0, 1) * 255).round().astype(np.uint8))


def png(scene: Scene) -> bytes:
    """The drawing as the bytes of a PNG file, as datasets store pictures."""
    buffer = io.BytesIO()
    draw(scene).save(buffer, "PNG")
    return buffer.getvalue()


# --- words ---------------------------------------------------------------------------------


def describe(scene: Scene) -> str:
    """The true caption: first what is coloured, then, in a second sentence, what is in pencil."""
    coloured = [_phrase(t) for t in scene.things if t.colour]
    pencil = [_phrase(t) for t in scene.things if not t.colour]
    caption = f"I see {_enumerate(coloured)}."
    return f"{caption} I also see {_enumerate(pencil)}." if pencil else caption


def _phrase(thing):
    count = len(thing.cells)
    words = [COUNTS[count], thing.colour, thing.noun + "s" * (count > 1)]
    if count == 1:
        words.append(COLUMNS[thing.cells[0] % 3])
    return " ".join(filter(None, words))


def _enumerate(phrases):
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def grade(scene: Scene, caption: str) -> tuple[int, int]:
    """(false, missed): phrases of a caption that are not true, and true ones that it leaves out.

    A phrase is one kind of object with its count, colour and column; a wrong colour is one false
    phrase and one missed. Repeating a phrase is false too.
    """
    said = Counter(
        re.split(r", | and ", re.sub(r"I (also )?see |\.$", "", caption).replace(". ", ", "))
    )
    true = Counter(_phrase(thing) for thing in scene.things)
    return (said - true).total(), (true - said).total()


@dataclass(frozen=True)
class Probe:
    """A yes/no question about a scene. `kind`: existence, attribute, count or relation."""

    question: str
    answer: str
    kind: str


NEGATIVES = ("random", "popular", "adversarial")


def probes(scene: Scene, negatives: str = "random") -> list[Probe]:
    """Yes/no questions about a scene, half of them true, the same for the same arguments.

    Existence as POPE builds it (arXiv 2305.10355, section 4): three objects are
    positives, and each is followed by an object that is absent: any ("random"), the one most
    frequent in the world ("popular"), or the one that most often comes with that positive
    ("adversarial"). Then one true and one false question on colour, count and relation, where
    the scene has something to ask. Raises ValueError for an unknown kind of negatives.
    """
    if negatives not in NEGATIVES:
        raise ValueError(f"unknown negatives {negatives!r}: choose one of {', '.join(NEGATIVES)}")
    rng = random.Random(f"{negatives}/{scene.seed}")
    return [
        *_existence_probes(scene, negatives, rng),
        *_attribute_probes(scene, rng),
        *_count_probes(scene, rng),
        *_relation_probes(scene, rng),
    ]


def _existence_probes(scene, negatives, rng):
    absent = [noun for noun in NOUNS if noun not in scene.nouns]
    rng.shuffle(absent)
    singles, together = cooccurrence()
    present = [thing.noun for thing in scene.things]
    for positive in rng.sample(present, min(3, len(present))):
        if negatives == "popular":
            absent.sort(key=singles.__getitem__)
        elif negatives == "adversarial":
            absent.sort(key=lambda noun: together[positive, noun])
        yield Probe(_existence_question(positive), "yes", "existence")
        yield Probe(_existence_question(absent.pop()), "no", "existence")


def _existence_question(noun):
    return f"Is there {_a(noun)} {noun}?"


def _a(word):
    return "an" if word[0] in "aeiou" else "a"


def _attribute_probes(scene, rng):
    thing = rng.choice([t for t in scene.things if t.colour])
    wrong = rng.choice([c for c in COLOURS if c != thing.colour])
    verb, noun = ("Are", thing.noun + "s") if len(thing.cells) > 1 else ("Is", thing.noun)
    for colour, answer in ((thing.colour, "yes"), (wrong, "no")):
        yield Probe(f"{verb} the {noun} {colour}?", answer, "attribute")


def _count_probes(scene, rng):
    countable = [t for t in scene.things if t.noun in FREE]
    if not countable:
        return
    thing = rng.choice(countable)
    wrong = rng.choice([n for n in (1, 2, 3) if n != len(thing.cells)])
    for count, answer in ((len(thing.cells), "yes"), (wrong, "no")):
        number = "one" if count == 1 else COUNTS[count]
        verb = "Is" if count == 1 else "Are"
        plural = "s" * (count > 1)
        yield Probe(f"{verb} there exactly {number} {thing.noun}{plural}?", answer, "count")


def _relation_probes(scene, rng):
    """Left of: between two single coloured things in different columns."""
    single = [t for t in scene.things if t.colour and len(t.cells) == 1]
    pairs = [(a, b) for a in single for b in single if a.cells[0] % 3 < b.cells[0] % 3]
    if pairs:
        left, right = rng.choice(pairs)
        for first, second, answer in ((left, right, "yes"), (right, left, "no")):
            question = f"Is the {first.noun} to the left of the {second.noun}?"
            yield Probe(question, answer, "relation")


@functools.cache
def cooccurrence(count: int = 4000) -> tuple[Counter, Counter]:
    """How often each noun, and each ordered pair of nouns, occurs in `count` training scenes."""
    singles, together = Counter(), Counter()
    for scene in sample_scenes(count, part="train"):
        singles.update(scene.nouns)
        together.update((a, b) for a in scene.nouns for b in scene.nouns if a != b)
    return singles, together
