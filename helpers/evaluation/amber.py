"""AMBER: describe 1,004 pictures, answer 14,216 questions (arXiv 2311.07397,
junyangwang0410/AMBER).

    benchmark = load("AMBER/data")                    # theirs: a copy of their repository's data
    responses = read_responses("responses.json", benchmark)
    described = generative(responses, benchmark)      # a metrics.Hallucination; chair_s is Hal
    probed = discriminative(responses, benchmark)     # {"all": YesNo, "existence": YesNo, ...}
    amber_score(described.chair_i, probed["all"].f1)

"No" is the positive class: finding a hallucination is saying no, and of existence every label is
"no". By the figures of the public program, silence and always "No" have a score of 89.85, so read
Cover and the yes-ratio beside it. `tools.score` prints those figures too.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.evaluation import metrics
from helpers.evaluation.objects import mentions, spellings

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
# The files of queries: who answers one question of a file is to answer all of it.
QUERY_FILES = (("generative",), ("existence",), ATTRIBUTES, ("relation",))
# What may follow the noun "can": it is an object only where no verb follows ("can be seen").
NO_VERB = re.compile(
    r"\W*$|[^\w\s]|\s+(?:of|and|or|in|on|at|by|near|next|with|to|from|under|behind|beside|above|"
    r"that|which|is|are|was|has|placed|filled|sit|sits|sitting|stand|stands|standing|lying)\b"
)

Similar = Callable[[str, str], bool]  # whether one word may stand for the other


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

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word that counts as an object, once: those of relation.json, in its order."""
        words = (w for word, others in self.association.items() for w in (word, *others))
        return tuple(dict.fromkeys(words))


# --- files: every row with the place it stands at, for sentences that name it ---------------


def json_rows(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """[("answers.jsonl, line 3", row)] of a JSON list or of JSON Lines, whichever the file holds.

    Raises ValueError, naming the file and the row, for what is neither, and for no rows at all.
    """
    path = Path(path)
    content = read_text(path)
    if content.lstrip().startswith("["):
        entries = enumerate(parse_json(content, path.name), 1)
        rows = [(f"{path.name}, entry {i}", row) for i, row in entries]
    else:
        lines = ((f"{path.name}, line {i}", s) for i, s in enumerate(content.splitlines(), 1))
        rows = [(place, parse_json(line, place)) for place, line in lines if line.strip()]
    for place, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{place}: {row!r} is not a JSON object in braces.")
    if not rows:
        raise ValueError(f"{path.name} holds no rows.")
    return rows


def read_text(path: str | Path) -> str:
    """The file's text. Raises ValueError with a sentence where there is none to read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}.") from None
    except (IsADirectoryError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is not a text file in UTF-8 ({problem}).") from None


def parse_json(content: str, place: str) -> Any:
    """What a JSON text says. Raises ValueError naming `place`."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as problem:
        raise ValueError(
            f"{place} is not JSON: {problem.msg} (line {problem.lineno}, column {problem.colno})."
        ) from None


def field(row: dict[str, Any], name: str, kind: type, place: str) -> Any:
    """row[name], when it is there and is a str, int or list. Raises ValueError otherwise."""
    if name not in row:
        raise ValueError(f"{place} has no {name!r}: it has {', '.join(row) or 'nothing'}.")
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        called = {str: "a text", int: "a whole number", list: "a list"}[kind]
        raise ValueError(f"{place}: {name!r} is {row[name]!r}, not {called}.")
    return row[name]


def unique_field(row: dict[str, Any], name: str, place: str, seen: dict[int, str]) -> int:
    """The whole number row[name], noted in `seen`. Raises ValueError when it was seen before."""
    number = field(row, name, int, place)
    if number in seen:
        raise ValueError(f"{place}: {name} {number} is there already, at {seen[number]}.")
    seen[number] = place
    return number


def load(folder: str | Path) -> Benchmark:
    """The benchmark from annotations.json, relation.json and safe_words.txt in `folder`.

    Where query/query_all.json lies beside them, items know their picture, for intervals over
    pictures. Raises ValueError naming the file, and the entry, for what is missing or malformed.
    """
    folder = Path(folder)
    relation = parse_json(read_text(folder / "relation.json"), "relation.json")
    association = {word: tuple(others) for word, others in relation.items()}
    images = {}
    if (folder / "query" / "query_all.json").exists():
        for place, row in json_rows(folder / "query" / "query_all.json"):
            images[field(row, "id", int, place)] = field(row, "image", str, place)
    items, seen = {}, {}
    for place, row in json_rows(folder / "annotations.json"):
        number = unique_field(row, "id", place, seen)
        items[number] = _item(row, place, association, images.get(number, ""))
    safe = read_text(folder / "safe_words.txt").split("\n")
    return Benchmark(items, association, frozenset(word.strip() for word in safe if word.strip()))


def _item(row: dict[str, Any], place: str, association: dict, image: str) -> Item:
    kind = field(row, "type", str, place)
    if kind not in KINDS:
        raise ValueError(f"{place}: unknown type {kind!r}; known are {', '.join(KINDS)}.")
    if kind != "generative":
        truth = field(row, "truth", str, place)
        if truth not in ("yes", "no"):
            raise ValueError(f'{place}: the truth is {truth!r}, not "yes" or "no".')
        return Item(KINDS[kind], truth, image=image)
    truth, prone = (tuple(field(row, name, list, place)) for name in ("truth", "hallu"))
    for word in truth + prone:
        if word not in association:
            raise ValueError(f"{place}: {word!r} is not in relation.json.")
    return Item("generative", truth, prone, image)


def read_responses(path: str | Path, benchmark: Benchmark) -> dict[int, str]:
    """{id: response}, from [{"id": 1, "response": "..."}, ...].

    All must be there of each part (generative, existence, attribute, relation) of which one is.
    The public program scores whatever it is given, an item that stands twice twice. Raises
    ValueError, naming file and entry, for an unknown, a repeated or a missing id, and for an empty
    answer to a question. A description may be empty.
    """
    responses, seen = {}, {}
    for place, row in json_rows(path):
        number = unique_field(row, "id", place, seen)
        if number not in benchmark.items:
            raise ValueError(f"{place}: AMBER has no id {number}.")
        responses[number] = field(row, "response", str, place)
        if not responses[number].strip() and benchmark.items[number].kind != "generative":
            raise ValueError(f"{place}: the answer to question {number} is empty.")
    answered = {benchmark.items[number].kind for number in responses}
    wanted = {kind for kinds in QUERY_FILES if answered.intersection(kinds) for kind in kinds}
    ids = {number for number, item in benchmark.items.items() if item.kind in wanted}
    missing = sorted(ids - set(responses))
    if missing:
        raise ValueError(f"{path} has no response with id {missing[0]} ({len(missing)} missing).")
    return responses


# --- descriptions --------------------------------------------------------------------------


def generative(
    responses: dict[int, str],
    benchmark: Benchmark,
    nouns: Callable[[str], list[str]] | None = None,
    similar: Similar | None = None,
) -> metrics.Hallucination:
    """Object hallucination of the descriptions: chair_i is CHAIR, chair_s Hal; cover and cog.

    `responses`: {id: text}; questions among them are passed over. `nouns`: text -> words,
    `nouns_by_word` unless given. `similar`: two words -> whether one may stand for the other,
    beside relation.json; the public program asks spaCy's en_core_web_lg for a similarity above
    0.8. Without it "bicycle" is wrong where the truth says "bike", unless relation.json knows.

    A mention that stands for an object of the truth is a true positive; safe words are never
    wrong; any other is hallucinated, and counts for a temptation if it stands for one. Cover and
    Cog divide by what is listed, each object once; an object of the truth is no temptation.
    """
    known, similar = frozenset(benchmark.vocabulary), similar or no_other
    nouns = nouns or nouns_by_word(benchmark.vocabulary)
    per_caption = []
    for number, response in responses.items():
        item = benchmark.items[number]
        if item.kind != "generative":
            continue
        truth, prone = frozenset(item.truth), frozenset(item.prone) - frozenset(item.truth)
        present, tempting = (_targets(w, benchmark.association) for w in (item.truth, item.prone))
        mentioned = tuple(noun for noun in nouns(response) if noun in known)
        hallucinated, found, fallen_for = [], set(), set()
        for noun in mentioned:
            safe = noun in benchmark.safe
            thing = stands_for(noun, present, no_other if safe else similar)
            if thing is not None:
                found.add(thing)
            elif not safe:
                hallucinated.append(noun)
                fallen_for.add(stands_for(noun, tempting, similar))
        per_caption.append(
            metrics.CaptionObjects(
                mentioned, tuple(hallucinated), truth, frozenset(found), prone, prone & fallen_for
            )
        )
    return metrics.summary(per_caption)


def nouns_by_word(vocabulary: Iterable[str]) -> Callable[[str], list[str]]:
    """text -> the words of `vocabulary` in it: whole words and plurals, in any case.

    The public program takes what a tagger calls a noun. One word needs care without a tagger: see
    `NO_VERB`.
    """
    objects = spellings(vocabulary)

    def nouns(text: str) -> list[str]:
        found = mentions(text, objects)
        return [
            m.name for m in found if text[m.start : m.end] != "can" or NO_VERB.match(text, m.end)
        ]

    return nouns


def _targets(words: Sequence[str], association: dict) -> list[tuple[str, str]]:
    """(spelling, object): the objects' own names first, then words that may stand for them."""
    things = list(dict.fromkeys(words))
    others = [(other, thing) for thing in things for other in association[thing]]
    return [(thing, thing) for thing in things] + others


def stands_for(noun: str, targets: Iterable[tuple[str, Any]], similar: Similar) -> Any:
    """The object of the first target that is this word, else of the first similar one, or None."""
    for same in (str.__eq__, similar):
        for word, thing in targets:
            if same(noun, word):
                return thing
    return None


def no_other(noun: str, word: str) -> bool:
    """No word stands for another."""
    return False


# --- questions -----------------------------------------------------------------------------


def groups(responses: dict[int, str], benchmark: Benchmark) -> dict[str, list[int]]:
    """{"all", "existence", "attribute", "state", "number", "action", "relation": ids answered}.

    Groups without a response are left out.
    """
    found: dict[str, list[int]] = {}
    for number in responses:
        kind = benchmark.items[number].kind
        if kind != "generative":
            wider = ("attribute",) if kind in ATTRIBUTES else ()
            for name in ("all", *wider, kind):
                found.setdefault(name, []).append(number)
    return {name: found[name] for name in GROUPS if name in found}


def discriminative(
    responses: dict[int, str], benchmark: Benchmark, parse: metrics.Parse = metrics.opinion
) -> dict[str, metrics.YesNo]:
    """{group: `metrics.YesNo`}, for the groups of `groups`. The positive class is "no".

    `parse`: an answer -> "yes", "no" or None. Answers are read by what they say first, in any
    spelling: the public program takes nothing but "Yes" and "No" to the letter, and calls "Yes."
    and "no" wrong.
    """
    found = {}
    for name, ids in groups(responses, benchmark).items():
        answers = [responses[number] for number in ids]
        labels = [benchmark.items[number].truth for number in ids]
        found[name] = metrics.yes_no(answers, labels, positive="no", parse=parse)
    return found


def amber_score(chair: float, f1: float) -> float:
    """(100 - CHAIR + F1) / 2 in points, from fractions: the paper's; its program has none.

    Silence has no CHAIR, and so no score (nan), where the public program has a CHAIR of 0.
    """
    return (100 - 100 * chair + 100 * f1) / 2
