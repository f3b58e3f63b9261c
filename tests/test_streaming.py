"""Streamed pairs: the shards' own bytes, kept on disk, the same however often the line breaks."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, List, Value, load_dataset

from helpers.pairs import rlaifv as streaming
from helpers.pairs import shards, sources
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.pairs.images import RAW_COLUMNS, PreferenceDataError, rows
from helpers.pairs.load import load_raw
from helpers.pairs.rlaifv import is_test, shuffled, stream_pairs
from helpers.setup import hub as remote
from tests.hub_protocol import Handler
from tests.standin import CARD, formatted, rlaifv_shards

NAME = "openbmb/RLAIF-V-Dataset"
TRACK = SimpleNamespace(name="t4", dataset=NAME, train_pairs=20, eval_pairs=3)
COUNT = 120


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A buffer, turns and blocks that 120 pairs fill several times; no waiting."""
    monkeypatch.setattr(streaming, "BUFFER", 16)
    monkeypatch.setattr(shards, "TURN", 8)
    monkeypatch.setattr(remote, "BLOCK", 1 << 14)
    monkeypatch.setattr(remote, "WAITS", (0, 0))


@pytest.fixture
def parquet_files():
    return rlaifv_shards(COUNT)


@pytest.fixture
def real(hub, parquet_files):
    hub.add("datasets", NAME, {"README.md": CARD, **parquet_files})
    hub.requests.clear()
    return hub


def by_idx(files):
    """{idx: row} of all shards, images as stored."""
    tables = [pyarrow.parquet.read_table(io.BytesIO(data)) for data in files.values()]
    return {row["idx"]: row for table in tables for row in table.to_pylist()}


def images(pairs):
    return [row["image"]["bytes"] for row in rows(pairs)]


def asked(hub, part=".parquet"):
    return [path for method, path in hub.requests if method == "GET" and part in path]


# --- what comes out ----------------------------------------------------------------------------


def test_rows_are_those_of_the_shards_to_the_byte(real, parquet_files, tmp_path):
    pairs = load_raw(TRACK, "train", 40, folder=tmp_path)
    known = by_idx(parquet_files)
    assert pairs.column_names == list(RAW_COLUMNS)
    assert len(set(pairs["idx"])) == 40
    for row, stored in zip(pairs.remove_columns("image"), rows(pairs), strict=True):
        expected = known[row["idx"]]
        assert stored["image"] == expected["image"]
        assert row == {k: v for k, v in expected.items() if k != "image"}
    assert pairs[0]["image"].format == "JPEG"
    assert check_pairs(to_conversational(pairs)) == []


def test_the_second_call_makes_no_request(real, tmp_path):
    first = load_raw(TRACK, "train", 40, folder=tmp_path)
    load_raw(TRACK, "test", 3, folder=tmp_path)
    real.requests.clear()
    again = load_raw(TRACK, "train", 40, folder=tmp_path)
    assert again["idx"] == first["idx"]
    assert load_raw(TRACK, "train", 11, folder=tmp_path)["idx"] == first["idx"][:11]
    assert real.requests == []


def test_a_short_request_does_not_read_the_whole_dataset(real, parquet_files, tmp_path):
    load_raw(TRACK, "train", 5, folder=tmp_path)
    assert len({path for path in asked(real)}) == 1
    load_raw(TRACK, "train", 90, folder=tmp_path)
    assert len(set(asked(real))) == 3


def test_longer_requests_begin_with_shorter_ones(real, tmp_path):
    all_pairs = load_raw(TRACK, "train", 100, folder=tmp_path / "at once")["idx"]
    for count in (1, 20, 70, 100):
        pairs = load_raw(TRACK, "train", count, folder=tmp_path / "in steps")["idx"]
        assert pairs == all_pairs[:count]


def test_the_seed_decides_the_order_and_it_is_shuffled(real, tmp_path):
    orders = [load_raw(TRACK, "train", 60, seed=s, folder=tmp_path)["idx"] for s in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert orders[0][:10] != sorted(orders[0][:10], key=int)
    firsts = {load_raw(TRACK, "train", 1, seed=s, folder=tmp_path)["idx"][0] for s in range(8)}
    assert len({int(i) // 40 for i in firsts}) == 3, "the seed never starts at another shard"


def test_no_image_is_on_both_sides(real, parquet_files, tmp_path):
    stored = {idx: is_test(row["image"]) for idx, row in by_idx(parquet_files).items()}
    count = sum(stored.values())
    test = load_raw(TRACK, "test", count, folder=tmp_path)
    train = load_raw(TRACK, "train", COUNT - count, folder=tmp_path)
    assert sorted(test["idx"]) == sorted(idx for idx in stored if stored[idx])
    assert sorted([*test["idx"], *train["idx"]]) == sorted(stored)
    assert not set(images(test)) & set(images(train))
    with pytest.raises(PreferenceDataError, match=f"test part .* has {count} pairs, not 99"):
        load_raw(TRACK, "test", 99, folder=tmp_path)


def test_the_shuffle_buffer_only_ever_adds():
    whole = list(shuffled(100, True, seed=3))
    assert sorted(whole) == list(range(100))
    for total in (0, 10, 16, 17, 60, 100):
        some = list(shuffled(total, False, seed=3))
        assert len(some) == max(0, total - 16)
        assert some == whole[: len(some)]
    assert all(row - 16 <= i for i, row in enumerate(whole)), "a row came before it was read"
    assert whole != list(shuffled(100, True, seed=4))


def test_the_stock_stream_gives_the_same_rows(real, parquet_files, tmp_path):
    stock = load_dataset(NAME, split="train", streaming=True)
    stock = {row["idx"]: row["image"]["bytes"] for row in stock.decode(False)}
    pairs = load_raw(TRACK, "train", 100, folder=tmp_path)
    assert all(stock[idx] == data for idx, data in zip(pairs["idx"], images(pairs), strict=True))


@pytest.mark.parametrize("name", ("HuggingFaceH4/rlaif-v_formatted", "trl-lib/rlaif-v"))
def test_published_conversations_turn_back_into_raw_pairs(hub, name, tmp_path):
    hub.add("datasets", name, formatted(60, ("train", "test")))
    pairs = stream_pairs(name, "train", 40, folder=tmp_path)
    known = {row["question"]: row for row in by_idx(rlaifv_shards(60)).values()}
    assert pairs.column_names == list(RAW_COLUMNS)
    for row, image in zip(pairs.remove_columns("image"), images(pairs), strict=True):
        expected = known[row["question"]]
        assert image == expected["image"]["bytes"]
        assert (row["chosen"], row["rejected"]) == (expected["chosen"], expected["rejected"])
        assert row["idx"] is None
    assert check_pairs(to_conversational(pairs)) == []


def test_our_own_conversations_turn_back_too(tmp_path):
    """Written by to_conversational, whose parts are JSON in the file."""
    source = tmp_path / "source"
    source.mkdir()
    raw = Dataset.from_list(list(by_idx(rlaifv_shards(30)).values())).cast_column("image", Image())
    to_conversational(raw).to_parquet(source / "train-00000-of-00001.parquet")
    pairs = stream_pairs(str(source), "train", 20, folder=tmp_path / "kept")
    assert set(images(pairs)) <= set(images(raw))
    assert set(pairs["chosen"]) <= set(raw["chosen"])


def test_other_types_of_the_same_columns(tmp_path):
    """Large strings, numbers for idx, no HF metadata, columns missing and columns more."""
    source = tmp_path / "source"
    source.mkdir()
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
    pyarrow.parquet.write_table(table, source / "train.parquet")
    pairs = stream_pairs(str(source), "train", 20, folder=tmp_path / "kept")
    assert pairs.features["idx"] == Value("string") and pairs["ds_name"][0] is None
    for idx, image in zip(pairs["idx"], images(pairs), strict=True):
        assert image == full[int(idx)]["image"]["bytes"]


# --- interruptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ("cut", 503, 429))
def test_a_passing_fault_costs_one_block(real, tmp_path, capsys, how):
    calm = load_raw(TRACK, "train", 60, folder=tmp_path / "calm")["idx"]
    calm_requests = len(asked(real))
    real.requests.clear()
    real.fail(".parquet", how, times=2)
    assert load_raw(TRACK, "train", 60, folder=tmp_path / "again")["idx"] == calm
    assert len(asked(real)) == calm_requests + 2
    assert "".join(capsys.readouterr()).count(f"{NAME} ") >= 2


def test_a_dead_connection_says_what_is_kept_and_goes_on(real, tmp_path, monkeypatch):
    calm = load_raw(TRACK, "train", 90, folder=tmp_path / "calm")["idx"]
    calm_requests = sorted(asked(real))
    real.requests.clear()
    last = asked_shards(calm_requests, tmp_path)
    real.fail(last, "cut", times=3)
    with pytest.raises(PreferenceDataError, match=r"broke.* (\d+) pairs are kept.*run this again"):
        load_raw(TRACK, "train", 90, folder=tmp_path / "dead")
    assert load_raw(TRACK, "train", 90, folder=tmp_path / "dead")["idx"] == calm
    assert len(asked(real)) == len(calm_requests) + 3, "something was downloaded twice"


def asked_shards(requests, folder):
    """The name of the shard that is read last."""
    source = streaming.read_source(streaming.store_of(NAME, 0, folder / "calm"), NAME)
    return source.files[2][0]


CHILD = """
import sys, time
from helpers.pairs import rlaifv as streaming, shards
from helpers.setup import hub as remote

def slowly(*args):
    time.sleep(0.05)
    return ask_range(*args)

streaming.BUFFER, shards.TURN, remote.BLOCK = 16, 8, 1 << 14
ask_range, remote.ask_range = remote.ask_range, slowly
streaming.stream_pairs("openbmb/RLAIF-V-Dataset", "train", 90, folder=sys.argv[1])
"""


@pytest.mark.parametrize("after", (3, 9, 16))
def test_a_killed_download_goes_on_where_it_was(real, tmp_path, after):
    calm = load_raw(TRACK, "train", 90, folder=tmp_path / "calm")
    needed = len(asked(real))
    real.requests.clear()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "killed")],
        env={**os.environ, **real.environment(), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(asked(real)) < after and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert after <= len(asked(real)) < needed, "it was not killed in the middle"
    again = load_raw(TRACK, "train", 90, folder=tmp_path / "killed")
    assert again["idx"] == calm["idx"] and images(again) == images(calm)
    assert len(asked(real)) <= needed + 1, "more than the block on its way came twice"
    assert not list((tmp_path / "killed").rglob("*.part")) or len(asked(real)) == needed + 1


def test_one_row_group_as_large_as_the_shard_is_read_in_part(hub, tmp_path, monkeypatch):
    """As pandas writes it: the first rows come before the last are asked for, and never again."""
    monkeypatch.setattr(remote, "BLOCK", 1 << 18)
    monkeypatch.setattr(shards, "TURN", 64)
    rng = np.random.default_rng(0)
    full = list(by_idx(rlaifv_shards(30)).values())
    big = [{**full[i % 30], "idx": str(i), "image": {"bytes": rng.bytes(4096), "path": None}}
           for i in range(3000)]  # fmt: skip
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(big), file)
    hub.add("datasets", NAME, {"train.parquet": file.getvalue()})
    hub.requests.clear()
    few = stream_pairs(NAME, "train", 20, folder=tmp_path)
    blocks = -(-file.tell() // remote.BLOCK)
    assert len(asked(hub)) < 0.6 * blocks
    more = stream_pairs(NAME, "train", 2000, folder=tmp_path)
    assert more["idx"][:20] == few["idx"]
    everything = stream_pairs(NAME, "train", 2600, folder=tmp_path)
    assert len(asked(hub)) <= blocks
    known = {row["idx"]: row["image"]["bytes"] for row in big}
    assert all(known[i] == b for i, b in zip(everything["idx"], images(everything), strict=True))


def test_blocks_of_finished_row_groups_are_removed(hub, tmp_path):
    (data,) = rlaifv_shards(COUNT, shards=1).values()
    last = pyarrow.parquet.ParquetFile(io.BytesIO(data)).metadata.row_group(2)
    first_byte = min(last.column(i).data_page_offset for i in range(last.num_columns))
    hub.add("datasets", NAME, {"train.parquet": data})
    load_raw(TRACK, "train", 75, folder=tmp_path)
    blocks = streaming.store_of(NAME, 0, tmp_path) / "blocks"
    left = [int(path.name) for path in blocks.rglob("*") if path.is_file()]
    assert left and min(left) >= first_byte // remote.BLOCK - 1
    load_raw(TRACK, "train", 100, folder=tmp_path)
    assert not [path for path in blocks.rglob("*") if path.is_file()]


def test_a_store_of_another_version_with_other_turns_goes_on(real, tmp_path, monkeypatch):
    calm = load_raw(TRACK, "train", 100, folder=tmp_path / "calm")["idx"]
    for turn, count in ((5, 10), (8, 40), (3, 60), (64, 100)):
        monkeypatch.setattr(shards, "TURN", turn)
        assert load_raw(TRACK, "train", count, folder=tmp_path / "mixed")["idx"] == calm[:count]


def test_stopping_early_leaves_no_thread(real, tmp_path):
    load_raw(TRACK, "train", 5, folder=tmp_path / "warm")  # the client's own, once
    before = {thread.ident for thread in threading.enumerate() if not thread.daemon}
    load_raw(TRACK, "train", 5, folder=tmp_path / "cold")
    assert {t.ident for t in threading.enumerate() if not t.daemon} <= before


# --- what can go wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "sentence"),
    ((404, "not there, or not for you"), (401, "hf auth login"), (403, "gated"),
     (429, "too many requests"), (503, "broke"), ("cut", "broke")),
)  # fmt: skip
def test_each_refusal_of_a_shard_is_one_sentence(real, tmp_path, status, sentence):
    real.fail(".parquet", status, times=9)
    with pytest.raises(PreferenceDataError, match=sentence) as caught:
        load_raw(TRACK, "train", 20, folder=tmp_path)
    text = str(caught.value)
    assert NAME in text and "\n" not in text and "0 pairs are kept" in text
    real.failures.clear()
    assert len(load_raw(TRACK, "train", 20, folder=tmp_path)) == 20


@pytest.mark.parametrize("status", (500, 503))
def test_no_answer_about_the_card_is_a_broken_connection(real, tmp_path, status, capsys):
    """huggingface_hub says that the card is not on this disk, `datasets` that nothing is there."""
    for method in ("HEAD", "GET"):
        real.fail("README.md", status, times=999, method=method)
    with pytest.raises(PreferenceDataError, match=f"connection to {NAME} broke"):
        load_raw(TRACK, "train", 20, folder=tmp_path)
    assert "try 1 of 3" in "".join(capsys.readouterr())


def test_a_licence_that_did_not_come_is_not_taken_for_none(real, tmp_path, monkeypatch):
    ask_builder = sources.load_dataset_builder

    def then_lose_the_card(*name, **options):
        builder = ask_builder(*name, **options)
        shutil.rmtree(real.environment()["HF_HOME"])  # or the card would come from there
        for method in ("HEAD", "GET"):
            real.fail("README.md", 503, times=999, method=method)
        return builder

    monkeypatch.setattr(sources, "load_dataset_builder", then_lose_the_card)
    with pytest.raises(PreferenceDataError, match=f"connection to {NAME} broke"):
        load_raw(TRACK, "train", 20, folder=tmp_path)
    real.failures.clear()
    monkeypatch.setattr(sources, "load_dataset_builder", ask_builder)
    load_raw(TRACK, "train", 20, folder=tmp_path)
    assert streaming.source_of(NAME, 0, tmp_path).licence == "cc-by-nc-4.0"


def test_another_part_of_the_file_than_asked_for_is_asked_again(real, tmp_path, monkeypatch):
    calm = images(load_raw(TRACK, "train", 60, folder=tmp_path / "calm"))
    reply, parts = Handler.reply, []

    def wrong(self, data, status=200, headers=None):
        parts.extend([data] * (status == 206))
        if len(parts) == 8 and status == 206:  # the start of the file, as long as was asked for
            data, headers = parts[0][:1] * len(data), {**headers, "Content-Range": "bytes 0-9/99"}
        reply(self, data, status, headers)

    monkeypatch.setattr(Handler, "reply", wrong)
    assert images(load_raw(TRACK, "train", 60, folder=tmp_path / "wrong")) == calm


@pytest.mark.parametrize("status", (404, 401, 429, 503, "cut"))
def test_refusals_at_the_door_name_the_dataset(real, tmp_path, status):
    real.fail("/api/datasets", status, times=99)
    with pytest.raises(PreferenceDataError, match=NAME):
        load_raw(TRACK, "train", 20, folder=tmp_path)


def test_a_gated_dataset_says_how_to_get_in(hub, parquet_files, tmp_path, monkeypatch):
    hub.add("datasets", NAME, {"README.md": CARD, **parquet_files}, gated=True)
    assert len(load_raw(TRACK, "train", 5, folder=tmp_path / "owner")) == 5
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    monkeypatch.setattr(streaming, "FOLDER", tmp_path)
    with pytest.raises(PreferenceDataError, match="gated: ask for access") as caught:
        load_raw(TRACK, "train", 5)
    assert "hf_stranger" not in str(caught.value)


def test_a_dataset_that_is_not_there(hub, tmp_path):
    with pytest.raises(PreferenceDataError, match="nobody/nothing .*check the name"):
        stream_pairs("nobody/nothing", "train", 5, folder=tmp_path)
    for name in ("a/b/c", "no such folder", str(tmp_path / "nothing")):
        with pytest.raises(PreferenceDataError, match="check the name"):
            stream_pairs(name, "train", 5, folder=tmp_path)


def test_a_shard_that_is_not_parquet_is_named(hub, parquet_files, tmp_path):
    parquet_files["data/train-00001-of-00003.parquet"] = b"<html>sorry</html>" * 900
    hub.add("datasets", NAME, {"README.md": CARD, **parquet_files})
    with pytest.raises(PreferenceDataError, match=r"train-00001.*not parquet.* pairs are kept"):
        load_raw(TRACK, "train", 100, folder=tmp_path)


def test_a_shard_broken_in_the_middle_is_fetched_anew(hub, parquet_files, tmp_path):
    good = parquet_files["data/train-00001-of-00003.parquet"]
    parquet_files["data/train-00001-of-00003.parquet"] = good[:9000] + bytes(20000) + good[29000:]
    hub.add("datasets", NAME, {"README.md": CARD, **parquet_files})
    with pytest.raises(PreferenceDataError, match="train-00001.*damaged"):
        load_raw(TRACK, "train", 100, folder=tmp_path)
    repo = hub.repos["datasets", NAME]
    repo.commits[repo.sha]["data/train-00001-of-00003.parquet"] = good
    assert len(load_raw(TRACK, "train", 100, folder=tmp_path)) == 100


@pytest.mark.parametrize("column", ("image", "question", "chosen", "rejected"))
def test_a_missing_column_is_named(tmp_path, column):
    (tmp_path / "source").mkdir()
    table = pyarrow.Table.from_pylist(list(by_idx(rlaifv_shards(12)).values()))
    pyarrow.parquet.write_table(table.drop_columns(column), tmp_path / "source/train.parquet")
    with pytest.raises(PreferenceDataError, match=f"`{column}` is missing in .*train.parquet"):
        stream_pairs(str(tmp_path / "source"), "train", 5, folder=tmp_path / "kept")


def emptied(files, *numbers):
    """The shards, without the rows of some."""
    files = dict(files)
    for path in [sorted(files)[number] for number in numbers]:
        file = io.BytesIO()
        pyarrow.parquet.write_table(
            pyarrow.parquet.read_table(io.BytesIO(files[path])).slice(0, 0), file
        )
        files[path] = file.getvalue()
    return files


def test_an_empty_shard_withholds_nothing(hub, parquet_files, tmp_path):
    for number in range(3):  # one of them is read last
        files = emptied(parquet_files, number)
        hub.add("datasets", f"a/empty-{number}", files)
        count = sum(not is_test(row["image"]) for row in by_idx(files).values())
        assert len(stream_pairs(f"a/empty-{number}", "train", count, folder=tmp_path)) == count
        hub.requests.clear()
        stream_pairs(f"a/empty-{number}", "train", count, folder=tmp_path)
        assert hub.requests == []


def test_a_dataset_without_any_row(hub, parquet_files, tmp_path):
    hub.add("datasets", NAME, emptied(parquet_files, 0, 1, 2))
    with pytest.raises(PreferenceDataError, match=f"{NAME} holds no pairs"):
        stream_pairs(NAME, "train", 1, folder=tmp_path)


@pytest.mark.parametrize(("part", "count"), (("validation", 1), ("train", 0), ("test", -3)))
def test_a_wrong_part_or_count_is_refused_at_once(hub, tmp_path, part, count):
    with pytest.raises(ValueError, match=f"part='{part}', count={count}"):
        stream_pairs(NAME, part, count, folder=tmp_path)
    assert hub.requests == []


def test_a_folder_with_brackets_in_its_name(tmp_path, parquet_files):
    source = tmp_path / "mine [v2]*"
    source.mkdir()
    for path, data in parquet_files.items():
        (source / path.split("/")[1]).write_bytes(data)
    assert len(stream_pairs(str(source), "train", 20, folder=tmp_path / "kept")) == 20


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
    (tmp_path / "source").mkdir()
    row = {
        "images": [{"bytes": b"x", "path": None}],
        "prompt": [{"role": "user", "content": "What?"}],
        "chosen": [{"role": "assistant", "content": "A dog."}],
        "rejected": [{"role": "assistant", "content": "A cat."}],
    }
    bad = Dataset.from_list([row, row | change], features=CHAT)
    bad.to_parquet(tmp_path / "source/train.parquet")
    with pytest.raises(PreferenceDataError, match=sentence):
        stream_pairs(str(tmp_path / "source"), "train", 2, folder=tmp_path)


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
    row = {"image": b"x", "prompt": prompt, "chosen": answer, "rejected": answer}
    (tmp_path / "source").mkdir()
    table = pyarrow.Table.from_pylist([row])
    pyarrow.parquet.write_table(table, tmp_path / "source/train.parquet")
    with pytest.raises(PreferenceDataError, match="`prompt` .* not one message of the user"):
        stream_pairs(str(tmp_path / "source"), "train", 1, folder=tmp_path / "kept")


def test_no_train_split_and_no_parquet(tmp_path):
    for file, sentence in (("test.parquet", "no split `train`"), ("train.csv", "no parquet")):
        source = tmp_path / file.split(".")[1]
        source.mkdir()
        Dataset.from_list([{"a": 1}]).to_parquet(source / file)
        with pytest.raises(PreferenceDataError, match=sentence):
            stream_pairs(str(source), "train", 1, folder=tmp_path / "kept")


def test_a_full_disk_keeps_what_there_is(real, tmp_path, monkeypatch):
    calm = load_raw(TRACK, "train", 60, folder=tmp_path / "calm")["idx"]
    written, fsync = [], os.fsync

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 20:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PreferenceDataError, match="No space left.*make room.* pairs are kept"):
        load_raw(TRACK, "train", 60, folder=tmp_path / "full")
    monkeypatch.setattr(os, "fsync", fsync)
    assert load_raw(TRACK, "train", 60, folder=tmp_path / "full")["idx"] == calm


def test_an_unwritable_folder_is_named(real, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PreferenceDataError, match="another folder"):
        load_raw(TRACK, "train", 5, folder=tmp_path / "file")


# --- what is kept ------------------------------------------------------------------------------


def test_licence_and_revision_are_said_once_and_kept(real, tmp_path, capsys):
    load_raw(TRACK, "train", 5, folder=tmp_path)
    revision = real.repos["datasets", NAME].sha
    said = capsys.readouterr().out
    assert "cc-by-nc-4.0" in said and revision[:8] in said
    load_raw(TRACK, "train", 9, folder=tmp_path)
    assert capsys.readouterr().out == ""
    source = streaming.read_source(streaming.store_of(NAME, 0, tmp_path), NAME)
    assert (source.revision, source.licence) == (revision, "cc-by-nc-4.0")


def test_no_licence_is_said_too(hub, parquet_files, tmp_path, capsys):
    for name, card in (("a/none", {}), ("a/bare", {"README.md": "# Pairs"})):
        hub.add("datasets", name, {**card, **parquet_files})
        stream_pairs(name, "train", 5, folder=tmp_path)
        assert "no licence stated" in capsys.readouterr().out


def test_a_new_revision_is_never_mixed_in(real, tmp_path):
    before = load_raw(TRACK, "train", 30, folder=tmp_path)["idx"]
    other = {path: rlaifv_shards(COUNT, seed=5)[path] for path in rlaifv_shards(COUNT, seed=5)}
    old = by_idx(rlaifv_shards(COUNT))
    real.add("datasets", NAME, {"README.md": CARD, **other})
    pairs = load_raw(TRACK, "train", 60, folder=tmp_path)
    assert pairs["idx"][:30] == before
    assert all(
        old[i]["image"]["bytes"] == b for i, b in zip(pairs["idx"], images(pairs), strict=True)
    )


def test_a_store_of_other_settings_is_refused(real, tmp_path):
    load_raw(TRACK, "train", 5, folder=tmp_path)
    store = streaming.store_of(NAME, 0, tmp_path)
    store.rename(streaming.store_of(NAME, 1, tmp_path))
    with pytest.raises(PreferenceDataError, match="holds .* with seed 0, not .* with seed 1"):
        load_raw(TRACK, "train", 5, seed=1, folder=tmp_path)
    (streaming.store_of(NAME, 1, tmp_path) / "source.json").write_text("{")
    with pytest.raises(PreferenceDataError, match="source.json cannot be read"):
        load_raw(TRACK, "train", 5, seed=1, folder=tmp_path)


def test_a_lost_piece_is_an_error_and_not_other_pairs(real, tmp_path):
    load_raw(TRACK, "train", 60, folder=tmp_path)
    store = streaming.store_of(NAME, 0, tmp_path)
    sorted((store / "rows").iterdir())[2].unlink()
    with pytest.raises(PreferenceDataError, match=f"lacks piece 2 .*remove {store}$"):
        load_raw(TRACK, "train", 60, folder=tmp_path)


def test_a_changed_local_folder_is_read_anew(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number, seed in enumerate((0, 7)):
        data = rlaifv_shards(30, 1, seed)["data/train-00000-of-00001.parquet"]
        (source / "train.parquet").write_bytes(data)
        os.utime(source / "train.parquet", (number, number))
        pairs = stream_pairs(str(source), "train", 10, folder=tmp_path / "kept")
        assert set(images(pairs)) <= {r["image"]["bytes"] for r in by_idx({"": data}).values()}


def test_two_notebooks_at_once_read_once(real, tmp_path):
    found, needed = [], []
    load_raw(TRACK, "train", 60, folder=tmp_path / "calm")
    needed = len(asked(real))
    real.requests.clear()

    def read():
        found.append(load_raw(TRACK, "train", 60, folder=tmp_path / "both")["idx"])

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] and len(asked(real)) == needed
