"""Nouns and similar words of AMBER's descriptions: by spelling, and as its public program has them.

The latter are nltk's nouns and spaCy's vectors, for who wants the program's figures to the digit.
The course does not install them:

    pip install nltk spacy
    python -m spacy download en_core_web_lg
    python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet
"""

import functools
import re

from helpers.evaluation.objects import mentions, spellings

# What may follow the noun "can".
NO_VERB = re.compile(
    r"\W*$|[^\w\s]|\s+(?:of|and|or|in|on|at|by|near|next|with|to|from|under|behind|beside|above|"
    r"that|which|is|are|was|has|placed|filled|sit|sits|sitting|stand|stands|standing|lying)\b"
)


def nouns_by_word(vocabulary):
    """text -> the words of `vocabulary` in it: whole words and plurals, in any case.

    The public program takes what a tagger calls a noun (`nouns`). One word needs care without a
    tagger: "can" is an object only where no verb follows ("can be seen").
    """
    objects = spellings(vocabulary)

    def named(text):
        found = mentions(text, objects)
        return [
            m.name for m in found if text[m.start : m.end] != "can" or NO_VERB.match(text, m.end)
        ]

    return named


def nouns(text):
    """The words that nltk tags as nouns, each in the form that WordNet lists.

    Raises ModuleNotFoundError without nltk and LookupError without its data, with what to do.
    """
    nltk, stem = _imported("nltk"), _imported("nltk.stem")
    lemma = stem.WordNetLemmatizer().lemmatize
    tagged = nltk.pos_tag(nltk.word_tokenize(text))
    return [lemma(word) for word, tag in tagged if tag.startswith("NN")]


def similar(model="en_core_web_lg", above=0.8):
    """(word, word) -> whether spaCy's vectors are more similar than `above`.

    Raises ModuleNotFoundError without spaCy, OSError without the model.
    """
    pipeline = _imported("spacy").load(model)
    document = functools.cache(pipeline)
    return functools.cache(lambda a, b: document(a).similarity(document(b)) > above)


def _imported(name):
    try:
        return __import__(name, fromlist=["_"])
    except ModuleNotFoundError as problem:
        raise ModuleNotFoundError(
            f"{name} is not installed: `pip install {name.split('.')[0]}` in this environment, or "
            "score without it and without the public program's own reading of nouns."
        ) from problem
