"""Which objects a text names: whole words, their plurals and synonyms, and look-alikes.

    objects = spellings(["dog", "train"], {"puppy": "dog"}, ignore=["hot dog", "train track"])
    mentions("Two puppies and a hot dog.", objects)       # [Mention("dog", 4, 11)]

The benchmarks for object hallucination differ in their lists; the search is one.
"""

import functools
import re
from typing import NamedTuple

IRREGULAR = {"person": "people", "child": "children", "mouse": "mice", "goose": "geese"}
IRREGULAR |= {"knife": "knives", "leaf": "leaves", "calf": "calves", "loaf": "loaves"}
IRREGULAR |= {"shelf": "shelves", "wolf": "wolves", "thief": "thieves", "foot": "feet"}
PLURAL_ALREADY = {"scissors", "skis", "oxen", "people", "children", "sheep", "cattle", "pants"}


class Mention(NamedTuple):
    """An object that a text names at text[start:end]."""

    name: str
    start: int
    end: int


def spellings(vocabulary, synonyms=None, ignore=()):
    """{spelling: object}, plurals included; None for what must not be taken for an object.

    `synonyms`: word -> object. `ignore`: spellings, as they are, that name no object though a part
    of them does ("train track" is no train). An object's own name beats a synonym, and both beat
    a plural. Raises ValueError for an empty vocabulary or a synonym of an unknown object.
    """
    objects = {plain(name): name for name in vocabulary}
    if not objects:
        raise ValueError("the vocabulary is empty: name the objects to look for.")
    for word, name in (synonyms or {}).items():
        if name not in objects.values():
            raise ValueError(
                f"synonym {word!r} stands for {name!r}, which is not in the vocabulary."
            )
        objects.setdefault(plain(word), name)
    for word, name in list(objects.items()):
        objects.setdefault(plural(word), name)
        if not word.endswith("s"):
            objects.setdefault(word + "s", name)  # persons
    return objects | {plain(word): None for word in ignore}


def mentions(text, objects):
    """Every mention in the text's order, repeats included. `objects`: see `spellings`.

    Whole words, in any case, the longest spelling first, so "dining table" is not a "table". A
    hyphen joins: "dining-table" is one, and a "man-made" thing is no man.
    """
    found = ((objects[plain(m.group())], m) for m in _any_of(tuple(objects)).finditer(text))
    return [Mention(name, m.start(), m.end()) for name, m in found if name is not None]


def plurals(vocabulary):
    """The plural of each name: {"dining tables": "dining table", ...}."""
    return {plural(name): name for name in vocabulary}


def plural(name):
    first, last = name[: name.rfind(" ") + 1], name.split(" ")[-1]
    if last in PLURAL_ALREADY:
        return name
    if last in IRREGULAR:
        return first + IRREGULAR[last]
    if re.search(r"(^|wo|police|gentle|service|snow)man$", last):
        return name[:-2] + "en"
    if re.search(r"(s|x|z|ch|sh)$", last):
        return name + "es"
    return name[:-1] + "ies" if re.search(r"[^aeiou]y$", last) else name + "s"


def plain(name):
    """Lower case, words one space apart: "Dining-\\nTable" and "dining table" are one."""
    return " ".join(re.split(r"[\s-]+", name.lower()))


@functools.lru_cache(maxsize=32)
def _any_of(names):
    """A pattern for whole words, the longest first: the first alternative that fits wins."""
    names = sorted(names, key=len, reverse=True)
    either = "|".join(r"[\s-]+".join(map(re.escape, name.split(" "))) for name in names)
    return re.compile(rf"(?<!\w)(?<!\w-)(?:{either})(?!-?\w)", re.IGNORECASE)
