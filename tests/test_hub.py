"""The loopback hub and the stand-ins, through the libraries that the course uses."""

import io
import math
import os
import subprocess
import sys

import bitsandbytes
import huggingface_hub
import pyarrow.parquet
import pytest
import torch
from datasets import Image, load_dataset
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft import PeftModel
from transformers import AutoModelForImageTextToText
from trl import DPOConfig, DPOTrainer

from helpers.vlm.load import load, lora_config
from helpers.vlm.memory import image_tokens
from tests import standin
from tests.hub_protocol import STRANGER

PAIRS = "openbmb/RLAIF-V-Dataset"
MODEL = "HuggingFaceTB/SmolVLM-256M-Instruct"


@pytest.fixture(scope="session")
def shards():
    return standin.rlaifv_shards(30)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return standin.smolvlm(tmp_path_factory.mktemp("model"))


def rows_of(shards):
    tables = [pyarrow.parquet.read_table(io.BytesIO(data)) for data in shards.values()]
    return [row for table in tables for row in table.to_pylist()]


# --- reading -------------------------------------------------------------------------------------


def test_the_card_alone_says_what_the_columns_are(hub, shards):
    """The real shards have other names, and no schema of `datasets` in them."""
    plain = {}
    for i, data in enumerate(shards.values()):
        table = pyarrow.parquet.read_table(io.BytesIO(data)).replace_schema_metadata(None)
        pyarrow.parquet.write_table(table, file := io.BytesIO())
        plain[f"RLAIF-V-Dataset_{i:03d}.parquet"] = file.getvalue()
    hub.add("datasets", PAIRS, {"README.md": standin.CARD, **plain})
    loaded = load_dataset(PAIRS, split="train")
    assert loaded.features == standin.RLAIFV
    assert loaded.cast_column("image", Image(decode=False)).to_list() == rows_of(shards)


def test_formatted_pairs_have_two_splits_of_conversations(hub):
    hub.add("datasets", "trl-lib/rlaif-v", standin.formatted(4))
    loaded = load_dataset("trl-lib/rlaif-v")
    assert {name: part.num_rows for name, part in loaded.items()} == {"train": 4, "test": 4}
    row = loaded["test"][0]
    assert [part["type"] for part in row["prompt"][0]["content"]] == ["image", "text"]
    assert row["images"][0].size in standin.SIZES and row["chosen"] != row["rejected"]


def test_a_checkpoint_loads_by_its_name(hub, checkpoint):
    hub.add("models", MODEL, checkpoint)
    model, processor = load(MODEL)
    local = load(checkpoint)[0].state_dict()
    assert all(torch.equal(weights, local[name]) for name, weights in model.state_dict().items())
    assert image_tokens(processor, 64, 64) == 4 * 17
    text = 'Naïve "quotes", 12.5 €\n\tand 日本'
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids) == text


def test_a_process_of_its_own_uses_the_hub_by_environment_alone(hub):
    hub.add("models", "me/notes", {"notes.txt": "here"}, private=True)
    code = (
        "from huggingface_hub import hf_hub_download\n"
        "print(open(hf_hub_download('me/notes', 'notes.txt')).read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | hub.environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "here\n", done.stderr


def test_without_the_fixture_nothing_is_asked():
    assert huggingface_hub.constants.ENDPOINT.startswith("http://127.0.0.1:")
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().model_info(MODEL)
    with pytest.raises(ConnectionError):
        load_dataset(PAIRS, split="train", streaming=True)


# --- who may read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "name", "options", "error"),
    (
        (None, "me/secret", {}, RepositoryNotFoundError),
        (STRANGER, "me/secret", {}, RepositoryNotFoundError),
        (STRANGER, "me/nothing", {}, RepositoryNotFoundError),
        (STRANGER, "me/gated", {}, GatedRepoError),
        (None, "me/gated", {}, GatedRepoError),
        (None, "me/open", {"filename": "nothing.json"}, RemoteEntryNotFoundError),
        (None, "me/open", {"revision": "other"}, RevisionNotFoundError),
        ("hf_wrong", "me/open", {}, HfHubHTTPError),
    ),
)
def test_each_refusal_has_its_own_error(hub, monkeypatch, token, name, options, error):
    for other, how in (("secret", {"private": True}), ("gated", {"gated": True}), ("open", {})):
        hub.add("models", f"me/{other}", {"config.json": "{}"}, **how)
    set_token(monkeypatch, token)
    with pytest.raises(HfHubHTTPError) as caught:
        hf_hub_download(name, **{"filename": "config.json", **options})
    if token == "hf_wrong":
        assert "Invalid credentials" in str(caught.value)
    assert type(caught.value) is error


@pytest.mark.parametrize("token, status", [(None, 401), (STRANGER, 403)])
def test_only_the_owner_writes(hub, monkeypatch, token, status):
    hub.add("models", "me/x", {"notes.txt": "old"})
    set_token(monkeypatch, token)
    for write in (lambda: HfApi().create_repo("me/y"), lambda: upload_notes("new")):
        with pytest.raises(HfHubHTTPError, match=str(status)):
            write()
    assert hub.files("models", "me/x") == {"notes.txt": b"old"}


def set_token(monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")


# --- failures ------------------------------------------------------------------------------------


def test_a_download_that_is_cut_goes_on_where_it_was(hub, checkpoint):
    hub.add("models", MODEL, checkpoint)
    hub.fail("model.safetensors", "cut", times=3)
    path = hf_hub_download(MODEL, "model.safetensors")
    assert open(path, "rb").read() == (checkpoint / "model.safetensors").read_bytes()


# --- pushing -------------------------------------------------------------------------------------


def test_a_card_with_a_licence_that_the_hub_does_not_know_is_refused(hub):
    HfApi().create_repo("me/adapter")
    with pytest.raises(ValueError, match="license"):
        ModelCard("---\nlicense: CC-BY-NC-4.0\n---\n").push_to_hub("me/adapter")
    assert "README.md" not in hub.files("models", "me/adapter")


def test_a_folder_comes_back_as_uploaded(hub, checkpoint):
    HfApi().create_repo("me/model", private=True)
    HfApi().upload_folder(repo_id="me/model", folder_path=checkpoint)
    pushed = hub.files("models", "me/model")
    assert pushed.pop(".gitattributes") == b""
    assert pushed == {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert HfApi().model_info("me/model").private


def test_a_push_that_fails_changes_nothing(hub):
    hub.add("models", "me/x", {"notes.txt": "old"})
    hub.fail("me/x/commit/", 503, method="POST")
    with pytest.raises(HfHubHTTPError, match="503"):
        upload_notes("new")
    assert hub.files("models", "me/x") == {"notes.txt": b"old"}
    upload_notes("new")
    assert hub.files("models", "me/x") == {"notes.txt": b"new"}


def upload_notes(text):
    HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="notes.txt", repo_id="me/x")


# --- the whole way -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quantize, push",
    [(False, lambda trainer: trainer.push_to_hub()),
     (True, lambda trainer: trainer.model.push_to_hub("me/adapter"))],
    ids=["fp32", "4-bit"],
)  # fmt: skip
def test_an_adapter_is_trained_pushed_and_loaded(hub, checkpoint, tmp_path, quantize, push):
    hub.add("models", MODEL, checkpoint)
    hub.add("datasets", "trl-lib/rlaif-v", standin.formatted(2))
    trainer = dpo_trainer(tmp_path / "adapter", quantize)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    push(trainer)
    tuned = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(MODEL), "me/adapter"
    )
    trained, loaded = (adapter_of(model) for model in (trainer.model, tuned))
    assert len(trained) == 2 * 7 * 2 and all(weights.any() for weights in trained.values())
    assert all(torch.equal(loaded[name].float(), trained[name].float()) for name in trained)


def dpo_trainer(folder, quantize):
    """TRL's own, one step of two pairs."""
    model, processor = load(MODEL, quantize=quantize, image_edge=64)
    quantized = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert bool(quantized) == quantize
    return DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(folder),
            hub_model_id="me/adapter",
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=2,
            gradient_checkpointing=False,
            max_length=None,
            bf16=False,
            use_cpu=True,
            report_to=[],
        ),
        train_dataset=load_dataset("trl-lib/rlaif-v", split="train"),
        processing_class=processor,
        peft_config=lora_config(model, rank=4),
    )


def adapter_of(model):
    return {name: weights for name, weights in model.state_dict().items() if "lora_" in name}
