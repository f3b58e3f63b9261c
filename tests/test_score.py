"""The benchmarks' own files: read as they are, refused by file and row, scored by a tool."""

import json

import pytest

from helpers.evaluation import amber
from tools import public_programs as public
from tools import score

LABELS = [
    {"question_id": i, "image": f"{i // 3}.jpg", "text": f"Is there a {noun}?", "label": label}
    for i, (noun, label) in enumerate([("dog", "yes"), ("cat", "no"), ("cup", "yes")] * 2, 1)
]
ANSWERS = [
    {"question": row["text"], "answer": answer}
    for row, answer in zip(LABELS, ["Yes.", "No", "yes", "No!", "yes", "no"], strict=True)
]
ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["dog", "sky"], "hallu": ["cat"]},
    {"id": 2, "type": "generative", "truth": ["sky"], "hallu": ["cat"]},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 5, "type": "relation", "truth": "no"},
    {"id": 6, "type": "discriminative-attribute-action", "truth": "no"},
]
RESPONSES = [
    {"id": 1, "response": "A dog and a cat."},
    {"id": 2, "response": ""},
    *({"id": i, "response": "No"} for i in (3, 4, 5, 6)),
]


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
        return path

    return write


@pytest.fixture
def data(write):
    """A folder like AMBER's data."""
    write("data/relation.json", json.dumps({"dog": ["puppy"], "cat": [], "sky": []}))
    write("data/safe_words.txt", "shoe\nline\n")
    return write("data/annotations.json", json.dumps(ANNOTATIONS)).parent


def changed(rows, row, **fields):
    return [{**r, **fields} if i == row else r for i, r in enumerate(rows)]


# --- files ---------------------------------------------------------------------------------


def test_pope_files_are_read_in_order_or_by_id(write):
    labels = score.pope_labels(write("labels.json", LABELS))
    assert [row["label"] for row in labels] == ["yes", "no", "yes"] * 2
    expected = [row["answer"] for row in ANSWERS]
    by_id = [{"question_id": i, "answer": answer} for i, answer in enumerate(expected, 1)]
    otherwise = [{**row, "question": row["question"] + " Answer yes or no."} for row in ANSWERS]
    for rows in (ANSWERS, json.dumps(ANSWERS), by_id[::-1], otherwise):
        assert score.pope_answers(write("a.jsonl", rows), labels) == expected


def test_amber_files_are_read_whole_or_by_part(write, data):
    benchmark = amber.load(data)
    everything = amber.read_responses(write("r.json", json.dumps(RESPONSES)), benchmark)
    assert everything[2] == "" and len(everything) == 6
    part = amber.read_responses(write("r.json", json.dumps(RESPONSES[:2])), benchmark)
    assert set(part) == {1, 2}
    assert list(amber.groups(everything, benchmark)) == [
        *("all", "existence", "attribute", "state", "action", "relation"),
    ]


IDS = [{"question_id": i, "answer": "yes"} for i in range(1, 7)]


@pytest.mark.parametrize(
    "name, rows, message",
    [
        ("labels", changed(LABELS, 1, label="maybe"), "labels, line 2: the label is 'maybe'"),
        ("labels", changed(LABELS, 1, question_id=1), "2: question_id 1 is there already, .*1"),
        ("labels", changed(LABELS, 2, question_id="3"), "3: 'question_id' is '3', not a whole"),
        ("labels", changed(LABELS, 2, question_id=True), "line 3: 'question_id' is True"),
        ("labels", [{"question_id": 1, "text": "?"}], "has no 'image': it has question_id, text"),
        ("labels", "", "labels holds no rows"),
        ("labels", '{"question_id": 1,\n', "labels, line 1 is not JSON: .*column"),
        ("labels", "[1, 2]", "labels, entry 1: 1 is not a JSON object"),
        ("labels", "[1, 2", "labels is not JSON"),
        ("answers", ANSWERS[:4], "answers has 4 answers to 6 questions"),
        ("answers", changed(ANSWERS, 3, answer=" "), "answers, line 4: the answer is empty"),
        ("answers", changed(ANSWERS, 3, answer=None), "line 4: 'answer' is None, not a text"),
        ("answers", [{"question": "?", "text": "yes"}] * 6, "line 1 has no 'answer'"),
        ("answers", [ANSWERS[1], ANSWERS[0], *ANSWERS[2:]], "line 1 answers .*cat.* but .*dog"),
        ("answers", changed(IDS, 1, question_id=1), "line 2: question_id 1 is there already"),
        ("answers", changed(IDS, 1, question_id=9), "2: there is no question with question_id 9"),
        ("answers", IDS[:4], r"no answer to question_id 5 \(2 missing\)"),
        ("responses", RESPONSES[:1], r"no response with id 2 \(1 missing\)"),
        ("responses", RESPONSES[:4], "no response with id 6"),  # the other attribute
        ("responses", changed(RESPONSES, 4, id=3), "5: id 3 is there already, at .*line 3"),
        ("responses", changed(RESPONSES, 4, id=99), "line 5: AMBER has no id 99"),
        ("responses", changed(RESPONSES, 4, id="5"), "5: 'id' is '5', not a whole number"),
        ("responses", changed(RESPONSES, 3, response=""), "the answer to question 4 is empty"),
        ("responses", [{"id": 1, "answer": "x"}], "has no 'response': it has id, answer"),
        ("data/annotations.json", changed(ANNOTATIONS, 0, type="x"), "line 1: unknown type"),
        ("data/annotations.json", changed(ANNOTATIONS, 2, truth="No"), "line 3: the truth"),
        ("data/annotations.json", changed(ANNOTATIONS, 0, hallu=["owl"]), "1: 'owl' is not"),
        ("data/annotations.json", ANNOTATIONS[:1] * 2, "line 2: id 1 is there already"),
        ("data/relation.json", "{", "relation.json is not JSON"),
    ],
)
def test_bad_files_are_refused_by_row(write, data, name, rows, message):
    write("labels", LABELS)
    path = write(name, rows)
    read = {
        "labels": score.pope_labels,
        "answers": lambda path: score.pope_answers(path, score.pope_labels(path.parent / "labels")),
        "responses": lambda path: amber.read_responses(path, amber.load(data)),
    }
    with pytest.raises(ValueError, match=message):
        read.get(name, lambda path: amber.load(data))(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file .*none.json"):
        amber.json_rows(tmp_path / "none.json")
    with pytest.raises(ValueError, match="is not a text file"):
        amber.json_rows(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a text file in UTF-8"):
        amber.json_rows(tmp_path / "b")


# --- reading what models say ---------------------------------------------------------------


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
    assert amber.nouns_by_word(["can", "sky"])(text).count("can") == count


def test_answers_are_read_by_what_they_say_and_in_public_to_the_letter():
    items = {n: amber.Item("existence", "no") for n in range(1, 5)}
    benchmark = amber.Benchmark(items, {}, frozenset())
    responses = dict(enumerate(["No", "No.", "no", "No, there is not."], 1))
    assert amber.discriminative(responses, benchmark)["existence"].accuracy == 1.0
    exact = amber.discriminative(responses, benchmark, parse=public.amber_exact)["existence"]
    assert (exact.accuracy, exact.predicted_positives, exact.disputed) == (0.25, 1, 3)


# --- the tool ------------------------------------------------------------------------------


def test_the_tool_scores_pope(write, capsys):
    score.main(["pope", str(write("a.jsonl", ANSWERS)), str(write("labels.json", LABELS))])
    printed = capsys.readouterr().out
    assert "POPE: n = 3 pictures, 6 questions" in printed
    assert "accuracy    66.7  [" in printed and "1 answers taken for the contrary" in printed
    assert "evaluate.py prints it: Accuracy 0.6666666666666666, Precision 0.75" in printed


def test_the_tool_scores_amber(write, data, capsys):
    responses = write("r.json", json.dumps(RESPONSES))
    score.main(["amber", str(responses), str(data)])
    printed = capsys.readouterr().out
    assert "descriptions: n = 2 pictures, 2 mentions" in printed
    assert "CHAIR       50.0" in printed and "Cover       33.3" in printed
    assert "AMBER, all: n = 4 pictures, 4 questions" in printed
    assert "AMBER score 67.9" in printed  # (100 - 50 + 85.7) / 2


def test_questions_about_one_picture_are_one_unit(write, data, capsys):
    (data / "query").mkdir()
    rows = [{"id": i, "image": f"AMBER_{i // 4}.jpg", "query": "?"} for i in range(1, 7)]
    write("data/query/query_all.json", json.dumps(rows))
    score.main(["amber", str(write("r.json", json.dumps(RESPONSES))), str(data)])
    assert "AMBER, all: n = 2 pictures, 4 questions" in capsys.readouterr().out


def test_the_tool_prints_the_public_figures_too(write, data, capsys, monkeypatch):
    monkeypatch.setattr(public, "nltk_nouns", lambda text: text.lower().strip(".").split())
    monkeypatch.setattr(public, "spacy_similar", lambda: lambda a, b: False)
    responses = str(write("r.json", json.dumps(RESPONSES)))
    score.main(["amber", responses, str(data), "--public"])
    _, printed = capsys.readouterr().out.split("as AMBER's inference.py prints it:")
    assert "descriptions: CHAIR 50.0, Cover 33.3, Hal 50.0, Cog 50.0" in printed
    assert "  all: Accuracy 75.0, Precision 75.0, Recall 100.0" in printed


@pytest.mark.parametrize("command", [["pope", "a.jsonl", "b"], ["amber", "a.json", "b"]])
def test_the_tool_says_what_is_wrong_in_a_sentence(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^error: there is no file b"):
        score.main(command)
