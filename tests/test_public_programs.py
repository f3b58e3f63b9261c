"""The same inputs as the public CHAIR, AMBER and POPE programs, and the figures that they printed.

Inputs are invented; tests/public_figures/ says which program, commit and tools printed what. None
of their code or lists is here. Where their code has a quirk, both its figure and ours are tested.
"""

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from helpers.evaluation import amber
from helpers.evaluation.metrics import chair, opinion, yes_no
from helpers.evaluation.objects import chair_words, objects_named
from helpers.world.scenes import NEGATIVES
from tools import public_programs as public

FOLDER = Path(__file__).parent / "public_figures"
SECTIONS = {"all": "Descriminative Task", "existence": "Exsitence", "attribute": "Attribute"}
SECTIONS |= {name: name.capitalize() for name in ("state", "number", "action", "relation")}
SECTIONS["descriptions"] = "Generative Task"


def recorded(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


# --- CHAIR ---------------------------------------------------------------------------------


def judged(record, words):
    """(truths, result) of CHAIR's pictures."""
    pictures = record["pictures"]
    truths = [{*p["outlined"], *objects_named(p["references"], words)} for p in pictures]
    return truths, chair([p["caption"] for p in pictures], truths, words)


def test_chair_is_the_public_programs_to_the_last_digit():
    record = recorded("chair")
    words = public.chair_words_as_public(chair_words("\n".join(record["synonyms"])))
    truths, result = judged(record, words)
    assert public.chair_printed(result) == record["printed"]
    assert [result.chair_s, result.chair_i] == record["shares"]
    for picture, truth, found in zip(record["pictures"], truths, result.per_caption, strict=True):
        assert list(found.mentioned) == picture["mentioned"], picture["caption"]
        assert sorted(truth) == picture["truth"], picture["references"]


def test_our_chair_sees_the_bus_that_the_public_program_misses():
    record = recorded("chair")
    words = chair_words("\n".join(record["synonyms"]))
    ours, theirs = (judged(record, w)[1] for w in (words, public.chair_words_as_public(words)))
    captions = (picture["caption"].lower() for picture in record["pictures"])
    both = zip(captions, ours.per_caption, theirs.per_caption, strict=True)
    differ = [caption for caption, a, b in both if a.mentioned != b.mentioned]
    reasons = (*public.UNSEEN, "iphone", "motor bike", "stove top oven")
    assert 20 < len(differ) < 100 and ours.mentions > theirs.mentions
    assert all(any(reason in caption for reason in reasons) for caption in differ)


# --- AMBER ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    record, folder = recorded("amber"), tmp_path_factory.mktemp("amber")
    (folder / "annotations.json").write_text(json.dumps(record["annotations"]))
    (folder / "relation.json").write_text(json.dumps(record["association"]))
    (folder / "safe_words.txt").write_text("\n".join(record["safe"]))
    (folder / "responses.json").write_text(json.dumps(record["responses"]))
    benchmark = amber.load(folder)
    responses = amber.read_responses(folder / "responses.json", benchmark)
    texts = [responses[number] for number in range(1, 161)]
    nouns = dict(zip(texts, record["nouns"], strict=True))
    alike = {frozenset(pair) for pair in record["similar"]}
    return record, benchmark, responses, nouns, lambda a, b: frozenset((a, b)) in alike


def as_public(recording, responses, parse=public.amber_exact):
    """(what our count of the public program prints, described, probed)."""
    _, benchmark, _, nouns, similar = recording
    described = public.amber_hallucination(
        responses, benchmark, lambda text: nouns.get(text, []), similar
    )
    probed = amber.discriminative(responses, benchmark, parse=parse)
    return public.amber_printed(described, probed), described, probed


def printed(sections):
    return {name: sections[said] for name, said in SECTIONS.items() if said in sections}


def test_amber_prints_what_the_public_program_prints(recording):
    record, _, responses, *_ = recording
    tables, described, probed = as_public(recording, responses)
    assert tables == printed(record["printed"])
    assert probed["all"].n == 400 and described.captions == 160


def test_counters_that_start_above_zero_show_where_there_is_little(recording):
    record = recording[0]
    silent = next(row["id"] for row in record["responses"] if not row["response"])
    tables, described, _ = as_public(recording, {silent: ""})
    assert tables["descriptions"] == record["printed_silent_caption"]["Generative Task"]
    assert tables["descriptions"]["Hal"] == 0.1 and described.chair_s == 0.0
    answers = {int(number): answer for number, answer in record["few"].items()}
    tables, _, probed = as_public(recording, answers)
    theirs = printed(record["printed_few"])
    assert all(tables[name] == theirs[name] for name in ("all", "existence", "attribute", "state"))
    assert theirs["attribute"]["Accuracy"] == 99.7 and probed["attribute"].accuracy == 1.0


def test_silence_and_always_no_score_well_in_public_and_have_no_score_here(recording):
    record, benchmark, *_ = recording
    mute = {n: "" if item.kind == "generative" else "No" for n, item in benchmark.items.items()}
    tables, described, probed = as_public(recording, mute, opinion)
    assert tables == printed(record["printed_silence_and_no"])
    public_f1 = tables["all"]["F1"]
    assert amber.amber_score(0.0, public_f1 / 100) == (100 + public_f1) / 2 > 88
    assert math.isnan(amber.amber_score(described.chair_i, probed["all"].f1))


def test_reading_by_word_finds_what_the_tagger_finds_and_a_little_more(recording):
    _, benchmark, responses, nouns, _ = recording
    by_word = amber.nouns_by_word(benchmark.vocabulary)
    more, less, total = Counter(), Counter(), 0
    for number in range(1, 161):
        ours, theirs = Counter(by_word(responses[number])), Counter(nouns[responses[number]])
        more, less, total = more + (ours - theirs), less + (theirs - ours), total + theirs.total()
    assert set(less) == {"leaf"}  # "leaves", which this vocabulary has as a word of its own
    assert 0 < more.total() < 0.06 * total  # nouns that the tagger takes for something else


def both(text, truth, prone=(), alike=(), association=None, safe=()):
    """(ours, the public program's) of one description; `alike`: words of which any two are."""
    words = {w: (association or {}).get(w, ()) for w in (*truth, *prone, "cat", "dog")}
    item = amber.Item("generative", tuple(truth), tuple(prone))
    benchmark = amber.Benchmark({1: item}, words, frozenset(safe))

    def similar(a, b):
        return a in alike and b in alike

    nouns = amber.nouns_by_word(benchmark.vocabulary)
    theirs = public.amber_hallucination({1: text}, benchmark, nouns, similar)
    return amber.generative({1: text}, benchmark, similar=similar), theirs


def test_an_object_listed_twice_counts_once_here_and_twice_in_public():
    ours, theirs = both("A ship in the sky", ["ship", "ship", "sky"])
    assert ours.cover == 1.0 and theirs.cover == 2 / 3


def test_a_name_is_credited_to_its_own_object():
    ours, theirs = both("A man", ["person", "man"], association={"person": ["man"]})
    assert ours.per_caption[0].true_positives == {"man"}
    assert theirs.per_caption[0].true_positives == {(0, "person")}


def test_safe_words_are_never_wrong_but_may_be_of_the_truth():
    ours, theirs = both("A shoe and a cat", ["shoe"], safe=["shoe", "cat"])
    assert ours.hallucinated_mentions == theirs.hallucinated_mentions == 0
    assert ours.mentions == theirs.mentions == 2
    assert (ours.cover, theirs.cover) == (1.0, 0.0)
    assert both("A cat", ["shoe"], alike=("cat", "shoe"), safe=["cat"])[0].cover == 0.0  # by name


def test_of_several_similar_objects_the_first_listed_is_meant():
    ours, _ = both("A cat", ["kitten", "lion"], alike=("cat", "kitten", "lion"))
    assert ours.per_caption[0].true_positives == {"kitten"}


@pytest.mark.parametrize(
    "truth, prone, alike, wrong, ours_prone, public_prone",
    [  # one that is there or explained is none here
        (["dog"], ["cat", "dog"], ("cat", "dog"), 0, (0, 1), (1, 2)),
        # one counts once here, and spreads to the similar one in public
        (["sky"], ["kitten", "cat"], ("cat", "kitten"), 1, (1, 2), (2, 2)),
    ],
)
def test_temptations(truth, prone, alike, wrong, ours_prone, public_prone):
    ours, theirs = both("A cat", truth, prone, alike)
    assert ours.hallucinated_mentions == theirs.hallucinated_mentions == wrong
    assert (ours.prone_mentioned, ours.prone_objects) == ours_prone
    assert (theirs.prone_mentioned, theirs.prone_objects) == public_prone


def test_the_public_tools_are_named_when_they_are_missing(monkeypatch):
    for name in ("nltk", "spacy"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="nltk is not installed: `pip install nltk`"):
        public.nltk_nouns("A dog")
    with pytest.raises(ModuleNotFoundError, match="spacy is not installed"):
        public.spacy_similar()


# --- POPE ----------------------------------------------------------------------------------


def test_pope_prints_what_the_public_program_prints():
    record = recorded("pope")
    labels = [row["label"] for row in record["labels"]]
    result, counts = yes_no([row["answer"] for row in record["answers"]], labels), record["counts"]
    assert public.pope_printed(result) == record["printed"]
    assert (result.true_positives, result.n) == (counts["TP"], 300)
    assert result.predicted_positives == counts["TP"] + counts["FP"]
    assert result.positives == counts["TP"] + counts["FN"]


@pytest.mark.parametrize("seed", [0, 1])
def test_questions_are_the_public_generators_in_order_and_to_the_letter(seed):
    record = recorded("pope")
    built = public.pope_questions(record["objects"], 20, seed=seed)
    for kind in NEGATIVES:
        rows = [[row["image"], row["text"], row["label"]] for row in built[kind]]
        assert rows == record["built"][str(seed)][kind]
        assert [row["question_id"] for row in built[kind]] == list(range(1, 121))
    assert any("imange" in row["text"] for row in built["popular"])


def test_the_first_seen_wins_a_tie():
    objects = {"a": ["cup", "dog"], "b": ["dog", "cup"], "c": ["fox", "owl"], "d": ["owl", "fox"]}
    built = public.pope_questions(objects, per_image=2)
    negatives = [row["text"].split()[3] for row in built["popular"] if row["label"] == "no"]
    assert negatives == ["fox", "owl"] * 2 + ["cup", "dog"] * 2


def test_too_few_objects_are_named():
    with pytest.raises(ValueError, match="only 1 images have 3 objects or more; 2 are needed"):
        public.pope_questions({"a": ["x", "y", "z"], "b": ["x"]}, images=2)
    with pytest.raises(ValueError, match="from a fewer than 3 known objects are absent"):
        public.pope_questions({"a": ["x", "y", "z"]})
