"""AMBER: describe 1,004 pictures, answer 14,216 questions (arXiv 2311.07397,
junyangwang0410/AMBER).

    benchmark = load("AMBER/data")                    # theirs: a copy of their repository's data
    responses = read_responses("responses.json", benchmark)
    described = generative(responses, benchmark)      # a metrics.Hallucination; chair_s is Hal
    probed = discriminative(responses, benchmark)     # {"all": YesNo, "existence": YesNo, ...}
    amber_score(described.chair_i, probed["all"].f1)

"No" is the positive class: finding a hallucination is saying no, and of existence every label is
"no". `amber_public` has the figures that the public program prints; by those, silence and always
"No" have a score of 89.85, so read Cover and the yes-ratio beside it.
"""

from dataclasses import dataclass
from pathlib import Path

from helpers.evaluation import files, language
from helpers.evaluation.metrics import CaptionObjects, opinion, summary, yes_no

KINDS = {
    "generative": "generative",
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
ATTRIBUTES = ("state", "number", "action")
GROUPS = ("all", "existence", "attribute", *ATTRIBUTES, "relation")
# The files of queries: who answers one of a part is to answer all of it.
PARTS = (("generative",), ("existence",), ATTRIBUTES, ("relation",))


@dataclass(frozen=True)
class Item:
    """A picture to describe, with its objects and those it tempts to; or a question, "yes"/"no"."""

    kind: str
    truth: tuple[str, ...] | str
    prone: tuple[str, ...] = ()
    image: str = ""


@dataclass(frozen=True)
class Benchmark:
    """The items by id, the words that may stand for an object, and words that are never wrong."""

    items: dict[int, Item]
    association: dict[str, tuple[str, ...]]
    safe: frozenset[str]


# --- files ---------------------------------------------------------------------------------


def load(folder):
    """The benchmark from annotations.json, relation.json and safe_words.txt in `folder`.

    Where query/query_all.json lies beside them, items know their picture, for intervals over
    pictures. Raises ValueError naming the file, and the entry, for what is missing or malformed.
    """
    folder = Path(folder)
    relation = files.parsed(files.text(folder / "relation.json"), "relation.json")
    association = {word: tuple(others) for word, others in relation.items()}
    images = {}
    if (folder / "query" / "query_all.json").exists():
        for place, row in files.rows(folder / "query" / "query_all.json"):
            images[files.field(row, "id", int, place)] = files.field(row, "image", str, place)
    items, seen = {}, {}
    for place, row in files.rows(folder / "annotations.json"):
        number = files.field(row, "id", int, place)
        files.first_use(seen, number, place, "id")
        items[number] = _item(row, place, association, images.get(number, ""))
    safe = files.text(folder / "safe_words.txt").split("\n")
    return Benchmark(items, association, frozenset(word.strip() for word in safe if word.strip()))


def _item(row, place, association, image):
    kind = files.field(row, "type", str, place)
    if kind not in KINDS:
        raise ValueError(f"{place}: unknown type {kind!r}; known are {', '.join(KINDS)}.")
    if kind != "generative":
        truth = files.field(row, "truth", str, place)
        if truth not in ("yes", "no"):
            raise ValueError(f'{place}: the truth is {truth!r}, not "yes" or "no".')
        return Item(KINDS[kind], truth, image=image)
    truth, prone = (tuple(files.field(row, name, list, place)) for name in ("truth", "hallu"))
    for word in truth + prone:
        if word not in association:
            raise ValueError(f"{place}: {word!r} is not in relation.json.")
    return Item("generative", truth, prone, image)


def read_responses(path, benchmark, ids=None):
    """{id: response}, from [{"id": 1, "response": "..."}, ...].

    `ids`: those that must be there; unless named, all of each part (generative, existence,
    attribute, relation) of which one is there. The public program scores whatever it is given, an
    item that stands twice twice. Raises ValueError, naming file and entry, for an unknown, a
    repeated or a missing id, and for an empty answer to a question. A description may be empty.
    """
    responses, seen = {}, {}
    for place, row in files.rows(path):
        number = files.field(row, "id", int, place)
        files.first_use(seen, number, place, "id")
        if number not in benchmark.items:
            raise ValueError(f"{place}: AMBER has no id {number}.")
        responses[number] = files.field(row, "response", str, place)
        if not responses[number].strip() and benchmark.items[number].kind != "generative":
            raise ValueError(f"{place}: the answer to question {number} is empty.")
    wanted = _parts_of(responses, benchmark) if ids is None else ids
    missing = sorted(set(wanted) - set(responses))
    if missing:
        raise ValueError(f"{path} has no response with id {missing[0]} ({len(missing)} missing).")
    return responses


def _parts_of(responses, benchmark):
    kinds = {benchmark.items[number].kind for number in responses}
    wanted = {kind for part in PARTS if kinds.intersection(part) for kind in part}
    return [number for number, item in benchmark.items.items() if item.kind in wanted]


# --- descriptions --------------------------------------------------------------------------


def vocabulary(benchmark):
    """Every word that counts as an object: those of relation.json."""
    words = [w for word, others in benchmark.association.items() for w in (word, *others)]
    return tuple(dict.fromkeys(words))


def generative(responses, benchmark, nouns=None, similar=None):
    """`metrics.Hallucination` of the descriptions: chair_i is CHAIR, chair_s Hal; cover and cog.

    `responses`: {id: text}; questions among them are passed over. `nouns`: text -> words,
    `language.nouns_by_word` unless given. `similar`: two words -> whether one may stand for the
    other, beside relation.json; the public program asks spaCy's en_core_web_lg for a similarity
    above 0.8 (`language.similar`). Without it "bicycle" is wrong where the truth says "bike",
    unless relation.json knows.

    A mention that stands for an object of the truth is a hit; safe words are never wrong; any
    other is hallucinated, and hits a temptation if it stands for one. Cover and Cog divide by what
    is listed, each object once; an object of the truth is no temptation.
    """
    known, similar = vocabulary(benchmark), similar or _never
    nouns = nouns or language.nouns_by_word(known)
    per_caption = []
    for number, response in responses.items():
        item = benchmark.items[number]
        if item.kind == "generative":
            named = [noun for noun in nouns(response) if noun in known]
            per_caption.append(_judged(named, item, benchmark, similar))
    return summary(tuple(per_caption))


def _judged(named, item, benchmark, similar):
    truth, prone = frozenset(item.truth), frozenset(item.prone) - frozenset(item.truth)
    listed = [dict.fromkeys(words) for words in (item.truth, item.prone)]
    present, tempting = (_targets(words, benchmark.association) for words in listed)
    wrong, hits, falls = [], set(), set()
    for noun in named:
        hit = stands_for(noun, present, _never if noun in benchmark.safe else similar)
        if hit is not None:
            hits.add(hit)
        elif noun not in benchmark.safe:
            wrong.append(noun)
            falls.add(stands_for(noun, tempting, similar))
    return CaptionObjects(
        tuple(named), tuple(wrong), truth, frozenset(hits), prone, prone.intersection(falls)
    )


def _targets(words, association):
    """(spelling, object): an object's own name first, then the words that may stand for it."""
    others = [(other, word) for word in words for other in association[word]]
    return [(word, word) for word in words] + others


def stands_for(noun, targets, similar):
    """The object of the first target that is this word, else of the first similar one, or None."""
    for same in (str.__eq__, similar):
        for word, thing in targets:
            if same(noun, word):
                return thing
    return None


def _never(noun, word):
    return False


# --- questions -----------------------------------------------------------------------------


def groups(responses, benchmark):
    """{"all", "existence", "attribute", "state", "number", "action", "relation": ids answered}.

    Groups without a response are left out.
    """
    found = {}
    for number in responses:
        kind = benchmark.items[number].kind
        if kind != "generative":
            wider = ("attribute",) if kind in ATTRIBUTES else ()
            for name in ("all", *wider, kind):
                found.setdefault(name, []).append(number)
    return {name: found[name] for name in GROUPS if name in found}


def discriminative(responses, benchmark, parse=opinion):
    """{group: `metrics.YesNo`}, for the groups of `groups`. The positive class is "no".

    `parse`: an answer -> "yes", "no" or None. Answers are read by what they say first, in any
    spelling: the public program takes nothing but "Yes" and "No" to the letter (`exact`), and
    calls "Yes." and "no" wrong.
    """
    return {
        name: yes_no(
            [responses[number] for number in ids],
            [benchmark.items[number].truth for number in ids],
            positive="no",
            parse=parse,
        )
        for name, ids in groups(responses, benchmark).items()
    }


def exact(answer):
    """ "Yes" and "No" to the letter; None for all else."""
    return {"Yes": "yes", "No": "no"}.get(answer)


def amber_score(chair, f1):
    """(100 - CHAIR + F1) / 2 in points, from fractions: the paper's; its program has none.

    Silence has no CHAIR, and so no score (nan), where the public program has a CHAIR of 0.
    """
    return (100 - 100 * chair + 100 * f1) / 2
