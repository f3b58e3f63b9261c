"""AMBER's figures as its public program counts and prints them, where that differs from what they
mean. Use it to set a model beside published tables; use `amber` to learn something.

    described = generative(responses, benchmark, language.nouns, language.similar())
    printed_generative(described)        # {"CHAIR": 7.8, "Cover": 51.0, "Hal": 36.4, "Cog": 4.2}
    printed_discriminative(amber.discriminative(responses, benchmark, parse=amber.exact))

What differs, all from inference.py at commit 534babf:

- Every count of items starts at 0.001, so shares are a little small: with one silent caption Hal
  is 0.1. The three kinds of attribute bring 0.003.
- F1 comes from precision and recall after rounding to a tenth of a percent, with 0.0001 added
  below (0.001 for existence).
- Only "Yes" and "No" to the letter count as answers.
- An object that the truth lists twice counts twice in Cover, and can be hit once. A word is
  credited to the first object it may stand for, even when it is the name of another: "man" hits
  "person" where that is listed too. So some Covers cannot reach 100.
- A mention of a temptation is credited to the first that equals it, and also to the first that is
  similar; and it is so even when something similar is in the truth, so that it is not wrong.
- Safe words never hit anything.
- Nouns are looked up as they are written: nltk's lemmatiser leaves a capitalised plural ("Dogs")
  and "men" alone, so these are never mentions. That comes with `language.nouns`.
"""

from helpers.evaluation.amber import stands_for, vocabulary
from helpers.evaluation.metrics import CaptionObjects, summary


def generative(responses, benchmark, nouns, similar):
    """`metrics.Hallucination` with the public program's counts. Arguments as in `amber.generative`.

    The objects of `per_caption` are (position, name): the public lists have repeats.
    """
    known = frozenset(vocabulary(benchmark))
    per_caption = []
    for number, response in responses.items():
        item = benchmark.items[number]
        if item.kind == "generative":
            named = [noun for noun in nouns(response) if noun in known]
            per_caption.append(_judged(named, item, benchmark, similar))
    return summary(tuple(per_caption))


def _judged(named, item, benchmark, similar):
    present, tempting = (_targets(w, benchmark.association) for w in (item.truth, item.prone))
    wrong, hits, falls = [], set(), set()
    for noun in named:
        if noun in benchmark.safe:
            continue
        hit = stands_for(noun, present, _nothing)
        if hit is None:
            falls |= {stands_for(noun, tempting, _nothing), _most_like(noun, tempting, similar)}
            hit = _most_like(noun, present, similar)
        if hit is None:
            wrong.append(noun)
        hits.add(hit)
    truth, prone = (frozenset(enumerate(words)) for words in (item.truth, item.prone))
    return CaptionObjects(
        tuple(named), tuple(wrong), truth, truth & hits, prone, prone.intersection(falls)
    )


def _targets(words, association):
    """(spelling, (position, object)): words that may stand for an object before its own name."""
    listed = list(enumerate(words))
    return [(o, (i, w)) for i, w in listed for o in association[w]] + [
        (w, (i, w)) for i, w in listed
    ]


def _most_like(noun, targets, similar):
    """The first target that is similar; a word is always similar to itself."""
    return next((thing for word, thing in targets if word == noun or similar(noun, word)), None)


def _nothing(noun, word):
    return False


def printed_generative(result):
    """{"CHAIR", "Cover", "Hal", "Cog"} in percent, to the digit that the public program prints."""
    clean = result.captions - result.hallucinating_captions
    return {
        "CHAIR": _percent(result.hallucinated_mentions, result.mentions),
        "Cover": _percent(result.hits, result.truth_objects),
        "Hal": round(100 - clean / (result.captions + 0.001) * 100, 1),
        "Cog": _percent(result.prone_hits, result.prone_objects),
    }


def printed_discriminative(results):
    """{group: {"Accuracy", "Precision", "Recall", "F1"}} of `amber.discriminative`'s groups."""
    return {name: _printed(name, result) for name, result in results.items()}


def _printed(name, result):
    start = 0.003 if name == "attribute" else 0.001
    precision = _percent(result.hits, result.claimed, start)
    recall = _percent(result.hits, result.actual, start)
    below = precision / 100 + recall / 100 + (0.001 if name == "existence" else 0.0001)
    return {
        "Accuracy": _percent(result.right, result.n, start),
        "Precision": precision,
        "Recall": recall,
        "F1": round(2 * (precision / 100) * (recall / 100) / below * 100, 1),
    }


def _percent(part, whole, start=0.001):
    return round(part / (whole + start) * 100, 1)
