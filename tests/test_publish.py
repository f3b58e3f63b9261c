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

from helpers.dpo.modelcard import Data, Measured, adapter_card, dataset_card, settings_of
from helpers.dpo.publish import PublishError, push_adapter, push_pairs, write_pairs
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


@pytest.fixture
def parts(tmp_path):
    """30 formatted pairs, split, and the raw bytes of their images."""
    for path, data in rlaifv_shards(30).items():
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / path).write_bytes(data)
    track = SimpleNamespace(name="t4", dataset=str(tmp_path / "source"))
    raw = load_raw(track, "train", 20, folder=tmp_path / "kept")
    train, test = split_by_image(to_conversational(raw), 0.2)
    return {"train": train, "test": test}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """The pocket model after two steps of DPO."""
    model, processor = pocket.load()
    pairs = to_conversational(load_raw(TRACKS["pocket"], "train", 4))
    folder = tmp_path_factory.mktemp("dpo")
    trainer = dpo_trainer(
        model,
        processor,
        pairs,
        TRACKS["pocket"],
        folder,
        per_device_train_batch_size=2,
        max_steps=2,
    )
    trainer.train()
    trainer.save_model(folder)
    return trainer


def images(pairs):
    return [image["bytes"] for row in rows(pairs) for image in row["images"]]


def log_out(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))


# --- pairs -------------------------------------------------------------------------------------


def test_pushed_pairs_come_back_as_they_were(hub, parts):
    card = dataset_card("me/pairs", DATA, "by image")
    address = push_pairs(parts, "me/pairs", card)
    assert address == f"{hub.url}/datasets/me/pairs"
    back = load_dataset("me/pairs")
    assert set(back) == {"train", "test"}
    for part, pairs in parts.items():
        assert back[part].features == pairs.features
        assert images(back[part]) == images(pairs)
        texts = ["prompt", "chosen", "rejected"]
        assert back[part].select_columns(texts)[:] == pairs.select_columns(texts)[:]
    assert check_pairs(back["train"], other=back["test"]) == []
    loaded = DatasetCard.load("me/pairs")
    assert loaded.data.license == "cc-by-nc-4.0" and loaded.data.source_datasets == [NAME]
    for fact in ("0123abc", "24", "by image", "cc-by-nc-4.0"):
        assert fact in loaded.text
    assert HfApi().dataset_info("me/pairs").private


def test_pushed_pairs_can_be_streamed_by_the_course(hub, parts, tmp_path):
    push_pairs(parts, "me/pairs", dataset_card("me/pairs", DATA, "by image"))
    pairs = streaming.hub_pairs("me/pairs", "train", 10, folder=tmp_path)
    known = images(parts["train"])
    assert {image["bytes"] for image in (row["image"] for row in rows(pairs))} <= set(known)


def test_a_folder_holds_what_would_be_pushed(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.dpo.publish.SHARD", 20_000)
    folder = write_pairs(parts, tmp_path / "out", dataset_card("me/pairs", DATA, "by image"))
    files = sorted(path.name for path in (folder / "data").iterdir())
    assert len(files) > 3 and files[0].startswith("test-00000-of-")
    again = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert images(again["train"]) == images(parts["train"])
    monkeypatch.setattr("helpers.dpo.publish.SHARD", 10**9)
    write_pairs({"train": parts["test"]}, folder)
    assert [path.name for path in (folder / "data").iterdir()] == ["train-00000-of-00001.parquet"]


def test_a_shorter_push_leaves_no_shard_of_a_longer_one(hub, parts, monkeypatch):
    card = dataset_card("me/pairs", DATA, "by image")
    monkeypatch.setattr("helpers.dpo.publish.SHARD", 20_000)
    push_pairs(parts, "me/pairs", card)
    assert len(hub.files("datasets", "me/pairs")) > 5
    monkeypatch.setattr("helpers.dpo.publish.SHARD", 10**9)
    push_pairs({"train": parts["test"]}, "me/pairs", card)
    assert images(load_dataset("me/pairs", split="train")) == images(parts["test"])


@pytest.mark.parametrize("theirs", ("data/sales.parquet", "README.md"))
def test_what_others_wrote_is_never_replaced(hub, parts, tmp_path, theirs):
    out, card = tmp_path / "out", dataset_card("me/pairs", DATA, "by image")
    (out / "data").mkdir(parents=True)
    (out / theirs).write_text("---\nlicense: mit\ntags:\n- trl\n---\nprecious")
    with pytest.raises(PublishError, match="choose another folder"):
        write_pairs(parts, out, card)
    with pytest.raises(PublishError, match="choose another folder"):
        push_pairs(out, "me/pairs", card)
    assert [p for p in out.rglob("*") if p.is_file()] == [out / theirs]
    assert "precious" in (out / theirs).read_text()


def test_a_full_disk_leaves_the_earlier_pairs(parts, tmp_path, monkeypatch):
    folder = write_pairs(parts, tmp_path / "out", dataset_card("me/pairs", DATA, "by image"))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    write = Dataset.to_parquet

    def full(self, path, **options):
        if path.name.startswith("test-"):
            raise OSError(28, "No space left on device")
        write(self, path, **options)

    monkeypatch.setattr(Dataset, "to_parquet", full)
    with pytest.raises(PublishError, match="No space left.*make room"):
        write_pairs({"train": parts["test"], "test": parts["train"]}, folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("data", (None, b"bytes too"))
def test_no_path_of_this_machine_is_written(tmp_path, data):
    image = {"bytes": data, "path": "/home/me/secret.png"}
    pairs = Dataset.from_list([{"images": []}, {"images": [image]}])
    with pytest.raises(PublishError, match="row 1 of train names an image file") as caught:
        write_pairs({"train": pairs}, tmp_path / "out")
    assert "secret" not in str(caught.value) and not (tmp_path / "out").exists()


def test_what_else_lies_in_the_folder_stays_there(hub, parts, tmp_path):
    folder = write_pairs(parts, tmp_path / "out")
    for stray in ("notes.txt", "data/secret.csv", "model.pt"):
        (folder / stray).write_text("mine")
    push_pairs(folder, "me/pairs", dataset_card("me/pairs", DATA, "by image"))
    pushed = set(hub.files("datasets", "me/pairs")) - {".gitattributes", "README.md"}
    assert pushed == {f"data/{part}-00000-of-00001.parquet" for part in parts}


def test_an_unwritable_folder_is_named(parts, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PublishError, match="another folder"):
        write_pairs(parts, tmp_path / "file" / "out")


# --- adapters ----------------------------------------------------------------------------------


def test_a_pushed_adapter_comes_back_with_the_same_weights(hub, trainer):
    card = adapter_card("me/tuned", BASE, DATA, settings_of(trainer), MEASURED, "2 CPU cores")
    address = push_adapter(trainer, "me/tuned", card)
    assert address == f"{hub.url}/me/tuned" and HfApi().model_info("me/tuned").private
    model, _ = pocket.load()
    back = PeftModel.from_pretrained(model, "me/tuned").state_dict()
    trained = trainer.model.state_dict()
    lora = [name for name in trained if "lora" in name]
    assert lora and all(back[name].equal(trained[name]) for name in lora)


@pytest.mark.parametrize("from_folder", (False, True))
def test_only_safetensors_and_texts_leave_the_machine(hub, trainer, from_folder):
    folder = trainer.args.output_dir
    assert Path(folder, "training_args.bin").exists(), "nothing here that must stay"
    Path(folder, "optimizer.pt").touch()
    source = folder if from_folder else trainer
    push_adapter(source, "me/tuned", adapter_card("me/tuned", BASE, DATA, SETTINGS, [], "CPU"))
    pushed = hub.files("models", "me/tuned")
    assert set(pushed) - {".gitattributes"} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    config = json.loads(pushed["adapter_config.json"])
    assert config["base_model_name_or_path"] == BASE, "a path of this machine was published"
    assert TRACKS["pocket"].model.encode() not in b"".join(pushed.values())


def test_the_card_of_an_adapter_has_the_facts(hub, trainer):
    card = adapter_card(
        "me/tuned", BASE, DATA, settings_of(trainer), MEASURED, "1 Tesla T4", "English only."
    )
    push_adapter(trainer, "me/tuned", card)
    loaded = ModelCard.load("me/tuned")
    head = yaml.safe_load(loaded.content.split("---")[1])
    assert head["base_model"] == BASE and head["datasets"] == [NAME]
    assert head["library_name"] == "peft" and head["license"] == "cc-by-nc-4.0"
    assert {"dpo", "trl"} <= set(head["tags"])
    for fact in (
        "| loss | sigmoid |", "| beta | 0.1 |", "| learning rate | 8e-05 |",
        "| pairs a step | 2 x 1 accumulated x 1 device(s) |", "| steps | 2 |",
        "| LoRA rank | 16 |", "float32", "| seed | 42 |", "1 Tesla T4", "0123abc",
        "24 pairs for training, 6 held out", "English only.",
        "| captions with a false object | 0.350 | 0.130 | -0.220 [-0.250, -0.190] | 1,000 |",
        "Not distinguishable from no change: objects named.",
    ):  # fmt: skip
        assert fact in loaded.text, fact


def test_a_card_without_measurements_says_so():
    text = adapter_card("me/x", BASE, DATA, SETTINGS, [], "CPU").text
    assert "Nothing was measured" in text and "| metric |" not in text


def test_a_base_and_data_that_are_not_on_the_hub_are_not_linked(tmp_path):
    data = Data("the pocket world", None, None, train=5)
    card = adapter_card("me/x", str(tmp_path), data, SETTINGS, [], "CPU")
    assert card.data.base_model is None and card.data.datasets is None
    assert card.data.license == "unknown"
    assert str(tmp_path.parent) not in str(card) and tmp_path.name in card.text
    assert "huggingface.co/datasets" not in dataset_card("me/x", data, "by image").text


def test_a_folder_without_an_adapter_is_named(hub, tmp_path):
    with pytest.raises(PublishError, match="no adapter_model.safetensors"):
        push_adapter(tmp_path, "me/x", adapter_card("me/x", BASE, DATA, SETTINGS, [], "CPU"))


# --- refusals ----------------------------------------------------------------------------------


def push_something(repo_id="me/tuned", folder=None):
    card = dataset_card("me/tuned", DATA, "by image")
    return push_pairs({"train": Dataset.from_list([{"a": 1}])}, repo_id, card)


def test_who_is_not_logged_in_is_told_how(hub, monkeypatch, tmp_path):
    log_out(monkeypatch, tmp_path)
    with pytest.raises(PublishError, match="hf auth login"):
        push_something()
    assert hub.requests == []


@pytest.mark.parametrize("name", ("a/b/c", "no spaces/here", "-/x", ""))
def test_a_wrong_name_is_shown(hub, name):
    with pytest.raises(PublishError, match="no name for a repository"):
        push_something(name)


@pytest.mark.parametrize(
    ("part", "status", "sentence"),
    (("repos/create", 401, "does not know your token"), ("repos/create", 403, "may not write to"),
     ("commit", 403, "may not write to"), ("commit", 503, "broke while pushing me/tuned"),
     ("commit", 413, "this size"), ("commit", 429, "too many requests"),
     ("validate-yaml", 400, "refuses me/tuned")),
)  # fmt: skip
def test_each_refusal_is_one_sentence_without_the_token(hub, part, status, sentence):
    hub.fail(part, status, times=99, method="POST")
    with pytest.raises(PublishError, match=sentence) as caught:
        push_something()
    assert "\n" not in str(caught.value) and os.environ["HF_TOKEN"] not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "sentence"), ((500, "broke"), (403, "may not write"), ("cut", "broke"))
)
def test_a_failed_upload_is_one_sentence(hub, how, sentence):
    hub.fail("/upload/", how, times=99, method="PUT")
    with pytest.raises(PublishError, match=sentence):
        push_something()


def test_a_licence_that_the_hub_does_not_know_is_refused_before_the_commit(hub):
    card = dataset_card("me/x", Data(NAME, None, "my own", 1), "by image")
    with pytest.raises(PublishError, match="license"):
        push_pairs({"train": Dataset.from_list([{"a": 1}])}, "me/x", card)
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
        train, test = (images(pairs[part]) for part in ("train", "test"))
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
    (tmp_path / "mine").mkdir()
    for path, data in rlaifv_shards(60).items():
        (tmp_path / "mine" / path.split("/")[1]).write_bytes(data)
    out = tmp_path / "out"
    format_rlaifv.main(["--dataset", str(tmp_path / "mine"), "--out", str(out)])
    card = (out / "README.md").read_text()
    assert "mine" in card and str(tmp_path) not in card
    assert "license: unknown" in card


@pytest.mark.parametrize("dataset", (".", "data"))
def test_the_tool_does_not_write_over_what_it_reads(tmp_path, dataset):
    (tmp_path / "data").mkdir()
    for path, data in rlaifv_shards(60).items():
        (tmp_path / path).write_bytes(data)
    with pytest.raises(SystemExit, match="Stopped: .*holds the dataset itself"):
        format_rlaifv.main(["--dataset", str(tmp_path / dataset), "--out", str(tmp_path)])
    assert all((tmp_path / path).read_bytes() == data for path, data in rlaifv_shards(60).items())


def test_the_tool_stops_with_a_sentence(real, tmp_path, monkeypatch):
    out = ["--out", str(tmp_path / "out")]
    for arguments, sentence in (
        (["--dataset", "nobody/nothing"], "nobody/nothing"),
        (["--push", "a/b/c"], "no name for a repository"),
    ):
        with pytest.raises(SystemExit, match=f"Stopped: .*{sentence}"):
            format_rlaifv.main([*arguments, *out])
    conversations = formatted(10)["data/train-00000-of-00001.parquet"]
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "train.parquet").write_bytes(conversations)
    with pytest.raises(SystemExit, match="`image`.*missing"):
        format_rlaifv.main(["--dataset", str(tmp_path / "chat"), *out])


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


@pytest.mark.parametrize(
    ("change", "sentence"),
    (({"chosen": None}, "row 7: .*chosen"), ({"rejected": None}, "row 7: .*rejected"),
     ({"image": {"bytes": b"no picture", "path": None}}, "row 7: .*image"),
     ({"image": {"bytes": None, "path": "photo.png"}}, "names an image file of this machine")),
)  # fmt: skip
def test_the_tool_writes_no_row_that_nobody_can_use(tmp_path, monkeypatch, change, sentence):
    """A path is sound here, where its picture lies, and only here."""
    monkeypatch.chdir(tmp_path)
    (table,) = (pyarrow.parquet.read_table(io.BytesIO(d)) for d in rlaifv_shards(30, 1).values())
    full = table.to_pylist()
    Path("photo.png").write_bytes(full[0]["image"]["bytes"])
    full[7] |= change
    Path("mine").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(full, table.schema), "mine/train.parquet")
    with pytest.raises(SystemExit, match=f"(?s)Stopped: .*{sentence}"):
        format_rlaifv.main(["--dataset", "mine", "--out", "out"])
    assert not Path("out").exists()


def test_the_tool_leaves_out_unsound_rows_if_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (data,) = rlaifv_shards(30, 1).values()
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    full = table.to_pylist()
    full[7]["chosen"] = full[7]["rejected"]
    full.append(full[3])
    Path("mine").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(full, table.schema), "mine/train.parquet")
    command = ["--dataset", "mine", "--out", "out", "--test-share", "0.2"]
    with pytest.raises(SystemExit, match="row 30: it repeats row 3"):
        format_rlaifv.main(command)
    format_rlaifv.main([*command, "--drop"])
    said = capsys.readouterr().out
    assert "leaving out 2 of 31 rows" in said and "row 7" in said and "row 30" in said
    written = pyarrow.parquet.read_table("out/data")
    assert written.num_rows == 29
