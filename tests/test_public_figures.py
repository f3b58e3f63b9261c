"""The same inputs as the public CHAIR, AMBER and POPE programs, and the figures that they printed.

Inputs are invented; tests/public_figures/ says which program, commit and tools printed what. None
of their code or lists is here. Where their code has a quirk, both its figure and ours are tested.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from helpers.evaluation import amber, amber_public, chair, language, pope

FOLDER = Path(__file__).parent / "public_figures"
SECTIONS = {"all": "Descriminative Task", "existence": "Exsitence", "attribute": "Attribute"}
SECTIONS |= {name: name.capitalize() for name in ("state", "number", "action", "relation")}


def recorded(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


# --- CHAIR ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    record = recorded("chair")
    path = tmp_path_factory.mktemp("chair") / "synonyms.txt"
    path.write_text("\n".join(record["synonyms"]) + "\n", encoding="utf-8")
    return record, chair.read_words(path)


def judged(record, words):
    truths = [
        {*picture["outlined"], *chair.objects_named(picture["references"], words)}
        for picture in record["pictures"]
    ]
    captions = [picture["caption"] for picture in record["pictures"]]
    return truths, chair.chair(captions, truths, words)


def test_chair_is_the_public_programs_to_the_last_digit(pictures):
    record, words = pictures
    truths, result = judged(record, chair.as_public(words))
    assert chair.printed(result) == record["printed"]
    assert [result.chair_s, result.chair_i] == record["shares"]
    for picture, truth, found in zip(record["pictures"], truths, result.per_caption, strict=True):
        assert list(found.mentioned) == picture["mentioned"], picture["caption"]
        assert sorted(truth) == picture["truth"], picture["references"]


def test_our_chair_sees_the_bus_that_the_public_program_misses(pictures):
    record, words = pictures
    ours, public = judged(record, words)[1], judged(record, chair.as_public(words))[1]
    differ = [
        picture["caption"].lower()
        for picture, mine, theirs in zip(
            record["pictures"], ours.per_caption, public.per_caption, strict=True
        )
        if mine.mentioned != theirs.mentioned
    ]
    reasons = (*chair.UNSEEN, "iphone", "motor bike", "stove top oven")
    assert 20 < len(differ) < 100 and ours.mentions > public.mentions
    assert all(any(reason in caption for reason in reasons) for caption in differ)


@pytest.mark.parametrize(
    "caption, ours, public",
    [
        ("A bus and two buses", ["bus", "bus"], ["bus"]),
        ("Two ties on a motor bike", ["tie", "motorcycle"], []),
        ("A stove top oven", ["oven"], ["oven", "oven"]),
        ("A baby elephant by the train tracks", ["elephant"], ["elephant"]),
        ("A baby on a passenger train", ["person", "train"], ["person", "train"]),
        ("The seat of the toilet. A seat.", ["toilet"], ["toilet"]),
        ("A seat, a toilet-paper roll", ["chair"], ["chair"]),
        ("Wine glasses and hot dogs", ["wine glass", "hot dog"], ["wine glass", "hot dog"]),
    ],
)
def test_chairs_own_rules(pictures, caption, ours, public):
    _, words = pictures
    for expected, known in ((ours, words), (public, chair.as_public(words))):
        found = chair.chair([caption], [set()], known).per_caption[0]
        assert list(found.mentioned) == expected


def test_a_list_of_synonyms_that_contradicts_itself_is_refused(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text("dog, puppy\ncat, puppy\n")
    with pytest.raises(ValueError, match="line 2: 'puppy' also stands for 'dog'"):
        chair.read_words(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="names no objects"):
        chair.read_words(path)


# --- AMBER ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    record, folder = recorded("amber"), tmp_path_factory.mktemp("amber")
    (folder / "annotations.json").write_text(json.dumps(record["annotations"]))
    (folder / "relation.json").write_text(json.dumps(record["association"]))
    (folder / "safe_words.txt").write_text("\n".join(record["safe"]))
    (folder / "responses.json").write_text(json.dumps(record["responses"]))
    benchmark = amber.load(folder)
    responses = amber.read_responses(folder / "responses.json", benchmark)
    texts = [responses[number] for number in range(1, 161)]
    nouns = dict(zip(texts, record["nouns"], strict=True)).__getitem__
    alike = {frozenset(pair) for pair in record["similar"]}
    return record, benchmark, responses, nouns, lambda a, b: frozenset((a, b)) in alike


def printed(sections):
    return {name: sections[SECTIONS[name]] for name in SECTIONS if SECTIONS[name] in sections}


def test_amber_prints_what_the_public_program_prints(world):
    record, benchmark, responses, nouns, similar = world
    described = amber_public.generative(responses, benchmark, nouns, similar)
    assert amber_public.printed_generative(described) == record["printed"]["Generative Task"]
    probed = amber.discriminative(responses, benchmark, parse=amber.exact)
    assert amber_public.printed_discriminative(probed) == printed(record["printed"])
    assert probed["all"].n == 400 and described.captions == 160


def test_counters_that_start_above_zero_show_where_there_is_little(world):
    record, benchmark, _, nouns, similar = world
    silent = next(row["id"] for row in record["responses"] if not row["response"])
    described = amber_public.generative({silent: ""}, benchmark, lambda text: [], similar)
    expected = record["printed_silent_caption"]["Generative Task"]
    assert amber_public.printed_generative(described) == expected
    assert expected["Hal"] == 0.1 and described.chair_s == 0.0
    answers = {int(number): answer for number, answer in record["few"].items()}
    probed = amber.discriminative(answers, benchmark, parse=amber.exact)
    table = amber_public.printed_discriminative(probed)
    public = printed(record["printed_few"])
    assert all(table[name] == public[name] for name in ("all", "existence", "attribute", "state"))
    assert public["attribute"]["Accuracy"] == 99.7 and probed["attribute"].accuracy == 1.0


def test_silence_and_always_no_score_well_in_public_and_have_no_score_here(world):
    record, benchmark, _, _, similar = world
    mute = {
        number: "" if item.kind == "generative" else "No"
        for number, item in benchmark.items.items()
    }
    described = amber_public.generative(mute, benchmark, lambda text: [], similar)
    probed = amber.discriminative(mute, benchmark)
    table = record["printed_silence_and_no"]
    assert amber_public.printed_generative(described) == table["Generative Task"]
    assert amber_public.printed_discriminative(probed) == printed(table)
    public_f1 = table["Descriminative Task"]["F1"]
    assert amber.amber_score(0.0, public_f1 / 100) == (100 + public_f1) / 2 > 88
    score = amber.amber_score(described.chair_i, probed["all"].f1)
    assert score != score  # nan


def test_reading_by_word_finds_what_the_tagger_finds_and_a_little_more(world):
    record, benchmark, responses, nouns, _ = world
    by_word = language.nouns_by_word(amber.vocabulary(benchmark))
    more, less, total = Counter(), Counter(), 0
    for number in range(1, 161):
        ours, theirs = Counter(by_word(responses[number])), Counter(nouns(responses[number]))
        more, less, total = more + (ours - theirs), less + (theirs - ours), total + theirs.total()
    assert set(less) == {"leaf"}  # "leaves", which this vocabulary has as a word of its own
    assert 0 < more.total() < 0.06 * total  # nouns that the tagger takes for something else


def small(truth, prone=(), association=None, safe=()):
    association = association or {}
    words = {w: tuple(association.get(w, ())) for w in (*truth, *prone, "cat", "dog", "can")}
    item = amber.Item("generative", tuple(truth), tuple(prone))
    return amber.Benchmark({1: item}, words, frozenset(safe))


def both(benchmark, text, similar=lambda a, b: False):
    nouns = language.nouns_by_word(amber.vocabulary(benchmark))
    public = amber_public.generative({1: text}, benchmark, nouns, similar)
    return amber.generative({1: text}, benchmark, similar=similar), public


def test_an_object_listed_twice_counts_once_here_and_twice_in_public():
    ours, public = both(small(["ship", "ship", "sky"]), "A ship in the sky")
    assert ours.cover == 1.0 and public.cover == 2 / 3


def test_a_name_is_credited_to_its_own_object():
    benchmark = small(["person", "man"], association={"person": ["man"]})
    ours, public = both(benchmark, "A man")
    assert ours.per_caption[0].hits == {"man"} and public.per_caption[0].hits == {(0, "person")}


def test_safe_words_are_never_wrong_but_may_hit():
    benchmark = small(["shoe"], safe=["shoe", "cat"])
    ours, public = both(benchmark, "A shoe and a cat")
    assert ours.hallucinated_mentions == public.hallucinated_mentions == 0
    assert ours.mentions == public.mentions == 2
    assert (ours.cover, public.cover) == (1.0, 0.0)


def test_a_temptation_that_is_there_or_explained_is_none_here():
    alike = {frozenset(("cat", "dog"))}
    benchmark = small(["dog"], prone=["cat", "dog"])
    ours, public = both(benchmark, "A cat", lambda a, b: frozenset((a, b)) in alike)
    assert ours.hallucinated_mentions == public.hallucinated_mentions == 0
    assert (ours.prone_hits, ours.prone_objects) == (0, 1)
    assert (public.prone_hits, public.prone_objects) == (1, 2)


def test_a_temptation_counts_once_here_and_spreads_to_the_similar_one_in_public():
    alike = {frozenset(("cat", "kitten"))}
    benchmark = small(["sky"], prone=["kitten", "cat"])
    ours, public = both(benchmark, "A cat", lambda a, b: frozenset((a, b)) in alike)
    assert (ours.prone_hits, public.prone_hits) == (1, 2)
    assert ours.hallucinated_mentions == public.hallucinated_mentions == 1


@pytest.mark.parametrize(
    "text, count",
    [
        ("Hills can be seen", 0),
        ("It can also fly", 0),
        ("A can of soda", 1),
        ("Two cans. A can", 2),
    ],
)
def test_can_is_an_object_only_as_a_noun(text, count):
    assert language.nouns_by_word(["can", "sky"])(text).count("can") == count


def test_answers_are_read_by_what_they_say_and_in_public_to_the_letter():
    items = {n: amber.Item("existence", "no") for n in range(1, 5)}
    benchmark = amber.Benchmark(items, {}, frozenset())
    responses = dict(enumerate(["No", "No.", "no", "No, there is not."], 1))
    assert amber.discriminative(responses, benchmark)["existence"].accuracy == 1.0
    to_the_letter = amber.discriminative(responses, benchmark, parse=amber.exact)["existence"]
    assert (to_the_letter.accuracy, to_the_letter.claimed, to_the_letter.disputed) == (0.25, 1, 3)


def test_the_public_tools_are_named_when_they_are_missing(monkeypatch):
    for name in ("nltk", "spacy"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="nltk is not installed: `pip install nltk`"):
        language.nouns("A dog")
    with pytest.raises(ModuleNotFoundError, match="spacy is not installed"):
        language.similar()


# --- POPE ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def polled():
    record = recorded("pope")
    labels = [pope.Label(**row) for row in record["labels"]]
    return record, labels, [row["answer"] for row in record["answers"]]


def test_pope_prints_what_the_public_program_prints(polled):
    record, labels, answers = polled
    result = pope.score(answers, labels)
    assert pope.printed(result) == record["printed"]
    counts = record["counts"]
    assert (result.hits, result.claimed) == (counts["TP"], counts["TP"] + counts["FP"])
    assert result.actual == counts["TP"] + counts["FN"] and result.n == 300


def test_who_never_says_yes_has_an_f1_of_nothing_where_the_public_program_stops(polled):
    _, labels, _ = polled
    result = pope.score(["no"] * len(labels), labels)
    assert (result.f1, result.recall, result.yes_ratio) == (0.0, 0.0, 0.0)
    assert result.precision != result.precision


@pytest.mark.parametrize("seed", [0, 1])
def test_questions_are_the_public_generators_in_order_and_to_the_letter(polled, seed):
    record, *_ = polled
    built = pope.build(record["objects"], 20, seed=seed, question=pope.ask_as_public)
    for kind in pope.KINDS:
        rows = [[row["image"], row["text"], row["label"]] for row in built[kind]]
        assert rows == record["built"][str(seed)][kind]
        assert [row["question_id"] for row in built[kind]] == list(range(1, 121))
    assert any("imange" in row["text"] for row in built["popular"])


def test_our_questions_are_the_same_in_correct_english(polled):
    record, *_ = polled
    ours = pope.build(record["objects"], 20, seed=0)["popular"]
    theirs = pope.build(record["objects"], 20, seed=0, question=pope.ask_as_public)["popular"]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["text"] == other["text"].replace("imange", "image")
        assert mine | {"text": ""} == other | {"text": ""}


def test_the_first_seen_wins_a_tie():
    objects = {"a": ["cup", "dog"], "b": ["dog", "cup"], "c": ["fox", "owl"], "d": ["owl", "fox"]}
    built = pope.build(objects, per_image=2)
    negatives = [row["text"].split()[3] for row in built["popular"] if row["label"] == "no"]
    assert negatives == ["fox", "owl"] * 2 + ["cup", "dog"] * 2


def test_too_few_objects_are_named():
    with pytest.raises(ValueError, match="only 1 images have 3 objects or more; 2 are needed"):
        pope.build({"a": ["x", "y", "z"], "b": ["x"]}, images=2)
    with pytest.raises(ValueError, match="from a fewer than 3 known objects are absent"):
        pope.build({"a": ["x", "y", "z"]})
