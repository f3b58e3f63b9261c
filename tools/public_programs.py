"""CHAIR, AMBER and POPE to the digit that their public programs print, quirks included.

    chair(captions, truths, chair_words_as_public(words))        # CHAIR: chair_printed
    amber_hallucination(responses, benchmark, nltk_nouns, spacy_similar())   # AMBER: amber_printed
    pope_printed(yes_no(answers, labels))                        # POPE
    pope_questions({"a.jpg": ["person", "dog", "cup"], ...}, images=500)["adversarial"]

To set a model beside published tables; to learn something, use `helpers.evaluation`.
"""

import functools
import importlib
import random
from collections import Counter, defaultdict
from dataclasses import replace

from helpers.evaluation.amber import no_other, stands_for
from helpers.evaluation.metrics import CaptionObjects, summary
from helpers.evaluation.objects import plural
from helpers.world.scenes import NEGATIVES

# --- CHAIR (LisaAnne/Hallucination) ---------------------------------------------------------

# The public program makes every word singular by rule, and the rules turn "bus" into "bu" and
# "ties" into "ty": these spellings it never sees. It does see "buses" and "tie".
UNSEEN = "bus minibus airbus canoes magpies ties doggies collies thieves".split()


def chair_words_as_public(words):
    """`objects.Words` as far as the public program can see them, to repeat its figures.

    It misses what its singular rules spoil (`UNSEEN`), names that its list spells with a capital
    ("iPhone", since captions are lowered) or after two spaces ("motor bike", "cheesecake"), and it
    takes "stove top oven" for two ovens, as it looks at two words at a time. What it splits
    otherwise is not repeated here: it finds nothing in "cat/dog" or in "teddy-bear".
    """
    two_words = {name: thing for name, thing in words.synonyms.items() if name.count(" ") < 2}
    lost = [form for n in ("iphone", "motor bike", "cheesecake") for form in (n, plural(n))]
    return replace(words, synonyms=two_words, ignore=(*words.ignore, *UNSEEN, *lost))


def chair_printed(result):
    """{"CHAIRs": "33.3", "CHAIRi": "12.5"}: percent, with the program's one digit."""
    return {"CHAIRs": f"{100 * result.chair_s:.1f}", "CHAIRi": f"{100 * result.chair_i:.1f}"}


# --- AMBER (junyangwang0410/AMBER, inference.py at commit 534babf) ---------------------------
#
# - Every count of items starts at 0.001, so shares are a little small: with one silent caption Hal
#   is 0.1. The three kinds of attribute bring 0.003.
# - F1 comes from precision and recall after rounding to a tenth of a percent, with 0.0001 added
#   below (0.001 for existence).
# - Only "Yes" and "No" to the letter count as answers.
# - An object that the truth lists twice counts twice in Cover, and can be found once. A word is
#   credited to the first object it may stand for, even when it is the name of another: "man" to
#   "person" where that is listed too. So some Covers cannot reach 100.
# - A mention of a temptation is credited to the first that equals it, and also to the first that is
#   similar; and it is so even when something similar is in the truth, so that it is not wrong.
# - Safe words never count for anything. Nouns are looked up as they are written: nltk's lemmatiser
#   leaves a capitalised plural ("Dogs") and "men" alone, so these are never mentioned.


def amber_hallucination(responses, benchmark, nouns, similar):
    """`amber.generative` with the public program's counts, and its arguments.

    The objects of `per_caption` are (position, name): the public lists have repeats.
    """

    def targets(listed):  # (spelling, (position, object)): an object's name comes last
        others = [(other, one) for one in listed for other in benchmark.association[one[1]]]
        return others + [(one[1], one) for one in listed]

    def most_like(noun, targets):  # the first; a word is always similar to itself
        return next((one for word, one in targets if word == noun or similar(noun, word)), None)

    known, per_caption = frozenset(benchmark.vocabulary), []
    for number, response in responses.items():
        item = benchmark.items[number]
        if item.kind != "generative":
            continue
        truth, prone = list(enumerate(item.truth)), list(enumerate(item.prone))
        present, tempting = targets(truth), targets(prone)
        named = tuple(noun for noun in nouns(response) if noun in known)
        wrong, hits, falls = [], set(), set()
        for noun in named:
            if noun in benchmark.safe:
                continue
            hit = stands_for(noun, present, no_other)
            if hit is None:
                falls |= {stands_for(noun, tempting, no_other), most_like(noun, tempting)}
                hit = most_like(noun, present)
            if hit is None:
                wrong.append(noun)
            hits.add(hit)
        truth, prone = frozenset(truth), frozenset(prone)
        per_caption.append(
            CaptionObjects(named, tuple(wrong), truth, truth & hits, prone, prone & falls)
        )
    return summary(per_caption)


def amber_exact(answer):
    """For `amber.discriminative`: "Yes" and "No" to the letter; None for all else."""
    return {"Yes": "yes", "No": "no"}.get(answer)


def amber_printed(described=None, probed=None):
    """{"descriptions" or group: figures in percent, to the digit that the program prints}.

    `described`: of `amber_hallucination`. `probed`: of `amber.discriminative` with `amber_exact`.
    """
    tables = {}
    if described is not None:
        clean = described.captions - described.hallucinating_captions
        tables["descriptions"] = {
            "CHAIR": _percent(described.hallucinated_mentions, described.mentions),
            "Cover": _percent(described.true_positives, described.truth_objects),
            "Hal": round(100 - clean / (described.captions + 0.001) * 100, 1),
            "Cog": _percent(described.prone_mentioned, described.prone_objects),
        }
    for name, result in (probed or {}).items():
        start = 0.003 if name == "attribute" else 0.001
        precision = _percent(result.true_positives, result.predicted_positives, start)
        recall = _percent(result.true_positives, result.positives, start)
        below = precision / 100 + recall / 100 + (0.001 if name == "existence" else 0.0001)
        tables[name] = {
            "Accuracy": _percent(result.correct, result.n, start),
            "Precision": precision,
            "Recall": recall,
            "F1": round(2 * (precision / 100) * (recall / 100) / below * 100, 1),
        }
    return tables


def _percent(part, whole, start=0.001):
    return round(part / (whole + start) * 100, 1)


def nltk_nouns(text):
    """The words that nltk tags as nouns, each in the form that WordNet lists. Needs `python -m
    nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet`, or raises LookupError."""
    nltk = _imported("nltk")
    lemma = _imported("nltk.stem").WordNetLemmatizer().lemmatize
    tagged = nltk.pos_tag(nltk.word_tokenize(text))
    return [lemma(word) for word, tag in tagged if tag.startswith("NN")]


def spacy_similar(model="en_core_web_lg", above=0.8):
    """(word, word) -> whether spaCy's vectors are more similar than `above`. Needs `python -m spacy
    download en_core_web_lg`, or raises OSError."""
    document = functools.cache(_imported("spacy").load(model))
    return functools.cache(lambda a, b: document(a).similarity(document(b)) > above)


def _imported(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        raise ModuleNotFoundError(
            f"{name} is not installed: `pip install {name.split('.')[0]}` in this environment, or "
            "score without it and without the public program's own reading of nouns."
        ) from problem


# --- POPE (RUCAIBox/POPE) -------------------------------------------------------------------


def pope_printed(result):
    """A `metrics.YesNo` as evaluate.py prints it: fractions with all their digits.

    An answerer that never says yes has an f1 of 0 here; there the program divides by zero.
    """
    figures = (result.accuracy, result.precision, result.recall, result.f1, result.yes_ratio)
    heads = ("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio")
    return dict(zip(heads, map(str, figures), strict=True))


def pope_questions(objects, images=None, per_image=3, seed=0):
    """{"random": rows, "popular": rows, "adversarial": rows} in the form of POPE's files, to the
    letter as the public generator makes them after `random.seed(seed)`.

    `objects`: {image: its objects, in order}. `images`: how many to draw, None for all in their
    order. The first `per_image` objects of an image are asked about, and after each one an absent
    object, never the same twice: any one at random; the one in most images; or the one in most
    images together with the object just asked about. On a tie the first in the data wins; where
    nothing absent is left, the choice is random. Raises ValueError when too few images have
    `per_image` objects, and for an image from which too few objects are absent (there the public
    program would search for ever).
    """
    rng = random.Random(seed)
    rich = [(image, list(things)) for image, things in objects.items() if len(things) >= per_image]
    if len(rich) < (images or 1):
        raise ValueError(
            f"only {len(rich)} images have {per_image} objects or more; {images or 1} are needed."
        )
    chosen = rng.sample(rich, images) if images else rich
    in_images, together = Counter(), defaultdict(Counter)
    for _, things in chosen:
        in_images.update(things)
        for one in things:
            together[one].update(other for other in things if other != one)
    for image, things in chosen:
        if len(in_images) - len(set(things)) < per_image:
            raise ValueError(f"from {image} fewer than {per_image} known objects are absent.")
    built = {}
    for kind in NEGATIVES:
        rows = []
        for image, things in chosen:
            used = set(things)
            for positive in things[:per_image]:
                counts = {"popular": in_images, "adversarial": together[positive]}.get(kind, {})
                # The most frequent first; equals stay in the order in which they were first seen.
                ranked = sorted(counts, key=counts.get, reverse=True)
                negative = next((thing for thing in ranked if thing not in used), None)
                while negative is None or negative in used:
                    negative = rng.choice(list(in_images))
                used.add(negative)
                for noun, label in ((positive, "yes"), (negative, "no")):
                    text = f"Is there a {noun} in the image?"
                    if noun[0] in "aeiou":  # not in the files that it published
                        text = f"Is there an {noun} in the imange?"
                    rows.append({"image": image, "text": text, "label": label})
        built[kind] = [{"question_id": number, **row} for number, row in enumerate(rows, 1)]
    return built
