"""Pairs from the Hub: the shards' own bytes, kept on disk, however often the line breaks."""

import io
import math
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, List, Value

from helpers.pairs import rlaifv
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.pairs.images import RAW_COLUMNS, rows
from helpers.pairs.load import load_raw, split_by_image
from helpers.pairs.rlaifv import hub_pairs, is_held, source_of, store_of
from helpers.setup import hub as hub_sentences
from helpers.setup.storage import PreferenceDataError, StorageError
from tests.standin import CARD, formatted, rlaifv_shards

NAME = "openbmb/RLAIF-V-Dataset"
TRACK = SimpleNamespace(name="t4", dataset=NAME, train_pairs=20, eval_pairs=3)
COUNT = 120  # pairs, in three shards
SHARDS = rlaifv_shards(COUNT)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Batches that a shard of 40 pairs fills several times; no waiting."""
    monkeypatch.setattr(rlaifv, "BATCH", 8)
    monkeypatch.setattr(hub_sentences, "WAITS", (0, 0))
    real_sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: real_sleep(min(seconds, 0.01)))


@pytest.fixture
def real(hub):
    hub.add("datasets", NAME, {"README.md": CARD, **SHARDS})
    hub.requests.clear()
    return hub


def by_idx(files):
    """{idx: row} of all shards, images as stored."""
    tables = [pyarrow.parquet.read_table(io.BytesIO(data)) for data in files.values()]
    return {row["idx"]: row for table in tables for row in table.to_pylist()}


def images(pairs):
    return [row["image"]["bytes"] for row in rows(pairs)]


def asked(hub):
    return [path for method, path in hub.requests if method == "GET" and ".parquet" in path]


def folder_of(tmp_path, **files):
    """A local dataset: {file stem: parquet bytes, a Table or a list of rows}."""
    (tmp_path / "source").mkdir()
    for stem, data in files.items():
        path = tmp_path / "source" / f"{stem}.parquet"
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            data = pyarrow.Table.from_pylist(data) if isinstance(data, list) else data
            pyarrow.parquet.write_table(data, path)
    return str(tmp_path / "source")


# --- what comes out ----------------------------------------------------------------------------


def test_rows_are_those_of_the_shards_to_the_byte(real, tmp_path):
    pairs, known = load_raw(TRACK, "train", 30, folder=tmp_path), by_idx(SHARDS)
    assert pairs.column_names == list(RAW_COLUMNS)
    assert len(set(pairs["idx"])) == 30
    for row, stored in zip(pairs.remove_columns("image"), rows(pairs), strict=True):
        expected = known[row["idx"]]
        assert stored["image"] == expected["image"]
        assert row == {k: v for k, v in expected.items() if k != "image"}
    assert pairs[0]["image"].format == "JPEG" and pairs.cache_files  # mapped, not in memory
    assert check_pairs(to_conversational(pairs)) == []


def test_one_shard_serves_both_splits_and_the_second_call_makes_no_request(real, tmp_path):
    first = load_raw(TRACK, "train", 30, folder=tmp_path)
    test = load_raw(TRACK, "test", 3, folder=tmp_path)
    assert len(set(asked(real))) == len(asked(real)) == 1
    real.requests.clear()
    assert load_raw(TRACK, "train", 30, folder=tmp_path)["idx"] == first["idx"]
    assert load_raw(TRACK, "train", 11, folder=tmp_path)["idx"] == first["idx"][:11]
    assert load_raw(TRACK, "test", folder=tmp_path)["idx"] == test["idx"]
    assert real.requests == []


def test_longer_requests_begin_with_shorter_ones_and_go_on_to_the_next_shard(real, tmp_path):
    whole = load_raw(TRACK, "train", 90, folder=tmp_path / "at once")["idx"]
    for count, shards in ((1, 1), (20, 1), (70, 2), (90, 3)):
        real.requests.clear()
        folder = tmp_path / str(count)
        assert load_raw(TRACK, "train", count, folder=folder)["idx"] == whole[:count]
        assert len(set(asked(real))) == shards


def test_the_seed_decides_shard_and_order(real, tmp_path):
    orders = [load_raw(TRACK, "train", 25, seed=s, folder=tmp_path)["idx"] for s in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != sorted(orders[0], key=int)
    firsts = {load_raw(TRACK, "train", 1, seed=s, folder=tmp_path)["idx"][0] for s in range(8)}
    assert len({int(i) // 40 for i in firsts}) == 3, "the seed never starts at another shard"


def test_a_tenth_of_the_images_is_held_by_the_rule_of_split_by_image(real, tmp_path):
    known = by_idx(SHARDS)
    held = sorted(idx for idx, row in known.items() if is_held(row["image"]))
    test = load_raw(TRACK, "test", len(held), folder=tmp_path)
    train = load_raw(TRACK, "train", COUNT - len(held), folder=tmp_path)
    assert sorted(test["idx"]) == held and sorted([*held, *train["idx"]]) == sorted(known)
    assert not set(images(test)) & set(images(train))
    whole = Dataset.from_list(list(known.values())).cast_column("image", Image())
    assert sorted(split_by_image(whole, len(held) / COUNT)[1]["idx"]) == held
    with pytest.raises(PreferenceDataError, match=f"has {len(held)} pairs for test, not 99: ask"):
        load_raw(TRACK, "test", 99, folder=tmp_path)


@pytest.mark.parametrize("name", ("HuggingFaceH4/rlaif-v_formatted", "trl-lib/rlaif-v"))
def test_published_conversations_turn_back_into_raw_pairs(hub, name, tmp_path):
    hub.add("datasets", name, formatted(60, ("train", "test")))
    pairs = hub_pairs(name, "train", 40, folder=tmp_path)
    known = {row["question"]: row for row in by_idx(rlaifv_shards(60)).values()}
    assert pairs.column_names == list(RAW_COLUMNS)
    for row, image in zip(pairs.remove_columns("image"), images(pairs), strict=True):
        expected = known[row["question"]]
        assert image == expected["image"]["bytes"]
        assert (row["chosen"], row["rejected"]) == (expected["chosen"], expected["rejected"])
        assert row["idx"] is None


def test_our_own_conversations_turn_back_too(tmp_path):
    """Written by to_conversational, whose parts are JSON in the file."""
    raw = Dataset.from_list(list(by_idx(rlaifv_shards(30)).values())).cast_column("image", Image())
    source = folder_of(tmp_path)
    to_conversational(raw).to_parquet(f"{source}/train-00000-of-00001.parquet")
    pairs = hub_pairs(source, "train", 20, folder=tmp_path / "kept")
    assert set(images(pairs)) <= set(images(raw)) and set(pairs["chosen"]) <= set(raw["chosen"])


def test_other_types_of_the_same_columns(tmp_path):
    """Large strings, numbers for idx, no HF metadata, columns missing and columns more."""
    full = list(by_idx(rlaifv_shards(30)).values())
    table = pyarrow.table(
        {
            "rejected": pyarrow.array([r["rejected"] for r in full], pyarrow.large_string()),
            "chosen": [r["chosen"] for r in full],
            "more": [1.0] * 30,
            "idx": list(range(30)),
            "image": pyarrow.array([r["image"]["bytes"] for r in full], pyarrow.large_binary()),
            "question": [r["question"] for r in full],
        }
    )
    pairs = hub_pairs(folder_of(tmp_path, train=table), "train", 20, folder=tmp_path / "kept")
    assert pairs.features["idx"] == Value("string") and pairs["ds_name"][0] is None
    for idx, image in zip(pairs["idx"], images(pairs), strict=True):
        assert image == full[int(idx)]["image"]["bytes"]


# --- interruptions -----------------------------------------------------------------------------


def test_the_size_is_said_before_the_download_starts(real, tmp_path, capsys):
    load_raw(TRACK, "train", 5, folder=tmp_path)
    said, shard = capsys.readouterr().out, asked(real)[0].split("/")[-1]
    size = len(SHARDS[f"data/{shard}"]) / 1e6
    assert f"{shard} of {NAME}: {size:.0f} MB" in said
    load_raw(TRACK, "test", 2, folder=tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("how", ("cut", 503, 429))
def test_a_passing_fault_changes_nothing(real, tmp_path, how):
    calm = load_raw(TRACK, "train", 30, folder=tmp_path / "calm")
    real.fail(".parquet", how, times=2)
    again = load_raw(TRACK, "train", 30, folder=tmp_path / "again")
    assert again["idx"] == calm["idx"] and images(again) == images(calm)


CHILD = """
import sys
from huggingface_hub import constants
from helpers.pairs.rlaifv import hub_pairs
constants.DOWNLOAD_CHUNK_SIZE = 1 << 12
hub_pairs("openbmb/RLAIF-V-Dataset", "train", 30, folder=sys.argv[1])
"""


def test_a_killed_download_goes_on_where_it_was(real, tmp_path, monkeypatch, capsys):
    calm = load_raw(TRACK, "train", 30, folder=tmp_path / "calm")
    real.fail(".parquet", "stall")  # half of it, then silence
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "killed")],
        env={**os.environ, **real.environment(), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )

    def come():
        parts = list((tmp_path / "killed").rglob("*.parquet.part"))
        return parts[0].stat().st_size if parts else 0

    deadline = time.monotonic() + 60
    while come() < 20_000 and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    there = come()
    real.ranges.clear()
    capsys.readouterr()
    again = load_raw(TRACK, "train", 30, folder=tmp_path / "killed")
    assert there >= 20_000 and real.ranges == [f"bytes={there}-"], "something came twice"
    assert "MB of it are here already" in capsys.readouterr().out
    assert again["idx"] == calm["idx"] and images(again) == images(calm)


def test_a_full_disk_keeps_what_has_come(real, tmp_path, monkeypatch):
    calm = load_raw(TRACK, "train", 30, folder=tmp_path / "calm")["idx"]

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for owner, name in ((hub_sentences, "http_get"), (os, "fsync")):
        with monkeypatch.context() as patched:
            load_raw(TRACK, "train", 1, folder=tmp_path / f"{name} full") if name == "fsync" else 0
            patched.setattr(owner, name, full)
            with pytest.raises(PreferenceDataError, match="No space left.*make room"):
                load_raw(TRACK, "train", 30, folder=tmp_path / f"{name} full")
        assert load_raw(TRACK, "train", 30, folder=tmp_path / f"{name} full")["idx"] == calm


def test_two_notebooks_at_once_download_once(real, tmp_path):
    found = []

    def read():
        found.append(load_raw(TRACK, "train", 30, folder=tmp_path)["idx"])

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] and len(asked(real)) == 1


# --- what can go wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("part", ("/api/datasets", ".parquet"))
@pytest.mark.parametrize(
    ("status", "sentence"),
    ((404, "not there, or not for you"), (401, "hf auth login"), (403, "gated|not for you"),
     (429, "too many requests"), (503, "broke"), ("cut", "broke")),
)  # fmt: skip
def test_each_refusal_is_one_sentence_that_names_the_dataset(
    real, tmp_path, part, status, sentence, capsys
):
    for method in ("GET", "HEAD"):
        real.fail(part, status, times=math.inf, method=method)
    with pytest.raises(PreferenceDataError, match=sentence) as caught:
        load_raw(TRACK, "train", 20, folder=tmp_path)
    assert NAME in str(caught.value) and "\n" not in str(caught.value)
    if status in (503, "cut", 429):
        assert "try 1 of 3" in "".join(capsys.readouterr())
    real.failures.clear()
    assert len(load_raw(TRACK, "train", 20, folder=tmp_path)) == 20


def test_a_gated_dataset_says_how_to_get_in(hub, tmp_path, monkeypatch):
    hub.add("datasets", NAME, {"README.md": CARD, **SHARDS}, gated=True)
    assert len(load_raw(TRACK, "train", 5, folder=tmp_path / "owner")) == 5
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    monkeypatch.setattr(rlaifv, "FOLDER", tmp_path)
    with pytest.raises(PreferenceDataError, match="gated: ask for access") as caught:
        load_raw(TRACK, "train", 5)
    assert "hf_stranger" not in str(caught.value)


def test_without_a_network_kept_pairs_are_there_and_others_are_one_sentence(
    real, tmp_path, monkeypatch
):
    load_raw(TRACK, "train", 5, folder=tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(load_raw(TRACK, "train", 30, folder=tmp_path)) == 30  # of the shard on the disk
    for folder, count in ((tmp_path, 90), (tmp_path / "none", 5)):
        with pytest.raises(PreferenceDataError, match="not on this disk and HF_HUB_OFFLINE"):
            load_raw(TRACK, "train", count, folder=folder)


@pytest.mark.parametrize("name", ("nobody/nothing", "a/b/c", "no such folder", "/nowhere/at/all"))
def test_a_dataset_that_is_not_there(hub, tmp_path, name):
    with pytest.raises(PreferenceDataError, match=f"{name} .*check the name"):
        hub_pairs(name, "train", 5, folder=tmp_path)


@pytest.mark.parametrize("damage", (lambda d: b"<html>sorry</html>" * 900,
                                    lambda d: d[:9000] + bytes(20000) + d[29000:]))  # fmt: skip
def test_a_damaged_shard_is_named_and_fetched_anew(hub, tmp_path, damage):
    hub.add("datasets", NAME, {path: damage(data) for path, data in SHARDS.items()})
    with pytest.raises(PreferenceDataError, match=r"train-0000\d.*(not parquet|damaged)"):
        load_raw(TRACK, "train", 30, folder=tmp_path)
    repo = hub.repos["datasets", NAME]
    repo.commits[repo.sha] |= SHARDS
    assert len(load_raw(TRACK, "train", 30, folder=tmp_path)) == 30


@pytest.mark.parametrize("column", ("image", "question", "chosen", "rejected"))
def test_a_missing_column_is_named(tmp_path, column):
    table = pyarrow.Table.from_pylist(list(by_idx(rlaifv_shards(12)).values()))
    source = folder_of(tmp_path, train=table.drop_columns(column))
    with pytest.raises(PreferenceDataError, match=f"`{column}` is missing in .*train.parquet"):
        hub_pairs(source, "train", 5, folder=tmp_path / "kept")
    wrong = table.drop_columns(column).append_column(column, pyarrow.array([["a"]] * 12))
    pyarrow.parquet.write_table(wrong, f"{source}/train.parquet")
    with pytest.raises(PreferenceDataError, match=f"`{column}` of .* holds list"):
        hub_pairs(source, "train", 5, folder=tmp_path / "kept")


def test_empty_shards_withhold_nothing(tmp_path):
    table = pyarrow.Table.from_pylist(list(by_idx(rlaifv_shards(30)).values()))
    files = {f"train-{i}": table.slice(0, 0) for i in range(4)}
    source = folder_of(tmp_path, **files)
    with pytest.raises(PreferenceDataError, match="source holds no pairs"):
        hub_pairs(source, "train", 1, folder=tmp_path / "kept")
    pyarrow.parquet.write_table(table, f"{source}/train-2.parquet")
    assert len(hub_pairs(source, "train", 20, folder=tmp_path / "kept")) == 20


@pytest.mark.parametrize(("split", "count"), (("validation", 1), ("train", 0), ("test", -3)))
def test_a_wrong_split_or_count_is_refused_at_once(hub, tmp_path, split, count):
    with pytest.raises(ValueError, match=f"split='{split}', count={count}"):
        hub_pairs(NAME, split, count, folder=tmp_path)
    assert hub.requests == []


def test_a_folder_with_brackets_in_its_name(tmp_path):
    source = tmp_path / "mine [v2]*"
    source.mkdir()
    for path, data in SHARDS.items():
        (source / path.split("/")[1]).write_bytes(data)
    assert len(hub_pairs(str(source), "train", 20, folder=tmp_path / "kept")) == 20


MESSAGES = List({"role": Value("string"), "content": Value("string")})
CHAT = Features(images=List(Image()), prompt=MESSAGES, chosen=MESSAGES, rejected=MESSAGES)


@pytest.mark.parametrize(
    ("change", "sentence"),
    (
        ({"images": [{"bytes": b"x"}, {"bytes": b"y"}]}, "has 2 images"),
        ({"images": []}, "has no images"),
        ({"prompt": [{"role": "user", "content": "a"}] * 2}, "`prompt` .* not one message"),
        ({"chosen": [{"role": "user", "content": "a"}]}, "`chosen` .* not one message"),
        ({"rejected": []}, "`rejected` .* not one message"),
    ),
)
def test_conversations_without_a_raw_form_are_refused(tmp_path, change, sentence):
    row = {
        "images": [{"bytes": b"x", "path": None}],
        "prompt": [{"role": "user", "content": "What?"}],
        "chosen": [{"role": "assistant", "content": "A dog."}],
        "rejected": [{"role": "assistant", "content": "A cat."}],
    }
    source = folder_of(tmp_path)
    Dataset.from_list([row, row | change], features=CHAT).to_parquet(f"{source}/train.parquet")
    with pytest.raises(PreferenceDataError, match=sentence):
        hub_pairs(source, "train", 2, folder=tmp_path)


def content(value):
    return [{"role": "user", "content": value}]


@pytest.mark.parametrize(
    "prompt",
    ("What?", "W", 3, ["W"], content(["What?"]), content(["null"]), content(["[1]"]), content([3]),
     content({"text": "What?"}), content(['{"type": "text", "text": 3}']),
     content(['{"type": "text"}'])),
)  # fmt: skip
def test_odd_contents_are_refused_by_the_same_sentence(tmp_path, prompt):
    answer = [{"role": "assistant", "content": "A dog."}]
    source = folder_of(
        tmp_path, train=[{"image": b"x", "prompt": prompt, "chosen": answer, "rejected": answer}]
    )
    with pytest.raises(PreferenceDataError, match="`prompt` .* not one message of the user"):
        hub_pairs(source, "train", 1, folder=tmp_path / "kept")


def test_no_train_split_and_no_parquet(tmp_path):
    for file, sentence in (("test.parquet", "no split `train`"), ("train.csv", "no parquet")):
        source = tmp_path / file.split(".")[1]
        source.mkdir()
        Dataset.from_list([{"a": 1}]).to_parquet(source / file)
        with pytest.raises(PreferenceDataError, match=sentence):
            hub_pairs(str(source), "train", 1, folder=tmp_path / "kept")


def test_an_unwritable_folder_is_named(real, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="another folder"):
        load_raw(TRACK, "train", 5, folder=tmp_path / "file")


# --- what is kept ------------------------------------------------------------------------------


def test_licence_and_revision_are_said_once_and_kept(real, tmp_path, capsys):
    with pytest.raises(PreferenceDataError, match="no pairs .* are kept yet"):
        source_of(NAME, tmp_path)
    load_raw(TRACK, "train", 5, folder=tmp_path)
    revision, said = real.repos["datasets", NAME].sha, capsys.readouterr().out
    assert "cc-by-nc-4.0" in said and revision[:8] in said
    load_raw(TRACK, "train", 9, seed=3, folder=tmp_path)
    assert ", revision" not in capsys.readouterr().out
    source = source_of(NAME, tmp_path)
    assert (source.revision, source.licence) == (revision, "cc-by-nc-4.0")


def test_no_licence_is_said_too(hub, tmp_path, capsys):
    for name, card in (("a/none", {}), ("a/bare", {"README.md": "# Pairs"})):
        hub.add("datasets", name, {**card, **SHARDS})
        hub_pairs(name, "train", 5, folder=tmp_path)
        assert "no licence stated" in capsys.readouterr().out


def test_a_new_revision_is_never_mixed_in(real, tmp_path):
    before = load_raw(TRACK, "train", 20, folder=tmp_path)["idx"]
    real.add("datasets", NAME, {"README.md": CARD, **rlaifv_shards(COUNT, seed=5)})
    pairs, old = load_raw(TRACK, "train", 60, folder=tmp_path), by_idx(SHARDS)
    assert pairs["idx"][:20] == before
    assert images(pairs) == [old[idx]["image"]["bytes"] for idx in pairs["idx"]]


def test_a_damaged_file_of_kept_pairs_says_what_to_remove(real, tmp_path):
    load_raw(TRACK, "train", 5, folder=tmp_path)
    (file,) = store_of(NAME, tmp_path).rglob("*.arrow")
    file.write_bytes(b"no pairs")
    with pytest.raises(PreferenceDataError, match=f"{file} is damaged.*remove it"):
        load_raw(TRACK, "train", 5, folder=tmp_path)


def test_a_changed_local_folder_is_read_anew(tmp_path):
    for number, seed in enumerate((0, 7)):
        data = rlaifv_shards(30, 1, seed)["data/train-00000-of-00001.parquet"]
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        (source / "train.parquet").write_bytes(data)
        os.utime(source / "train.parquet", (number, number))
        pairs = hub_pairs(str(source), "train", 10, folder=tmp_path / "kept")
        assert set(images(pairs)) <= {r["image"]["bytes"] for r in by_idx({"": data}).values()}
