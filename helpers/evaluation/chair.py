"""CHAIR: the objects of COCO that captions make up (arXiv 1809.02156, LisaAnne/Hallucination).

    words = read_words("Hallucination/data/synonyms.txt")       # the list is theirs: download it
    result = chair(captions, truths, words)                     # chair_s, chair_i, with counts
    printed(chair(captions, truths, as_public(words)))          # the digits their program prints

The truth of a photograph is what its annotators outlined and what its reference captions name:
`objects_named(captions, words)` reads the latter.
"""

import re
from dataclasses import dataclass, replace

from helpers.evaluation import files
from helpers.evaluation.metrics import object_hallucination
from helpers.evaluation.objects import mentions, plural, spellings

# Words before another that do not name a person or a train of their own: a "baby elephant" is an
# elephant and a "passenger jet" a jet. COCO has no "animal" and no "cub": those name nothing.
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
QUALIFIED = {f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS}
QUALIFIED |= {"passenger jet": "jet", "passenger train": "train", "toilet seat": "toilet"}
NOTHING = ("train track", "home plate") + tuple(
    f"{age} {animal}" for age in ("baby", "adult") for animal in ("animal", "cub")
)
# The public program makes every word singular by rule, and the rules turn "bus" into "bu" and
# "ties" into "ty": these spellings it never sees. It does see "buses" and "tie".
UNSEEN = ("bus", "minibus", "airbus", "canoes", "magpies", "ties", "doggies")
UNSEEN += ("collies", "thieves")


@dataclass(frozen=True)
class Words:
    """COCO's objects, what else they are called, and phrases that name none of them."""

    vocabulary: tuple[str, ...]
    synonyms: dict[str, str]
    ignore: tuple[str, ...]


def read_words(path):
    """The objects and synonyms of a file such as CHAIR's synonyms.txt, and CHAIR's own phrases.

    A line holds an object and its other names, with commas between. Spaces around a name are
    dropped. Raises ValueError for an empty file and for a name that stands for two objects.
    """
    lines = [line.split(",") for line in files.text(path).splitlines() if line.strip()]
    names = [[name.strip() for name in line if name.strip()] for line in lines]
    synonyms = {}
    for row, (thing, *others) in enumerate(names, 1):
        for name in (thing, *others):
            if synonyms.setdefault(name, thing) != thing:
                raise ValueError(
                    f"{path}, line {row}: {name!r} also stands for {synonyms[name]!r}."
                )
    if not names:
        raise ValueError(f"{path} names no objects.")
    phrases = {phrase: synonyms[thing] for phrase, thing in QUALIFIED.items() if thing in synonyms}
    ignore = tuple(form for phrase in NOTHING for form in (phrase, plural(phrase)))
    return Words(tuple(thing for thing, *_ in names), synonyms | phrases, ignore)


def chair(captions, truths, words):
    """`metrics.object_hallucination` under CHAIR's counting rules.

    `truths`: for each caption, the objects in its picture. Every mention counts, repeats too; in
    a caption with a toilet no "seat" is a chair.
    """
    captions = [_unseated(caption) for caption in captions]
    return object_hallucination(
        captions, truths, words.vocabulary, words.synonyms, ignore=words.ignore
    )


def objects_named(captions, words):
    """The set of objects in captions of one picture: CHAIR adds them to the outlined objects."""
    objects = spellings(words.vocabulary, words.synonyms, words.ignore)
    return {m.name for caption in captions for m in mentions(_unseated(caption), objects)}


def as_public(words):
    """`words` as far as the public program can see them, to repeat its figures.

    It misses what its singular rules spoil (`UNSEEN`: above all the single bus), names that its
    list spells with a capital ("iPhone", since captions are lowered) or after two spaces ("motor
    bike", "cheesecake"), and it takes "stove top oven" for two ovens, as it looks at two words at
    a time. What it splits otherwise is not repeated here: it finds nothing in "cat/dog" or in
    "teddy-bear", which are a cat, a dog and a teddy bear to us.
    """
    two_words = {name: thing for name, thing in words.synonyms.items() if name.count(" ") < 2}
    lost = [
        *UNSEEN,
        *(form for name in ("iphone", "motor bike", "cheesecake") for form in _both(name)),
    ]
    return replace(words, synonyms=two_words, ignore=(*words.ignore, *lost))


def printed(result):
    """{"CHAIRs": "33.3", "CHAIRi": "12.5"}: percent, with the one digit of the public program."""
    return {"CHAIRs": f"{100 * result.chair_s:.1f}", "CHAIRi": f"{100 * result.chair_i:.1f}"}


def _both(name):
    return name, plural(name)


def _unseated(caption):
    toilet = re.compile(r"(?<!\w-)\btoilets?\b(?!-\w)", re.IGNORECASE)
    if not isinstance(caption, str) or not toilet.search(caption):
        return caption
    return re.sub(r"\bseats?\b", " ", caption, flags=re.IGNORECASE)
