"""What is kept is whole or absent, whenever the process is killed."""

import signal
import subprocess
import sys

import pytest

from helpers.setup.storage import StorageError, Store, key_of, write_whole
from tools.build_notebooks import ROOT

KILLED = """
import os, signal, sys
from helpers.setup.storage import Store
store = Store(sys.argv[1])
for number in range(100):
    store.add({f"{number}/{part}": "x" * 1000 for part in range(3)})
    if number == 50:
        with open(store.lines, "a") as file:
            file.write('{"51/0": "cut in the mid')
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_goes_on_with_all_that_was_added(tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
    assert run.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert len(store.known) == 51 * 3 and "50/2" in store and "51/0" not in store
    store.add({"51/0": "made once more"})
    assert Store(tmp_path)["51/0"] == "made once more"


def test_a_key_changes_with_every_part_and_not_with_the_order_of_a_dict():
    key = key_of("answers", {"seed": 0, "beta": 0.1}, ["a", "b"])
    assert key == key_of("answers", {"beta": 0.1, "seed": 0}, ["a", "b"])
    others = [
        ("answer", {"seed": 0, "beta": 0.1}, ["a", "b"]),
        ("answers", {"seed": 0}, ["a", "b"]),
    ]
    others += [("answers", {"seed": 0, "beta": 0.1}, ["b", "a"]), ("answers",)]
    assert len({key, *(key_of(*parts) for parts in others)}) == 5
    with pytest.raises(TypeError):
        key_of(object())


def test_texts_of_any_kind_come_back(tmp_path):
    texts = {"a": "two\nlines", "b": "\u2028 and \u0000", "c": "", "d": None, "e": [1.5, "x"]}
    Store(tmp_path).add(texts)
    assert Store(tmp_path).known == texts


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write to .*another folder"):
        Store(tmp_path / "file" / "runs")


def test_a_file_is_replaced_whole(tmp_path):
    path = Store(tmp_path).file(key_of(1), ".png")
    for data in (b"first", b"second"):
        write_whole(path, data)
        assert path.read_bytes() == data and [p.name for p in path.parent.iterdir()] == [path.name]
