"""POPE: is there a dog in the image? Half of the questions are about what is not there
(arXiv 2305.10355, RUCAIBox/POPE).

    questions = build({"a.jpg": ["person", "dog", "cup"], ...}, images=500, seed=0)
    questions["adversarial"]                          # rows as in POPE's files
    labels = read_labels("coco_pope_random.json")     # theirs: output/coco in their repository
    score(read_answers("answers.jsonl", labels), labels)
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass

from helpers.evaluation import files
from helpers.evaluation.metrics import yes_no

KINDS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Label:
    """One question and its truth, "yes" or "no"."""

    question_id: int
    image: str
    text: str
    label: str


# --- scoring -------------------------------------------------------------------------------


def read_labels(path):
    """POPE's questions: JSON Lines of question_id, image, text and label.

    Raises ValueError, naming file and line, for a missing field, an id that stands twice, and a
    label other than "yes" and "no" (the public program takes any other for a yes).
    """
    labels, seen = [], {}
    for place, row in files.rows(path):
        fields = {"question_id": int, "image": str, "text": str, "label": str}
        label = Label(*(files.field(row, name, kind, place) for name, kind in fields.items()))
        files.first_use(seen, label.question_id, place, "question_id")
        if label.label not in ("yes", "no"):
            raise ValueError(f'{place}: the label is {label.label!r}, not "yes" or "no".')
        labels.append(label)
    return labels


def read_answers(path, labels):
    """A model's answers as texts, in the order of `labels`.

    JSON Lines of question and answer, one for each label in the same order; or with a question_id,
    in any order. The public program goes by order alone, and stops silently where the shorter
    file ends. Raises ValueError, naming file and line, for a missing or repeated id, for another
    number of answers, for answers in another order, and for an empty answer (to the public
    program a yes).
    """
    found = files.rows(path)
    by_id = "question_id" in found[0][1]
    found = _by_id(found, labels) if by_id else found
    if len(found) != len(labels):
        raise ValueError(f"{path} has {len(found)} answers to {len(labels)} questions.")
    known = {label.text.casefold() for label in labels}
    answers = []
    for (place, row), label in zip(found, labels, strict=True):
        asked = str(row.get("question", "")).casefold()
        if not by_id and asked in known and asked != label.text.casefold():
            raise ValueError(
                f"{place} answers {row['question']!r}, but the question of that row is "
                f"{label.text!r}: put them in the order of the questions, or add question_id."
            )
        answer = files.field(row, "answer", str, place)
        if not answer.strip():
            raise ValueError(f"{place}: the answer is empty.")
        answers.append(answer)
    return answers


def _by_id(found, labels):
    rows, seen = {}, {}
    known = {label.question_id for label in labels}
    for place, row in found:
        number = files.field(row, "question_id", int, place)
        files.first_use(seen, number, place, "question_id")
        if number not in known:
            raise ValueError(f"{place}: there is no question with question_id {number}.")
        rows[number] = place, row
    missing = [label.question_id for label in labels if label.question_id not in rows]
    if missing:
        raise ValueError(
            f"there is no answer to question_id {missing[0]} ({len(missing)} missing)."
        )
    return [rows[label.question_id] for label in labels]


def score(answers, labels):
    """`metrics.yes_no` with "yes" as the positive class, as POPE's evaluate.py prints it.

    One thing differs: an answerer that never says yes has no precision and an f1 of 0; there the
    public program stops with a division by zero.
    """
    return yes_no(answers, [label.label for label in labels])


def printed(result):
    """The figures as the public program prints them: fractions with all their digits."""
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    heads = ("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio")
    return {head: str(getattr(result, name)) for head, name in zip(heads, names, strict=True)}


# --- building ------------------------------------------------------------------------------


def ask(noun):
    """The question in correct English. For the public program's, see `ask_as_public`."""
    return f"Is there {'an' if noun[0] in 'aeiou' else 'a'} {noun} in the image?"


def ask_as_public(noun):
    """As the public generator writes it: before a vowel every "a" of its template becomes "an", so
    it asks "Is there an orange in the imange?". The files it published do not have that."""
    return ask(noun) if noun[0] not in "aeiou" else f"Is there an {noun} in the imange?"


def build(objects, images=None, per_image=3, seed=0, question=ask):
    """{"random": rows, "popular": rows, "adversarial": rows}, as the public generator makes them.

    `objects`: {image: its objects, in order}. `images`: how many to draw, None for all in their
    order. The first `per_image` objects of an image are asked about, and after each one an absent
    object, never the same twice in an image: any one at random; the one in most images; or the one
    in most images together with the object just asked about. On a tie the one seen first in the
    data wins. Where nothing absent is left to choose from, the choice is random again.
    For the same seed these are the public program's rows after `random.seed(seed)`, with
    `question=ask_as_public` to the letter.

    Raises ValueError when too few images have `per_image` objects, and for an image from which
    too few objects are absent (there the public program would search for ever).
    """
    rng = random.Random(seed)
    rich = [(image, list(things)) for image, things in objects.items() if len(things) >= per_image]
    if len(rich) < (images or 1):
        raise ValueError(
            f"only {len(rich)} images have {per_image} objects or more; {images or 1} are needed."
        )
    chosen = rng.sample(rich, images) if images else rich
    singles = Counter(thing for _, things in chosen for thing in things)
    for image, things in chosen:
        if len(singles) - len(set(things)) < per_image:
            raise ValueError(f"from {image} fewer than {per_image} known objects are absent.")
    ranked = {
        "random": lambda positive: [],
        "popular": lambda positive: popular,
        "adversarial": lambda positive: together[positive],
    }
    popular, together = _by_count(singles), _together(chosen)
    return {
        kind: _rows(chosen, per_image, ranked[kind], list(singles), rng, question) for kind in KINDS
    }


def _rows(chosen, per_image, ranked, known, rng, question):
    rows = []
    for image, things in chosen:
        used = set(things)
        for positive in things[:per_image]:
            negative = next((thing for thing in ranked(positive) if thing not in used), None)
            while negative is None or negative in used:
                negative = rng.choice(known)
            used.add(negative)
            for noun, label in ((positive, "yes"), (negative, "no")):
                rows.append(dict(image=image, text=question(noun), label=label))
    return [{"question_id": number, **row} for number, row in enumerate(rows, 1)]


def _by_count(counts):
    """Most frequent first; equals stay in the order in which they were first seen."""
    return sorted(counts, key=counts.__getitem__, reverse=True)


def _together(chosen):
    """{object: the others, by how many images have both}."""
    counts = defaultdict(Counter)
    for _, things in chosen:
        for one in things:
            counts[one].update(other for other in things if other != one)
    return {one: _by_count(others) for one, others in counts.items()}
