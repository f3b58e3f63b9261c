"""Which objects a text names: whole words, their plurals and synonyms, and look-alikes.

    objects = spellings(["dog", "train"], {"puppy": "dog"}, ignore=["hot dog", "train track"])
    mentions("Two puppies and a hot dog.", objects)       # [Mention("dog", 4, 11)]

    words = chair_words(Path("Hallucination/data/synonyms.txt").read_text())   # COCO's, for CHAIR
    objects_named(reference_captions, words)              # {"person", "surfboard"}

The benchmarks for object hallucination differ in their lists; the search is one.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
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


def spellings(
    vocabulary: Iterable[str], synonyms: dict[str, str] | None = None, ignore: Iterable[str] = ()
) -> dict[str, str | None]:
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


def mentions(text: str, objects: dict[str, str | None]) -> list[Mention]:
    """Every mention in the text's order, repeats included. `objects`: see `spellings`.

    Whole words, in any case, the longest spelling first, so "dining table" is not a "table". A
    hyphen joins: "dining-table" is one, and a "man-made" thing is no man.
    """
    found = ((objects[plain(m.group())], m) for m in _any_of(tuple(objects)).finditer(text))
    return [Mention(name, m.start(), m.end()) for name, m in found if name is not None]


def plurals(vocabulary: Iterable[str]) -> dict[str, str]:
    """The plural of each name: {"dining tables": "dining table", ...}."""
    return {plural(name): name for name in vocabulary}


def plural(name: str) -> str:
    """The plural of a noun by English's rules and exceptions; of several words, of the last."""
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


def plain(name: str) -> str:
    """Lower case, words one space apart: "Dining-\\nTable" and "dining table" are one."""
    return " ".join(re.split(r"[\s-]+", name.lower()))


@functools.lru_cache(maxsize=32)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern for whole words, the longest first: the first alternative that fits wins."""
    longest_first = sorted(names, key=len, reverse=True)
    either = "|".join(r"[\s-]+".join(map(re.escape, name.split(" "))) for name in longest_first)
    return re.compile(rf"(?<!\w)(?<!\w-)(?:{either})(?!-?\w)", re.IGNORECASE)


# --- CHAIR's words for COCO's objects (LisaAnne/Hallucination) ------------------------------

# Words before another that do not name a person or a train of their own: a "baby elephant" is an
# elephant and a "passenger jet" a jet. COCO has no "animal" and no "cub": those name nothing.
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
QUALIFIED = {f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS}
QUALIFIED |= {"passenger jet": "jet", "passenger train": "train", "toilet seat": "toilet"}
NOTHING = ("train track", "home plate") + tuple(
    f"{age} {animal}" for age in ("baby", "adult") for animal in ("animal", "cub")
)


@dataclass(frozen=True)
class Words:
    """Objects, what else they are called (word -> object), and phrases that name none of them."""

    vocabulary: tuple[str, ...]
    synonyms: dict[str, str]
    ignore: tuple[str, ...]


def chair_words(text: str) -> Words:
    """The objects and synonyms in the text of CHAIR's synonyms.txt, and CHAIR's own phrases.

    A line holds an object and its other names, with commas between. Spaces around a name are
    dropped. Raises ValueError for an empty text and for a name that stands for two objects.
    """
    lines = [line.split(",") for line in text.splitlines() if line.strip()]
    names = [[name.strip() for name in line if name.strip()] for line in lines]
    synonyms: dict[str, str] = {}
    for row, (thing, *others) in enumerate(names, 1):
        for name in (thing, *others):
            if synonyms.setdefault(name, thing) != thing:
                raise ValueError(f"line {row}: {name!r} also stands for {synonyms[name]!r}.")
    if not names:
        raise ValueError("the list of synonyms names no objects.")
    phrases = {phrase: synonyms[thing] for phrase, thing in QUALIFIED.items() if thing in synonyms}
    ignore = tuple(form for phrase in NOTHING for form in (phrase, plural(phrase)))
    return Words(tuple(thing for thing, *_ in names), synonyms | phrases, ignore)


def objects_named(captions: Iterable[str], words: Words) -> set[str]:
    """The objects in captions of one picture: CHAIR adds them to those its annotators outlined."""
    objects = spellings(words.vocabulary, words.synonyms, words.ignore)
    texts = map(without_toilet_seats, captions)
    return {mention.name for text in texts for mention in mentions(text, objects)}


def without_toilet_seats(caption: str) -> str:
    """CHAIR's rule: in a caption with a toilet no "seat" is a chair."""
    if not re.search(r"(?<!\w-)\btoilets?\b(?!-\w)", caption, re.IGNORECASE):
        return caption
    return re.sub(r"\bseats?\b", " ", caption, flags=re.IGNORECASE)
