"""What is pushed comes back whole, with a card that a stranger can check, and nothing else goes."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import yaml
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard, HfApi, ModelCard
from peft import PeftModel

from helpers.dpo import publish
from helpers.dpo.publish import (
    Data,
    Measured,
    PublishError,
    adapter_card,
    dataset_card,
    push_adapter,
    push_pairs,
    settings_of,
    write_pairs,
)
from helpers.dpo.trainer import dpo_trainer
from helpers.pairs import rlaifv as streaming
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.pairs.images import rows
from helpers.pairs.load import load_raw, split_by_image
from helpers.setup.tracks import TRACKS
from helpers.vlm import pocket
from tests.standin import CARD, formatted, rlaifv_shards
from tools import format_rlaifv

NAME = "openbmb/RLAIF-V-Dataset"
DATA = Data(NAME, "0123abc", "cc-by-nc-4.0", train=24, test=6)
MEASURED = [
    Measured("captions with a false object", 0.35, 0.13, -0.25, -0.19, n=1000),
    Measured("objects named", 0.959, 0.955, -0.012, 0.004, n=1000),
]
BASE = "HuggingFaceTB/SmolVLM-256M-Instruct"
SETTINGS = {"loss": "sigmoid", "beta": 0.1}
PAIRS_CARD = dataset_card("me/pairs", DATA, "by image")
ADAPTER_CARD = adapter_card("me/tuned", BASE, DATA, SETTINGS, [], "CPU")


def write_shards(folder, count=60, shards=2):
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in rlaifv_shards(count, shards).items():
        (folder / Path(path).name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """30 formatted pairs, split, and the raw bytes of their images."""
    folder = tmp_path_factory.mktemp("splits")
    track = SimpleNamespace(name="t4", dataset=str(write_shards(folder / "source" / "data", 30)))
    raw = load_raw(track, "train", 20, folder=folder / "kept")
    train, test = split_by_image(to_conversational(raw), 0.2)
    return {"train": train, "test": test}


@pytest.fixture
def out(splits, tmp_path):
    """A folder of these pairs."""
    return write_pairs(splits, tmp_path / "out", PAIRS_CARD)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """The pocket model after two steps of DPO."""
    pairs = to_conversational(load_raw(TRACKS["pocket"], "train", 4))
    folder, small = tmp_path_factory.mktemp("dpo"), {"per_device_train_batch_size": 2}
    made = dpo_trainer(*pocket.load(), pairs, TRACKS["pocket"], folder, max_steps=2, **small)
    made.train()
    made.save_model(folder)
    return made


def images(pairs):
    return [image["bytes"] for row in rows(pairs) for image in row["images"]]


# --- pairs -------------------------------------------------------------------------------------


def test_pushed_pairs_come_back_as_they_were(hub, splits, out, tmp_path):
    for stray in ("notes.txt", "data/secret.csv", "model.pt"):
        (out / stray).write_text("mine")
    assert push_pairs(out, "me/pairs") == f"{hub.url}/datasets/me/pairs"
    pushed = set(hub.files("datasets", "me/pairs")) - {".gitattributes", "README.md"}
    assert pushed == {f"data/{split}-00000-of-00001.parquet" for split in splits}
    back = load_dataset("me/pairs")
    assert set(back) == {"train", "test"}
    for split, pairs in splits.items():
        assert back[split].features == pairs.features
        assert images(back[split]) == images(pairs)
        texts = ["prompt", "chosen", "rejected"]
        assert back[split].select_columns(texts)[:] == pairs.select_columns(texts)[:]
    assert check_pairs(back["train"], other=back["test"]) == []
    loaded = DatasetCard.load("me/pairs")
    assert loaded.data.license == "cc-by-nc-4.0" and loaded.data.source_datasets == [NAME]
    for fact in ("0123abc", "24", "by image", "cc-by-nc-4.0"):
        assert fact in loaded.text
    assert HfApi().dataset_info("me/pairs").private
    streamed = streaming.hub_pairs("me/pairs", "train", 10, folder=tmp_path)  # by the course
    assert {row["image"]["bytes"] for row in rows(streamed)} <= set(images(splits["train"]))


def test_a_shorter_dataset_leaves_no_shard_of_a_longer_one(hub, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "SHARD", 20_000)
    folder = write_pairs(splits, tmp_path / "out", PAIRS_CARD)
    files = sorted(path.name for path in (folder / "data").iterdir())
    assert len(files) > 3 and files[0].startswith("test-00000-of-")
    again = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert images(again["train"]) == images(splits["train"])
    push_pairs(folder, "me/pairs")
    assert len(hub.files("datasets", "me/pairs")) > 5
    monkeypatch.setattr(publish, "SHARD", 10**9)
    push_pairs(write_pairs({"train": splits["test"]}, folder, PAIRS_CARD), "me/pairs")
    assert [path.name for path in (folder / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert images(load_dataset("me/pairs", split="train")) == images(splits["test"])


@pytest.mark.parametrize("theirs", ("data/sales.parquet", "README.md"))
def test_what_others_wrote_is_never_replaced(hub, splits, tmp_path, theirs):
    (tmp_path / "data").mkdir()
    (tmp_path / theirs).write_text("---\nlicense: mit\ntags:\n- trl\n---\nprecious")
    with pytest.raises(PublishError, match="choose another folder"):
        write_pairs(splits, tmp_path, PAIRS_CARD)
    with pytest.raises(PublishError, match="choose another folder"):
        push_pairs(tmp_path, "me/pairs")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / theirs]
    assert "precious" in (tmp_path / theirs).read_text()


def test_a_full_disk_leaves_the_earlier_pairs(splits, out, tmp_path, monkeypatch):
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    write = Dataset.to_parquet

    def full(self, path, **options):
        if path.name.startswith("test-"):
            raise OSError(28, "No space left on device")
        write(self, path, **options)

    monkeypatch.setattr(Dataset, "to_parquet", full)
    with pytest.raises(PublishError, match="No space left.*make room"):
        write_pairs({"train": splits["test"], "test": splits["train"]}, out, PAIRS_CARD)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PublishError, match="another folder"):
        write_pairs(splits, tmp_path / "file" / "out", PAIRS_CARD)


@pytest.mark.parametrize("data", (None, b"bytes too"))
def test_no_path_of_this_machine_is_written(tmp_path, data):
    image = {"bytes": data, "path": "/home/me/secret.png"}
    pairs = Dataset.from_list([{"images": []}, {"images": [image]}])
    with pytest.raises(PublishError, match="row 1 of train names an image file") as caught:
        write_pairs({"train": pairs}, tmp_path / "out", PAIRS_CARD)
    assert "secret" not in str(caught.value) and not (tmp_path / "out").exists()


# --- adapters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("from_folder", (False, True))
def test_only_safetensors_and_texts_leave_the_machine_and_come_back(hub, trainer, from_folder):
    folder = trainer.args.output_dir
    assert Path(folder, "training_args.bin").exists(), "nothing here that must stay"
    Path(folder, "optimizer.pt").touch()
    address = push_adapter(folder if from_folder else trainer, "me/tuned", ADAPTER_CARD)
    assert address == f"{hub.url}/me/tuned" and HfApi().model_info("me/tuned").private
    pushed = hub.files("models", "me/tuned")
    assert set(pushed) - {".gitattributes"} == {*publish.ADAPTER, "README.md"}
    config = json.loads(pushed["adapter_config.json"])
    assert config["base_model_name_or_path"] == BASE, "a path of this machine was published"
    assert TRACKS["pocket"].model.encode() not in b"".join(pushed.values())
    back = PeftModel.from_pretrained(pocket.load()[0], "me/tuned").state_dict()
    lora = {name: w for name, w in trainer.model.state_dict().items() if "lora" in name}
    assert lora and all(back[name].equal(weight) for name, weight in lora.items())


def test_the_card_of_an_adapter_has_the_facts(hub, trainer):
    settings = settings_of(trainer)
    card = adapter_card("me/tuned", BASE, DATA, settings, MEASURED, "1 Tesla T4", "English only.")
    push_adapter(trainer, "me/tuned", card)
    loaded = ModelCard.load("me/tuned")
    head = yaml.safe_load(loaded.content.split("---")[1])
    assert head["base_model"] == BASE and head["datasets"] == [NAME]
    assert head["library_name"] == "peft" and head["license"] == "cc-by-nc-4.0"
    assert {"dpo", "trl"} <= set(head["tags"])
    for fact in (
        "| loss | sigmoid |", "| beta | 0.1 |", "| learning rate | 8e-05 |",
        "| pairs a step | 2 x 1 accumulated x 1 device(s) |", "| steps | 2 |",
        "| LoRA rank | 16 |", "float32", "| seed | 42 |\n| hardware | 1 Tesla T4 |", "0123abc",
        "24 pairs for training, 6 held out", "\n\nEnglish only. One run with one seed.",
        "| captions with a false object | 0.350 | 0.130 | -0.220 [-0.250, -0.190] | 1,000 |\n"
        "| objects named | 0.959 | 0.955 | -0.004 [-0.012, +0.004] | 1,000 |\n\n"
        "Not distinguishable from no change: objects named.\n\n## Limits",
    ):  # fmt: skip
        assert fact in loaded.text, fact


def test_a_card_claims_neither_measurements_nor_places_that_are_not_there(tmp_path):
    assert "**Nothing was measured**" in ADAPTER_CARD.text
    assert "| metric |" not in ADAPTER_CARD.text
    data = Data("the pocket world", None, None, train=5)
    card = adapter_card("me/x", str(tmp_path), data, SETTINGS, [], "CPU")
    assert card.data.base_model is None and card.data.datasets is None
    assert card.data.license == "unknown"
    assert str(tmp_path.parent) not in str(card) and tmp_path.name in card.text
    assert "huggingface.co/datasets" not in dataset_card("me/x", data, "by image").text


def test_a_folder_without_an_adapter_is_named(hub, tmp_path):
    with pytest.raises(PublishError, match="no adapter_model.safetensors"):
        push_adapter(tmp_path, "me/x", ADAPTER_CARD)


# --- refusals ----------------------------------------------------------------------------------


def test_who_is_not_logged_in_is_told_how(hub, out, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PublishError, match="hf auth login"):
        push_pairs(out, "me/tuned")
    assert hub.requests == []


@pytest.mark.parametrize("name", ("a/b/c", "no spaces/here", "-/x", ""))
def test_a_wrong_name_is_shown(hub, out, name):
    with pytest.raises(PublishError, match="no name for a repository"):
        push_pairs(out, name)


@pytest.mark.parametrize(
    ("asked", "status", "sentence"),
    (("POST repos/create", 401, "does not know your token"),
     ("POST repos/create", 403, "may not write to"), ("POST commit", 403, "may not write to"),
     ("POST commit", 503, "broke while pushing me/tuned"), ("POST commit", 413, "this size"),
     ("POST commit", 429, "too many requests"), ("POST validate-yaml", 400, "refuses me/tuned"),
     ("PUT /upload/", 500, "broke"), ("PUT /upload/", 403, "may not write"),
     ("PUT /upload/", "cut", "broke")),
)  # fmt: skip
def test_each_refusal_is_one_sentence_without_the_token(hub, out, asked, status, sentence):
    method, path = asked.split()
    hub.fail(path, status, times=99, method=method)
    with pytest.raises(PublishError, match=sentence) as caught:
        push_pairs(out, "me/tuned")
    assert "\n" not in str(caught.value) and os.environ["HF_TOKEN"] not in str(caught.value)


def test_a_licence_that_the_hub_does_not_know_is_refused_before_the_commit(hub, splits, tmp_path):
    card = dataset_card("me/x", Data(NAME, None, "my own", 1), "by image")
    with pytest.raises(PublishError, match="license"):
        push_pairs(write_pairs(splits, tmp_path / "out", card), "me/x")
    assert "README.md" not in hub.files("datasets", "me/x")


# --- the tool ----------------------------------------------------------------------------------


@pytest.fixture
def real(hub):
    hub.add("datasets", NAME, {"README.md": CARD, **rlaifv_shards(60)})
    return hub


def raw_images():
    tables = [pyarrow.parquet.read_table(io.BytesIO(d)) for d in rlaifv_shards(60).values()]
    return sorted(row["image"]["bytes"] for table in tables for row in table.to_pylist())


def test_the_tool_formats_splits_saves_and_pushes(real, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["--test-share", "0.1", "--workers", "2", "--out", str(out), "--push", "me/rlaif-v"]
    format_rlaifv.main(command)
    assert f"{real.url}/datasets/me/rlaif-v" in capsys.readouterr().out
    for source in ("me/rlaif-v", str(out)):
        pairs = load_dataset(source)
        train, test = (images(pairs[split]) for split in ("train", "test"))
        assert sorted(train + test) == raw_images()
        assert not set(train) & set(test) and 6 <= len(test) <= 7
        assert check_pairs(pairs["test"]) == []
    card = DatasetCard.load("me/rlaif-v")
    assert card.data.license == "cc-by-nc-4.0"
    assert real.repos["datasets", NAME].sha in card.text and "share 0.1" in card.text
    assert HfApi().dataset_info("me/rlaif-v").private


def test_the_tool_streams_a_part(real, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "FOLDER", tmp_path / "kept")
    command = ["--count", "20", "--test-share", "0.2", "--out", str(tmp_path / "out")]
    format_rlaifv.main(command)
    real.requests.clear()
    format_rlaifv.main(command)
    assert real.requests == [], "the second run asked the network"
    pairs = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert len(pairs["train"]) + len(pairs["test"]) == 20
    assert set(images(pairs["train"])) <= set(raw_images())
    format_rlaifv.main([*command, "--push", "me/public", "--public"])
    assert not HfApi().dataset_info("me/public").private


def test_the_tool_takes_a_local_folder(tmp_path):
    out, mine = tmp_path / "out", write_shards(tmp_path / "mine")
    format_rlaifv.main(["--dataset", str(mine), "--out", str(out)])
    card = (out / "README.md").read_text()
    assert "mine" in card and str(tmp_path) not in card
    assert "license: unknown" in card


def test_the_tool_does_not_write_over_what_it_reads(tmp_path):
    before = {p: p.read_bytes() for p in write_shards(tmp_path / "data").iterdir()}
    for dataset in (tmp_path, tmp_path / "data"):
        with pytest.raises(SystemExit, match="Stopped: .*holds the dataset itself"):
            format_rlaifv.main(["--dataset", str(dataset), "--out", str(tmp_path)])
    assert {p: p.read_bytes() for p in (tmp_path / "data").iterdir()} == before


def test_the_tool_stops_with_a_sentence(real, tmp_path):
    (tmp_path / "chat").mkdir()
    conversations = formatted(10)["data/train-00000-of-00001.parquet"]
    (tmp_path / "chat" / "train.parquet").write_bytes(conversations)
    for arguments, sentence in (
        (["--dataset", "nobody/nothing"], "Stopped: .*nobody/nothing"),
        (["--push", "a/b/c"], "Stopped: .*no name for a repository"),
        (["--dataset", str(tmp_path / "chat")], "`image`.*missing"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            format_rlaifv.main([*arguments, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "arguments",
    (["--count", "0"], ["--count", "-5"], ["--count", "x"], ["--workers", "0"],
     ["--test-share", "2"], ["--test-share", "0"], ["--push", "a/b/c"]),
)  # fmt: skip
def test_bad_options_stop_the_tool_before_any_work(real, tmp_path, arguments):
    real.requests.clear()
    with pytest.raises(SystemExit):
        format_rlaifv.main([*arguments, "--out", str(tmp_path / "out")])
    assert real.requests == [] and not (tmp_path / "out").exists()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes 30 raw rows, changed by a function, into the folder mine/ of the working folder."""
    monkeypatch.chdir(tmp_path)
    (data,) = rlaifv_shards(30, 1).values()
    table = pyarrow.parquet.read_table(io.BytesIO(data))

    def write(change):
        rows = table.to_pylist()
        Path("photo.png").write_bytes(rows[0]["image"]["bytes"])
        change(rows)
        Path("mine").mkdir()
        changed = pyarrow.Table.from_pylist(rows, table.schema)
        pyarrow.parquet.write_table(changed, "mine/train.parquet")
        return ["--dataset", "mine", "--out", "out", "--test-share", "0.2"]

    return write


@pytest.mark.parametrize(
    ("change", "sentence"),
    (({"chosen": None}, "row 7: .*chosen"), ({"rejected": None}, "row 7: .*rejected"),
     ({"image": {"bytes": b"no picture", "path": None}}, "row 7: .*image"),
     ({"image": {"bytes": None, "path": "photo.png"}}, "names an image file of this machine")),
)  # fmt: skip
def test_the_tool_writes_no_row_that_nobody_can_use(mine, change, sentence):
    """A path is sound here, where its picture lies, and only here."""
    command = mine(lambda rows: rows[7].update(change))
    with pytest.raises(SystemExit, match=f"(?s)Stopped: .*{sentence}"):
        format_rlaifv.main(command)
    assert not Path("out").exists()


def test_the_tool_leaves_out_unsound_rows_if_told(mine, capsys):
    def change(rows):
        rows[7]["chosen"] = rows[7]["rejected"]
        rows.append(rows[3])

    command = mine(change)
    with pytest.raises(SystemExit, match="row 30: it repeats row 3"):
        format_rlaifv.main(command)
    format_rlaifv.main([*command, "--drop"])
    said = capsys.readouterr().out
    assert "leaving out 2 of 31 rows" in said and "row 7" in said and "row 30" in said
    assert pyarrow.parquet.read_table("out/data").num_rows == 29
