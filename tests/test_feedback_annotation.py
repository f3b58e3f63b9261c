"""Labels by people: nothing saved is lost, no two people share a file, the widget says what is.

What the browser's half of the widget does is in test_feedback_browser.py.
"""

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, Image, IterableDataset
from filelock import FileLock
from PIL import Image as PILImage

from helpers.feedback import annotation
from helpers.feedback.agreement import read_votes
from helpers.feedback.annotation import (
    Label,
    LabelError,
    Session,
    image_key,
    left_answers,
    pair_keys,
    read_labels,
)
from helpers.feedback.widget import annotate, shown_picture
from helpers.pairs.format import to_conversational
from helpers.setup.storage import PreferenceDataError, StorageError
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


def right_side(card):
    return "A" if card.left.startswith("true") else "B"


def label_all(session, choose=right_side):
    while (card := session.card) is not None:
        session.label(choose(card))
    return session


@pytest.fixture(scope="session")
def pairs(scenes):
    return raw(scenes[:4])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for labels, in a copy of the course that is nobody's yet."""
    monkeypatch.setattr(annotation, "OWNER_FILE", tmp_path / "owner" / "me")
    return tmp_path / "labels"


@pytest.fixture
def session(pairs, folder):
    return Session(pairs, "Ada", folder)


# --- what is shown, and what is saved ---------------------------------------------------------


def test_sides_are_shuffled_by_name_half_each_way_and_the_card_does_not_tell(pairs, folder):
    keys = pair_keys(pairs)
    orders = [left_answers(keys, f"annotator {i}") for i in range(8)]
    assert all(list(order.values()).count("chosen") == len(keys) // 2 for order in orders)
    assert len({tuple(order[key] for key in keys) for order in orders}) > 4
    assert left_answers(keys, "Ada") == left_answers(keys[::-1], "ada")
    session, lefts = Session(pairs, "Ada", folder), left_answers(keys, "Ada")
    for key, row in zip(keys, pairs, strict=True):
        card = session.card
        assert card.left == row[lefts[key]] != card.right
        assert card.right in (row["chosen"], row["rejected"])
        view = json.dumps(annotate(session).view)
        assert "chosen" not in view and "rejected" not in view
        session.label("tie")


def test_a_key_names_the_image_and_the_pair(pairs):
    keys = pair_keys(pairs)
    assert len(set(keys)) == 8 and len({image_key(key) for key in keys}) == 4
    with pytest.raises(LabelError, match="row 2 repeats row 0"):
        pair_keys(pairs.select([0, 1, 0]))


def test_a_choice_is_in_the_file_before_the_next_card(session):
    for side in ("A", "B", "tie"):
        key, left = session.card.key, session.card.left
        session.label(side)
        label = read_labels(session.path).labels[key]
        assert label.side == (None if side == "tie" else side)
        assert label.left == ("chosen" if left.startswith("true") else "rejected")
    assert session.progress.done == 3 and session.card.number == 4
    label_all(session)
    picked = list(session.labels.values())[3:]  # by content, whichever side it was shown on
    assert {label.pick for label in picked} == {"chosen"}
    assert {label.side for label in picked} == {"A", "B"}


def test_undo_goes_back_one_choice_at_a_time_also_after_a_restart(session, pairs, folder):
    first, second = pair_keys(pairs)[:2]
    session.label("A")
    session.skip("cannot tell")
    assert session.undo().reason == "cannot tell"
    session.close()
    again = Session(pairs, "Ada", folder)
    assert again.card.key == second
    assert again.undo().pair == first
    assert again.card.key == first and read_labels(again.path).labels == {}


def test_a_reason_is_asked_for_and_kept(session):
    for empty in ("", "  \n", None):
        with pytest.raises(LabelError, match="say why"):
            session.skip(empty)
    session.skip(' too dark,\n "really" ☂ ')
    session.skip("half a smile \ud83d")
    first, second = read_labels(session.path).labels.values()
    assert first.reason == 'too dark, "really" ☂' and first.pick == "skip" and not first.side
    assert second.reason.startswith("half a smile") and session.progress.skipped == 2


def test_choices_that_cannot_be(session):
    with pytest.raises(LabelError, match="'A', 'B' or 'tie'"):
        session.label("left")
    with pytest.raises(LabelError, match="nothing to undo"):
        session.undo()
    label_all(session)
    for late in (lambda: session.label("A"), lambda: session.skip("late")):
        with pytest.raises(LabelError, match="all 8 pairs are labelled"):
            late()


def test_the_pace_is_the_median_and_survives_a_restart(session, pairs, folder):
    assert session.progress.seconds_left is None
    session.close()
    times = zip(pair_keys(pairs), (2.0, 4.0, 600.0), strict=False)
    lines = [json.dumps(vars(Label(key, "tie", "chosen", seconds))) for key, seconds in times]
    with open(session.path, "a") as file:
        file.write("\n".join(lines) + "\n")
    assert Session(pairs, "Ada", folder).progress.seconds_left == 5 * 4.0


# --- crashes ----------------------------------------------------------------------------------


def test_cut_at_any_byte_the_file_holds_a_beginning_of_what_was_said(pairs, folder, tmp_path):
    session = label_all(Session(pairs.select(range(3)), "Ada", folder))
    data, said = session.path.read_bytes(), list(session.labels)
    cut, counts = tmp_path / "cut.jsonl", []
    for end in range(len(data) + 1):
        cut.write_bytes(data[:end])
        held = list(read_labels(cut).labels)
        assert held == said[: len(held)]
        counts.append(len(held))
    assert counts == sorted(counts) and counts[-1] == 3


@pytest.mark.parametrize("lost", [1, 2, 40, 200, 10_000])
def test_a_torn_file_is_gone_on_with(session, pairs, folder, lost, capsys):
    session.skip("ünclear")
    session.label("A")
    session.close()
    data = session.path.read_bytes()
    session.path.write_bytes(data[: max(0, len(data) - lost)])
    before = dict(read_labels(session.path).labels)
    again = label_all(Session(pairs, "Ada", folder))
    after = read_labels(again.path).labels
    assert len(after) == 8 and before.items() <= after.items()
    assert ("cannot be read" in capsys.readouterr().out) == (lost in (2, 40, 200))


KILLED = """
import sys
from pathlib import Path
from datasets import Dataset
from helpers.feedback import annotation
annotation.OWNER_FILE = Path(sys.argv[3])
session = annotation.Session(Dataset.load_from_disk(sys.argv[1]), "Ada", sys.argv[2])
while session.card:
    session.label("A")
    print(len(session.labels), flush=True)
"""


def test_killed_between_two_choices_nothing_confirmed_is_lost(pairs, folder, tmp_path):
    pairs.save_to_disk(tmp_path / "pairs")
    arguments = [str(tmp_path / "pairs"), str(folder), str(annotation.OWNER_FILE)]
    command = [sys.executable, "-c", KILLED, *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for line in child.stdout:
        if line.strip() == "3":
            os.kill(child.pid, signal.SIGKILL)
            break
    confirmed = 3 + len(child.stdout.read().split())
    child.wait()
    session = Session(pairs, "Ada", folder)  # no lock is left behind
    assert len(session.labels) >= confirmed >= 3
    label_all(session)
    assert len(read_labels(session.path).labels) == 8


def test_a_full_disk_leaves_file_and_session_as_they_were(session, monkeypatch):
    session.label("A")
    before, card = session.path.read_bytes(), session.card

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LabelError, match="not saved: .*ada.jsonl.*No space left"):
            session.label("B")
    assert session.path.read_bytes() == before and session.card == card
    session.label("B")
    assert len(read_labels(session.path).labels) == 2


# --- names and owners -------------------------------------------------------------------------

LONG = ["x" * 61, "ΐ" * 60]  # the second is 360 bytes in lower case
BAD_NAMES = ["", "  ", None, 7, "a/b", "a\\b", "../x", ".x", "a\x00b", "a:b", "a\u202eb", *LONG]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_cannot_be_one(pairs, folder, name):
    with pytest.raises(LabelError, match="annotator="):
        Session(pairs, name, folder)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["Ada Lovelace", "José", "李雷", "o'brien-2"])
def test_names_that_can(pairs, folder, name):
    session = Session(pairs, f" {name} ", folder)
    session.label("tie")
    assert read_labels(session.path).annotator == name and session.path.parent == folder


def test_a_second_kernel_under_the_same_name_is_refused(session, pairs, folder):
    session.label("A")
    session.close()
    program = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
    program += "print('held', flush=True); input()"
    command = [sys.executable, "-c", program, str(session.path.with_name(".ada.lock"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LabelError, match="ada.jsonl is open in another kernel.*'Ada'"):
            Session(pairs, "Ada", folder)
        other.communicate("\n")
    assert len(Session(pairs, "Ada", folder).labels) == 1


@pytest.mark.parametrize("locks", [True, False])
def test_of_two_open_sessions_the_older_saves_nothing(pairs, folder, monkeypatch, locks):
    """The cell run again in one kernel, or two people on a network drive that has no locks."""

    def none(self, *args, **kwargs):
        raise OSError(95, "Operation not supported")

    if not locks:
        monkeypatch.setattr(FileLock, "acquire", none)
    old = Session(pairs, "Ada", folder)
    old.label("A")
    new = Session(pairs, "Ada", folder)
    assert len(new.labels) == 1
    with pytest.raises(LabelError, match="ada.jsonl was changed or removed since this session"):
        old.label("B")
    new.label("B")
    assert len(read_labels(new.path).labels) == 2


def test_somebody_else_with_the_same_name_is_refused_until_mine(
    session, pairs, folder, monkeypatch
):
    session.label("A")
    session.close()
    me, before = annotation.OWNER_FILE, session.path.read_bytes()
    monkeypatch.setattr(annotation, "OWNER_FILE", me.with_name("somebody else"))
    with pytest.raises(LabelError, match="ada.jsonl was begun by somebody named 'Ada'.*mine=True"):
        Session(pairs, "ada", folder)
    assert session.path.read_bytes() == before
    taken = Session(pairs, "Ada", folder, mine=True)
    assert len(taken.labels) == 1
    taken.close()
    Session(pairs, "Ada", folder).close()  # from now on it is theirs
    monkeypatch.setattr(annotation, "OWNER_FILE", me)
    with pytest.raises(LabelError, match="begun by somebody"):
        Session(pairs, "Ada", folder)


def test_names_of_one_file_and_labels_of_other_pairs_are_told_apart(pairs, folder):
    session = Session(pairs, "a b", folder)
    session.label("A")
    session.close()
    with pytest.raises(LabelError, match="a_b.jsonl holds labels by 'a b'"):
        Session(pairs, "a_b", folder)
    swapped = pairs.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    for other in (pairs.select(range(5)), swapped):
        with pytest.raises(LabelError, match="a_b.jsonl holds 1 labels of other pairs"):
            Session(other, "a b", folder)
    assert len(Session(pairs.select([3, 1, 0, 2, 7, 6, 5, 4]), "a b", folder).labels) == 1


# --- data and folders that cannot be ----------------------------------------------------------


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


def test_a_folder_that_cannot_be_written(pairs, folder):
    folder.mkdir()
    (folder / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write to"):
        Session(pairs, "Ada", folder / "file")
    (folder / "ada.jsonl").mkdir()
    with pytest.raises(LabelError, match="ada.jsonl"):
        Session(pairs, "Ada", folder)


ADA = '{"annotator": "Ada", "pairs": "x"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\ntwo\nthree\n", "is not a file of labels"),
        ('{"pair": "x", "pick": "left", "left": "chosen"}\n', "line 1 of .* is not a label"),
        ('{"question": "?"}\n', "line 1 of .* is not a label"),
        (ADA + '{"annotator": "Bob", "pairs": "x"}\n', "'Ada' and by 'Bob'"),
        ('{"annotator": null, "pairs": "x"}\n', "line 1 of .* is not a label"),
        (ADA + '{"undo": [1]}\n', "line 2 of .* is not a label"),
        ('{"pair": ["x"], "pick": "tie", "left": "chosen"}\n', "line 1 of .* is not a label"),
        ('{"pair": "x", "pick": "skip", "left": "chosen", "reason": 1}\n', "is not a label"),
        (ADA.replace("\n", "\r") + '{"undo": "y"}\r', "other line ends"),
        (ADA.encode("utf-16").decode("latin-1"), "another encoding"),
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


# --- the widget, without its page -------------------------------------------------------------


@pytest.fixture
def widget(session):
    return annotate(session)


def send(widget, action, value=None, pair=None):
    card = widget.view["card"]
    pair = pair or (card and card["key"])
    widget._act(None, {"action": action, "pair": pair, "value": value}, [])
    return widget.view


def test_the_buttons_save_and_a_second_click_does_not_label_the_next_pair(widget):
    first = widget.view["card"]["key"]
    assert send(widget, "label", "A")["done"] == 1
    reply = widget.view["reply"]
    assert send(widget, "label", "A", pair=first)["done"] == 1
    assert widget.view["reply"] > reply  # the page waits for an answer
    assert send(widget, "label", "B")["done"] == 2
    assert send(widget, "skip", "both are wrong")["skipped"] == 1
    assert send(widget, "undo")["done"] == 2
    saved = read_labels(widget.session.path).labels
    assert [label.side for label in saved.values()] == ["A", "B"]
    for _ in range(6):
        send(widget, "label", "tie")
    assert widget.view["card"] is None and widget.picture == b""
    assert send(widget, "undo")["card"]["number"] == 8


def test_what_was_not_saved_is_said_and_the_card_stays(widget):
    card = widget.view["card"]
    widget.session.path.unlink()
    view = send(widget, "label", "A")
    assert "not saved" in view["error"] and view["done"] == 0 and view["card"] == card


def test_without_a_front_end_a_sentence_stands_in(widget):
    data, _ = widget._repr_mimebundle_()
    assert WIDGET in data
    for kind in ("text/plain", "text/html"):
        assert "live kernel" in data[kind] and "0 of 8" in data[kind]
    assert str(widget.session.path.parent) not in data["text/html"]


def test_a_picture_keeps_its_bytes_unless_it_is_too_large_to_send(pairs):
    stored = pairs.cast_column("image", Image(decode=False))[0]["image"]
    assert shown_picture(stored)[0] == stored["bytes"]
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    file = io.BytesIO()
    PILImage.fromarray(noise).save(file, "JPEG", quality=95)
    data, size = shown_picture({"bytes": file.getvalue(), "path": None})
    assert size == (1024, 768) and len(data) < len(file.getvalue())
