"""Labels by people: nothing saved is lost, no two people share a file, figures are what they say.

What the browser's half does is in test_annotate_browser.py.
"""

import io
import json
import math
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, Image, IterableDataset
from filelock import FileLock
from PIL import Image as PILImage

from helpers.dpo.checkpoints import CheckpointError
from helpers.feedback import file as label_file
from helpers.feedback import widget as label_widget
from helpers.feedback.agreement import (
    accuracy,
    agreement,
    cohen_kappa,
    left_share,
    report,
)
from helpers.feedback.labels import Label, LabelError, pair_keys, picture_of, read_labels
from helpers.feedback.session import Session, left_answers
from helpers.feedback.votes import (
    conflict_cards,
    conflicts,
    picks_of,
    read_votes,
    to_preferences,
    verdicts,
)
from helpers.feedback.widget import annotate
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.pairs.images import RAW_COLUMNS, PreferenceDataError, image_digest
from helpers.world.scenes import png
from tools.build_notebooks import ROOT
from tools.outputs import WIDGET


def raw(scenes, each=2):
    """`each` pairs about every scene, in the raw columns."""
    rows = [
        {
            "ds_name": "test",
            "image": {"bytes": png(scene), "path": None},
            "question": "What do you see?",
            "chosen": f"true {i}-{n}",
            "rejected": f"false {i}-{n}",
            "origin_dataset": "drawn",
            "origin_split": json.dumps({"scene": i}),
            "idx": each * i + n,
            "image_path": f"{i}.png",
        }
        for i, scene in enumerate(scenes)
        for n in range(each)
    ]
    return Dataset.from_list(rows).cast_column("image", Image())


@pytest.fixture
def pairs(scenes):
    return raw(scenes[:4])


@pytest.fixture(autouse=True)
def owner(tmp_path, monkeypatch):
    """A copy of the course of its own; set(...) makes this somebody else's machine."""
    monkeypatch.setattr(label_file, "OWNER_FILE", tmp_path / "owner" / "me")

    def become(name):
        monkeypatch.setattr(label_file, "OWNER_FILE", tmp_path / "owner" / name)

    return become


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "labels"


def right_side(card):
    return "A" if card.left.startswith("true") else "B"


def label_all(session, choose=right_side):
    while (card := session.card) is not None:
        session.label(choose(card))
    return session


def simulate(pairs, folder, name, right=1.0):
    """An annotator who picks the true answer with this probability."""
    rng = random.Random(name)
    other = {"A": "B", "B": "A"}
    session = Session(pairs, name, folder)
    label_all(session, lambda c: right_side(c) if rng.random() < right else other[right_side(c)])
    session.close()


# --- what is shown -------------------------------------------------------------------------


def test_sides_are_the_same_each_time_and_differ_between_annotators(pairs, tmp_path):
    def shown(name, folder):
        seen = []
        label_all(Session(pairs, name, folder), lambda card: seen.append(card.left) or "tie")
        return seen

    assert shown("Ada", tmp_path / "1") == shown("ada", tmp_path / "2")
    assert len({tuple(shown(f"annotator {i}", tmp_path)) for i in range(8)}) > 4
    keys = pair_keys(pairs)
    assert left_answers(keys, "Ada") == left_answers(keys[::-1], "Ada")


def test_half_of_the_chosen_answers_are_on_the_left(scenes):
    keys = pair_keys(raw(scenes, 3))
    for name in "Ada Bob Cy".split():
        assert list(left_answers(keys, name).values()).count("chosen") == len(keys) // 2


def test_a_card_holds_both_answers_and_does_not_tell_which_is_which(pairs, folder):
    session = Session(pairs, "Ada", folder)
    card = session.card
    assert {card.left, card.right} == {pairs[0]["chosen"], pairs[0]["rejected"]}
    view = json.dumps(annotate(session).view)
    assert "chosen" not in view and "rejected" not in view


# --- what is saved -------------------------------------------------------------------------


def test_a_choice_is_in_the_file_before_the_next_card(pairs, folder):
    session = Session(pairs, "Ada", folder)
    for side in ("A", "B", "tie"):
        key, left = session.card.key, session.card.left
        session.label(side)
        label = read_labels(session.path).labels[key]
        assert label.side == (None if side == "tie" else side)
        assert label.left == ("chosen" if left.startswith("true") else "rejected")
    assert session.progress.done == 3 and session.card.number == 4


def test_picks_follow_the_content_and_not_the_side(pairs, folder):
    session = label_all(Session(pairs, "Ada", folder))
    assert {label.pick for label in session.labels.values()} == {"chosen"}
    assert {label.side for label in session.labels.values()} == {"A", "B"}


def test_undo_goes_back_one_choice_at_a_time_also_after_a_restart(pairs, folder):
    session = Session(pairs, "Ada", folder)
    first, second = pair_keys(pairs)[:2]
    session.label("A")
    session.skip("cannot tell")
    assert session.undo().reason == "cannot tell"
    assert session.card.key == second
    session.close()
    again = Session(pairs, "Ada", folder)
    assert again.card.key == second
    assert again.undo().pair == first
    assert again.card.key == first and read_labels(again.path).labels == {}
    with pytest.raises(LabelError, match="nothing to undo"):
        again.undo()


def test_a_reason_is_asked_for_and_kept(pairs, folder):
    session = Session(pairs, "Ada", folder)
    for empty in ("", "  \n", None):
        with pytest.raises(LabelError, match="say why"):
            session.skip(empty)
    session.skip(' too dark,\n "really" ☂ ')
    (label,) = read_labels(session.path).labels.values()
    assert label.reason == 'too dark, "really" ☂' and label.pick == "skip"
    assert session.progress.skipped == 1
    session.skip("half a smile \ud83d")
    assert [label.reason for label in read_labels(session.path).labels.values()][1][:6] == "half a"


def test_choices_that_cannot_be(pairs, folder):
    session = Session(pairs, "Ada", folder)
    with pytest.raises(LabelError, match="'A', 'B' or 'tie'"):
        session.label("left")
    label_all(session)
    for late in (lambda: session.label("A"), lambda: session.skip("late")):
        with pytest.raises(LabelError, match="all 8 pairs are labelled"):
            late()


def test_the_pace_is_the_median_and_survives_a_restart(pairs, folder):
    session = Session(pairs, "Ada", folder)
    assert session.progress.seconds_left is None
    for key, seconds in zip(pair_keys(pairs), (2.0, 4.0, 600.0), strict=False):
        session._file.append(Label(key, "tie", "chosen", seconds).record())
    session.close()
    assert Session(pairs, "Ada", folder).progress.seconds_left == 5 * 4.0


# --- crashes -------------------------------------------------------------------------------


def test_cut_at_any_byte_the_file_holds_a_beginning_of_what_was_said(pairs, folder, tmp_path):
    session = label_all(Session(pairs.select(range(3)), "Ada", folder))
    data, said = session.path.read_bytes(), list(session.labels)
    cut = tmp_path / "cut.jsonl"
    held = []
    for end in range(len(data) + 1):
        cut.write_bytes(data[:end])
        held.append(list(read_labels(cut).labels))
    assert all(labels == said[: len(labels)] for labels in held)
    assert [len(labels) for labels in held] == sorted(len(labels) for labels in held)
    assert held[-1] == said


@pytest.mark.parametrize("lost", [1, 2, 40, 200, 10_000])
def test_a_torn_file_is_gone_on_with(pairs, folder, lost, capsys):
    session = Session(pairs, "Ada", folder)
    session.skip("ünclear")
    session.label("A")
    session.close()
    data = session.path.read_bytes()
    session.path.write_bytes(data[: max(0, len(data) - lost)])
    before = dict(read_labels(session.path).labels)
    again = label_all(Session(pairs, "Ada", folder))
    assert len(read_labels(again.path).labels) == 8
    assert before.items() <= read_labels(again.path).labels.items()
    assert ("cannot be read" in capsys.readouterr().out) == (lost in (2, 40, 200))


# Without torch, which takes long to import, and which only the check for room brings in.
KILLED = """
import sys, time, types
sys.modules["helpers.dpo.checkpoints"] = types.SimpleNamespace(check_writable=lambda *_: None)
from datasets import Dataset
from helpers.feedback import file
from helpers.feedback.session import Session
from pathlib import Path
file.OWNER_FILE = Path(sys.argv[3])
file.OWNER_FILE.parent.mkdir(exist_ok=True)
session = Session(Dataset.load_from_disk(sys.argv[1]), "Ada", sys.argv[2])
while session.card:
    session.label("A")
    print(len(session.labels), flush=True)
    time.sleep(0.02)
"""


def test_killed_between_two_choices_nothing_confirmed_is_lost(pairs, folder, tmp_path):
    pairs.save_to_disk(tmp_path / "pairs")
    arguments = [str(tmp_path / "pairs"), str(folder), str(label_file.OWNER_FILE)]
    folder.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    for line in child.stdout:
        if line.strip() == "3":
            os.kill(child.pid, signal.SIGKILL)
            break
    confirmed = 3 + len(child.stdout.read().split())
    assert child.wait() == -signal.SIGKILL
    session = Session(pairs, "Ada", folder)  # no lock is left behind
    assert len(session.labels) >= confirmed >= 3
    label_all(session)
    assert len(read_labels(session.path).labels) == 8


def test_a_full_disk_leaves_file_and_session_as_they_were(pairs, folder, monkeypatch):
    session = Session(pairs, "Ada", folder)
    session.label("A")
    before, card = session.path.read_bytes(), session.card

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(label_file.os, "fsync", full)
        with pytest.raises(LabelError, match="not saved: .*ada.jsonl.*No space left"):
            session.label("B")
    assert session.path.read_bytes() == before and session.card == card
    session.label("B")
    assert len(read_labels(session.path).labels) == 2


def test_a_file_that_vanished_is_named(pairs, folder):
    session = Session(pairs, "Ada", folder)
    session.path.unlink()
    with pytest.raises(LabelError, match="ada.jsonl cannot be written"):
        session.label("A")


# --- names and owners ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        None,
        7,
        "a/b",
        "a\\b",
        "../x",
        ".x",
        "a\x00b",
        "x" * 61,
        "a:b",
        "a\u202eb",
        "ΐ" * 60,
    ],
)
def test_names_that_cannot_be_one(pairs, folder, name):
    with pytest.raises(LabelError, match="annotator="):
        Session(pairs, name, folder)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["Ada Lovelace", "José", "李雷", "o'brien-2"])
def test_names_that_can(pairs, folder, name):
    session = Session(pairs, f" {name} ", folder)
    session.label("tie")
    assert read_labels(session.path).annotator == name
    assert session.path.parent == folder


def test_a_second_kernel_under_the_same_name_is_refused(pairs, folder):
    session = Session(pairs, "Ada", folder)
    session.label("A")
    session.close()
    lock = session.path.with_name(".ada.lock")
    program = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
    program += "print('held', flush=True); input()"
    command = [sys.executable, "-c", program, str(lock)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LabelError, match="ada.jsonl is open in another kernel.*'Ada'"):
            Session(pairs, "Ada", folder)
        other.communicate("\n")
    assert len(Session(pairs, "Ada", folder).labels) == 1


def test_a_system_without_locks_still_keeps_people_apart(pairs, folder, monkeypatch):
    def none(self, *args, **kwargs):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(FileLock, "acquire", none)
    mine, theirs = Session(pairs, "Ada", folder), Session(pairs, "Ada", folder)
    theirs.label("A")
    with pytest.raises(LabelError, match="ada.jsonl was changed since this session opened it"):
        mine.label("B")
    assert len(read_labels(theirs.path).labels) == 1


def test_somebody_else_with_the_same_name_is_refused_until_it_is_said_to_be_mine(
    pairs, folder, owner
):
    session = Session(pairs, "Ada", folder)
    session.label("A")
    session.close()
    owner("somebody else")
    before = session.path.read_bytes()
    with pytest.raises(LabelError, match="ada.jsonl was begun by somebody named 'Ada'.*mine=True"):
        Session(pairs, "ada", folder)
    assert session.path.read_bytes() == before
    taken = Session(pairs, "Ada", folder, mine=True)
    assert len(taken.labels) == 1
    taken.close()
    Session(pairs, "Ada", folder).close()  # from now on it is theirs
    owner("me")
    with pytest.raises(LabelError, match="begun by somebody"):
        Session(pairs, "Ada", folder)


def test_the_cell_run_again_goes_on_and_the_old_buttons_say_so(pairs, folder):
    old = Session(pairs, "Ada", folder)
    old.label("A")
    new = Session(pairs, "Ada", folder)
    assert len(new.labels) == 1
    with pytest.raises(LabelError, match="changed since"):
        old.label("B")
    new.label("B")
    assert len(read_labels(new.path).labels) == 2


def test_names_of_one_file_are_told_apart(pairs, folder):
    Session(pairs, "a b", folder).close()
    with pytest.raises(LabelError, match="a_b.jsonl holds labels by 'a b'"):
        Session(pairs, "a_b", folder)


def test_labels_of_other_pairs_are_refused(pairs, folder):
    session = Session(pairs, "Ada", folder)
    session.label("A")
    session.close()
    with pytest.raises(LabelError, match="ada.jsonl holds 1 labels of other pairs"):
        Session(pairs.select(range(5)), "Ada", folder)
    swapped = pairs.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    with pytest.raises(LabelError, match="other pairs"):
        Session(swapped, "Ada", folder)
    assert len(Session(pairs.select([3, 1, 0, 2, 7, 6, 5, 4]), "Ada", folder).labels) == 1


# --- data and folders that cannot be -------------------------------------------------------


def test_data_that_cannot_be_labelled(pairs, folder):
    bad = {
        "raw column `question` is missing": pairs.remove_columns("question"),
        "raw column": to_conversational(pairs),
        "is a list": [dict(row) for row in pairs],
        "is a IterableDataset": IterableDataset.from_generator(lambda: iter(())),
        "duplicate_pair": pairs.select([0, 1, 0]),
        "no rows": pairs.select([]),
    }
    for message, data in bad.items():
        with pytest.raises(PreferenceDataError, match=message):
            Session(data, "Ada", folder)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written(pairs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write to"):
        Session(pairs, "Ada", tmp_path / "file")
    (tmp_path / "labels" / "ada.jsonl").mkdir(parents=True)
    with pytest.raises(LabelError, match="ada.jsonl"):
        Session(pairs, "Ada", tmp_path / "labels")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\ntwo\nthree\n", "is not a file of labels"),
        ('{"pair": "x", "pick": "left", "left": "chosen"}\n', "line 1 of .* is not a label"),
        ('{"question": "?"}\n', "line 1 of .* is not a label"),
        (
            '{"annotator": "Ada", "pairs": "x"}\n{"annotator": "Bob", "pairs": "x"}\n',
            "'Ada' and by 'Bob'",
        ),
        ('{"annotator": null, "pairs": "x"}\n', "line 1 of .* has annotator=None, not a text"),
        ('{"annotator": "Ada", "pairs": "x"}\n{"undo": [1]}\n', "line 2 of .* has undo="),
        ('{"pair": ["x"], "pick": "tie", "left": "chosen"}\n', "line 1 of .* is not a label"),
        ('{"annotator": "Ada", "pairs": "x"}\r{"undo": "y"}\r', "other line ends"),
        ('{"annotator": "Ada"}\n'.encode("utf-16").decode("latin-1"), "another encoding"),
        ("[" * 10**5 + "\n[\n", "is not a file of labels"),
    ],
)
def test_files_that_are_not_labels_are_named(pairs, folder, text, message):
    folder.mkdir()
    (folder / "ada.jsonl").write_bytes(text.encode("latin-1"))
    for read in (lambda: Session(pairs, "Ada", folder), lambda: read_votes(folder, pairs)):
        with pytest.raises(LabelError, match=message):
            read()
    assert (folder / "ada.jsonl").read_bytes() == text.encode("latin-1")


# --- the widget, without its page ----------------------------------------------------------


@pytest.fixture
def widget(pairs, folder):
    return annotate(Session(pairs, "Ada", folder))


def send(widget, action, value=None, pair=None):
    card = widget.view["card"]
    widget._act(
        None, {"action": action, "pair": pair or (card and card["key"]), "value": value}, []
    )
    return widget.view


def test_the_buttons_save(widget):
    assert send(widget, "label", "A")["done"] == 1
    assert send(widget, "label", "B")["done"] == 2
    assert send(widget, "skip", "both are wrong")["skipped"] == 1
    assert send(widget, "undo")["done"] == 2
    saved = read_labels(widget.session.path).labels
    assert [label.side for label in saved.values()] == ["A", "B"]


def test_a_second_click_does_not_label_the_next_pair(widget):
    first = widget.view["card"]["key"]
    send(widget, "label", "A")
    reply = widget.view["reply"]
    assert send(widget, "label", "A", pair=first)["done"] == 1
    assert widget.view["reply"] > reply  # the page waits for an answer


def test_what_was_not_saved_is_said_and_the_card_stays(widget):
    card = widget.view["card"]
    widget.session.path.unlink()
    view = send(widget, "label", "A")
    assert "not saved" in view["error"] and view["done"] == 0 and view["card"] == card


def test_at_the_end_there_is_no_card_and_undo_brings_it_back(widget):
    for _ in range(8):
        send(widget, "label", "tie")
    assert widget.view["card"] is None and widget.picture == b""
    assert send(widget, "undo")["card"]["number"] == 8


def test_without_a_front_end_a_sentence_stands_in(widget):
    data, _ = widget._repr_mimebundle_()
    assert WIDGET in data
    for kind in ("text/plain", "text/html"):
        assert "live kernel" in data[kind] and "0 of 8" in data[kind]
    assert str(widget.session.path.parent) not in data["text/html"]


def test_a_picture_keeps_its_bytes_unless_it_is_too_large_to_send(pairs):
    stored = pairs.cast_column("image", Image(decode=False))[0]["image"]
    assert label_widget.shown_picture(stored)[0] == stored["bytes"]
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    file = io.BytesIO()
    PILImage.fromarray(noise).save(file, "JPEG", quality=95)
    data, size = label_widget.shown_picture({"bytes": file.getvalue(), "path": None})
    assert size == (1024, 768) and len(data) < len(file.getvalue())


# --- one dataset of several annotators -----------------------------------------------------


def test_a_folder_merges_by_majority(pairs, folder):
    keys = pair_keys(pairs)
    for name, sides in {"Ada": "ccrtk", "Bob": "crrtk", "Cy": "cctct"}.items():
        session = Session(pairs, name, folder)
        for letter in sides:
            card = session.card
            wish = {"c": right_side(card), "r": "AB"[right_side(card) == "A"], "t": "tie"}
            session.skip("dark") if letter == "k" else session.label(wish[letter])
        session.close()
    votes = read_votes(folder, pairs)
    assert list(votes) == ["Ada", "Bob", "Cy"]
    assert list(verdicts(votes).values()) == ["chosen", "chosen", "rejected", "chosen", "tie"]
    assert set(conflicts(votes)) == set(keys[1:4])
    assert conflicts(votes)[keys[1]] == {"Ada": "chosen", "Bob": "rejected", "Cy": "chosen"}
    assert len(conflict_cards(votes, pairs)) == 3

    merged = to_preferences(votes, pairs)
    assert merged["idx"] == [0, 1, 2, 3]
    assert merged[2]["chosen"] == pairs[2]["rejected"]
    about = json.loads(merged[2]["origin_split"])
    assert about["votes"] == {"Ada": "chosen", "Bob": "chosen", "Cy": "tie"}
    assert about["as_in_source"] is False and about["source"] == pairs[2]["origin_split"]
    assert len(to_preferences(votes, pairs, ties="both")) == 6
    with pytest.raises(ValueError, match="ties='keep'"):
        to_preferences(votes, pairs, ties="keep")


def test_what_comes_out_is_raw_sound_and_has_the_same_bytes(pairs, folder):
    simulate(pairs, folder, "Ada", 0.5)
    merged = to_preferences(read_votes(folder, pairs), pairs)
    assert tuple(merged.column_names) == RAW_COLUMNS
    assert check_pairs(merged) == [] and check_pairs(to_conversational(merged)) == []
    digests = [
        [image_digest(image) for image in data.cast_column("image", Image(decode=False))["image"]]
        for data in (pairs, merged)
    ]
    assert digests[0] == digests[1]


def test_pairs_with_the_four_needed_columns_alone_are_enough(pairs, folder):
    bare = pairs.select_columns(["image", "question", "chosen", "rejected"])
    simulate(bare, folder, "Ada")
    merged = to_preferences(read_votes(folder, bare), bare)
    assert tuple(merged.column_names) == RAW_COLUMNS and check_pairs(merged) == []


def test_two_files_under_one_name_are_refused(pairs, folder):
    simulate(pairs, folder, "Ada")
    (folder / "ada (1).jsonl").write_bytes((folder / "ada.jsonl").read_bytes())
    with pytest.raises(LabelError, match=r"ada \(1\).jsonl and .*ada.jsonl are both by 'Ada'"):
        read_votes(folder, pairs)


def test_folders_that_do_not_merge(pairs, folder, capsys):
    with pytest.raises(LabelError, match="there are no labels in .*labels"):
        read_votes(folder, pairs)
    Session(pairs, "Bob", folder).close()
    (folder / "empty.jsonl").write_text("")
    with pytest.raises(LabelError, match="there are no labels"):
        read_votes(folder, pairs)
    assert "empty.jsonl is empty" in capsys.readouterr().out
    simulate(pairs, folder, "Ada")
    with pytest.raises(LabelError, match="ada.jsonl has 3 labels of other pairs"):
        read_votes(folder, pairs.select(range(5)))
    (folder / "bob.jsonl").unlink()
    (folder / "empty.jsonl").unlink()
    votes = read_votes(folder, pairs)
    for use in (conflict_cards, to_preferences):
        with pytest.raises(LabelError, match="about 3 pairs that are not among these 5"):
            use(votes, pairs.select(range(5)))


def test_ties_alone_make_no_dataset(pairs, folder):
    label_all(Session(pairs, "Ada", folder), lambda card: "tie")
    votes = read_votes(folder, pairs)
    with pytest.raises(LabelError, match="no pair has an answer that won"):
        to_preferences(votes, pairs)
    assert check_pairs(to_preferences(votes, pairs, ties="both")) == []


# --- agreement -----------------------------------------------------------------------------


def table(counts):
    """Two annotators' lists from {(first, second): how often}."""
    both = [pair for pair, count in counts.items() for _ in range(count)]
    return [a for a, _ in both], [b for _, b in both]


def test_kappa_is_cohens():
    # By hand: 0.70 observed, 0.50 * 0.60 + 0.50 * 0.40 = 0.50 by chance.
    yes_no = {("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}
    found = cohen_kappa(*table(yes_no))
    assert math.isclose(found.value, 0.4) and found.low < 0.4 < found.high and found.n == 50
    # 0.8 observed, 0.5 * 0.5 + 0.3 * 0.4 + 0.2 * 0.1 = 0.39 by chance.
    three = {("a", "a"): 4, ("a", "b"): 1, ("b", "b"): 3, ("c", "a"): 1, ("c", "c"): 1}
    assert math.isclose(cohen_kappa(*table(three)).value, (0.8 - 0.39) / 0.61)


def test_kappa_at_its_ends():
    assert cohen_kappa("abab", "abab").value == 1
    assert cohen_kappa("abab", "baba").value == -1
    assert abs(cohen_kappa(*table(dict.fromkeys(["aa", "ab", "ba", "bb"], 5))).value) < 1e-12
    assert math.isnan(cohen_kappa("aaaa", "aaaa").value)
    assert cohen_kappa("aaaa", "abab").value == 0
    for few in ([], ["a"]):
        with pytest.raises(ValueError, match="two at least"):
            cohen_kappa(few, few)
    with pytest.raises(ValueError, match="go together"):
        cohen_kappa("ab", "a")


def test_two_who_are_always_right_agree_fully(scenes, folder):
    pairs = raw(scenes, 3)
    for name in ("Ada", "Bob"):
        simulate(pairs, folder, name)
    found = agreement(read_votes(folder, pairs), "Ada", "Bob")
    assert found.same.value == 1 and found.kappa.value == 1 and found.same.items == 18
    assert found.same.n == 6  # pictures, which pairs share


def test_guessing_is_no_agreement_beyond_chance():
    rng = np.random.default_rng(0)
    found = cohen_kappa(*rng.choice(["first", "second"], (2, 2000)).tolist())
    assert abs(found.value) < 0.05 and found.low < 0 < found.high


def test_too_few_common_pairs_are_said_and_the_report_goes_on(pairs, folder):
    simulate(pairs, folder, "Ada")
    Session(pairs, "Bob", folder).label("A")
    votes = read_votes(folder, pairs)
    with pytest.raises(ValueError, match="Ada and Bob: the two have 1 labelled pairs in common"):
        agreement(votes, "Ada", "Bob")
    assert "Ada and Bob: the two have 1" in report(votes)
    assert "majority" in report(votes)


def test_position_bias_is_seen(pairs, folder):
    left = label_all(Session(pairs, "Lefty", folder), lambda card: "A")
    assert left_share(left.labels).value == 1
    assert accuracy(picks_of(left.labels)).value == 0.5  # half of the true ones were on the left
    fair = label_all(Session(pairs, "Ada", folder))
    assert left_share(fair.labels).value == 0.5
    assert accuracy(picks_of(fair.labels)).value == 1
    ties = label_all(Session(pairs, "Tie", folder), lambda card: "tie")
    for figure in (lambda: left_share(ties.labels), lambda: accuracy(picks_of(ties.labels))):
        with pytest.raises(ValueError, match="no choice between A and B"):
            figure()


def test_the_majority_is_compared_with_the_truth_too(pairs, folder):
    for name, right in (("Ada", 1), ("Bob", 1), ("Wrong", 0)):
        simulate(pairs, folder, name, right)
    votes = read_votes(folder, pairs)
    assert accuracy(verdicts(votes)).value == 1
    assert accuracy(picks_of(votes["Wrong"])).value == 0
    assert accuracy(verdicts(votes)).n == 4


def test_pairs_about_one_picture_are_known_as_such(pairs):
    keys = pair_keys(pairs)
    assert len(set(keys)) == 8 and len({picture_of(key) for key in keys}) == 4
    with pytest.raises(LabelError, match="row 2 repeats row 0"):
        pair_keys(pairs.select([0, 1, 0]))
