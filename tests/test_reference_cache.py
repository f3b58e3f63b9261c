"""The cached reference: found again only for what it was computed for, and the same numbers."""

import copy
import io
import json
import zipfile
from types import SimpleNamespace

import pytest
import torch
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    concatenate_datasets,
    load_from_disk,
)
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from PIL import Image as PILImage
from tokenizers.normalizers import Lowercase
from trl import DPOTrainer

from helpers.dpo import reference_cache
from helpers.dpo.reference_cache import (
    COLUMNS,
    add_reference_logps,
    pair_keys,
    reference_logps,
)
from helpers.dpo.shared_images import SharedImageDPOTrainer, backbone
from helpers.dpo.trainer import dpo_config
from helpers.setup.storage import PreferenceDataError, StorageError
from helpers.setup.tracks import choose
from helpers.vlm.load import TEXT_LINEARS
from tests.vlms import assert_same, build, follow, pairs, trainer

CACHED = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 2}
ALL = [2, 2, 1]  # batches of all five pairs


@pytest.fixture
def computed(monkeypatch):
    """The sizes of the batches that the reference was computed for (the trial's do not count)."""
    batches, score = [], reference_cache.reference_logps

    def counting(trained, rows):
        batches.append(len(rows))
        return score(trained, rows)

    monkeypatch.setattr(reference_cache, "reference_logps", counting)
    return batches


@pytest.fixture
def make(tmp_path):
    """A trainer whose reference is kept in one folder."""

    def build_it(kind="llava", folder=tmp_path / "kept", **settings):
        sharing = {"reference_folder": folder}
        return trainer(SharedImageDPOTrainer, kind, sharing=sharing, **{**CACHED, **settings})

    return build_it


def logps(trained):
    return torch.tensor([trained.train_dataset[name] for name in COLUMNS]).T


def assert_computed(trained, apart=1e-4):
    fresh = reference_logps(trained, list(trained.train_dataset))
    torch.testing.assert_close(logps(trained), fresh, rtol=0, atol=apart)
    return fresh


def q_proj(model, **settings):
    return LoraConfig(r=4, target_modules=r".*language_model.*q_proj", **settings)


# --- the numbers -------------------------------------------------------------------------------


def learned_adapter(model):
    torch.manual_seed(5)
    return get_peft_model(model, q_proj(model, init_lora_weights=False))


def train_text_model(model):
    model.requires_grad_(False)
    backbone(model).get_decoder().requires_grad_(True)


REFERENCES = {
    "tiles": lambda: {"kind": "idefics3", "activation_checkpointing": True},
    "grids": lambda: {"kind": "qwen"},
    "pictures are not shared": lambda: {
        "adapter": lambda model: LoraConfig(r=4, target_modules=["q_proj"])
    },
    "an adapter that goes on": lambda: {"prepare": learned_adapter, "adapter": None},
    "a model of its own": lambda: {
        "prepare": train_text_model, "adapter": None, "ref_model": build("llava")[0]
    },
    "prompt tuning": lambda: {
        "adapter": lambda model: PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=3)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REFERENCES)
def test_training_is_that_with_a_reference_in_every_step(name, make):
    cached = follow(make(max_steps=2, **REFERENCES[name]()))
    assert_same(follow(trainer(DPOTrainer, max_steps=2, **REFERENCES[name]())), cached)
    assert bool(cached.trainer.unshared) == (name == "pictures are not shared")
    assert cached.trainer.precompute_ref_logps


def test_a_step_runs_no_reference(make):
    def passes(made):
        found = []
        hook = backbone(made.model).get_decoder().register_forward_hook(lambda *_: found.append(1))
        made.compute_loss(made.model, made.data_collator([dict(r) for r in made.train_dataset]))
        hook.remove()
        return len(found)

    assert (passes(make()), passes(trainer(SharedImageDPOTrainer))) == (1, 2)


def test_the_callers_config_is_left_alone(tmp_path):
    model, processor = build("llava")
    config = dpo_config(choose("pocket"), tmp_path, **CACHED)
    before = config.to_dict()
    made = SharedImageDPOTrainer(
        model, None, config, train_dataset=pairs(), processing_class=processor,
        peft_config=q_proj(model),
    )  # fmt: skip
    assert config.to_dict() == before and config.precompute_ref_log_probs
    assert made.args.precompute_ref_log_probs
    assert pairs().column_names == ["images", "prompt", "chosen", "rejected"]


# --- found again, or not -----------------------------------------------------------------------


def change_head(model):
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1


def change_tower(model):
    with torch.no_grad():
        model.model.vision_tower.embeddings.class_embedding[0] += 1


def changed_row(number, **changes):
    rows = [dict(row) for row in pairs()]
    rows[number] |= changes
    return pairs().from_list(rows)


def other_pixel():
    image = pairs()[1]["images"][0].copy()
    image.putpixel((0, 0), (1, 2, 3))
    return changed_row(1, images=[image])


def other_answer(column):
    text = [{"type": "text", "text": "Nothing"}]
    return changed_row(2, **{column: [{**pairs()[2][column][0], "content": text}]})


def other_adapter(model):
    return LoraConfig(r=2, target_modules=TEXT_LINEARS, init_lora_weights=False)


CHANGES = {
    "a weight of the head": (lambda: {"prepare": change_head}, ALL),
    "a weight of the tower": (lambda: {"prepare": change_tower}, ALL),
    "half precision": (lambda: {"prepare": lambda model: model.to(torch.bfloat16)}, ALL),
    "autocast": (lambda: {"bf16": True}, ALL),
    "max_length": (lambda: {"max_length": 70}, ALL),
    "ld_alpha": (lambda: {"ld_alpha": 0.5}, ALL),
    "a pixel": (lambda: {"data": other_pixel()}, [1]),
    "decoding": (lambda: {"data": pairs().cast_column("images", List(Image(mode="L")))}, ALL),
    "a chosen answer": (lambda: {"data": other_answer("chosen")}, [1]),
    "a rejected answer": (lambda: {"data": other_answer("rejected")}, [1]),
    "the order": (lambda: {"data": pairs((4, 3, 2, 1, 0))}, []),
    "a part": (lambda: {"data": pairs((1, 3))}, []),
    "the loss": (lambda: {"loss_type": "ipo"}, []),
    "the adapter": (lambda: {"adapter": other_adapter}, []),
    "a column that training drops": (lambda: {"data": pairs().add_column("label", [1] * 5)}, []),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of a reference that was computed."""
    folder = tmp_path_factory.mktemp("kept")
    trainer(SharedImageDPOTrainer, sharing={"reference_folder": folder}, **CACHED)
    return folder


@pytest.fixture
def again(kept, tmp_path, make):
    """As `make`, with a copy of what is `kept`."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "results.jsonl").write_bytes((kept / "results.jsonl").read_bytes())
    return make


@pytest.mark.parametrize("name", CHANGES)
def test_only_what_changed_is_computed_again(name, again, computed):
    settings, expected = CHANGES[name]
    changed = again(**settings())
    assert computed == expected and changed.unshared is None
    assert_computed(changed, 1e-3 if expected != ALL else 1)


@pytest.mark.parametrize("which", ["how pictures are scaled", "chat template", "tokenizer's rules"])
def test_another_processing_is_another_key(which, again, computed):
    made = again()  # found, and now it reads its pairs in another way
    assert computed == []
    changed = copy.deepcopy(build("llava")[1])
    if which == "chat template":
        changed.chat_template = changed.chat_template.replace("capitalize", "upper")
    elif which == "tokenizer's rules":
        changed.tokenizer.backend_tokenizer.normalizer = Lowercase()
    else:
        changed.image_processor.image_mean = [0.1, 0.1, 0.1]
    made.processing_class = made._stock_collator.processor = changed
    made._share_pictures()
    add_reference_logps(made, pairs(), made.reference_folder)
    assert computed == ALL


@pytest.mark.parametrize(
    ("setting", "one", "other"),
    [("chat_template_kwargs", {"a": 1}, {"a": 2}), ("tools", ["a"], ["b"])],
)
def test_what_a_row_gives_its_template_belongs_to_its_key(setting, one, other, again):
    made = again()
    keys = [pair_keys(made, pairs().add_column(setting, [value] * 5)) for value in (one, other)]
    assert not set(keys[0]) & set(keys[1])


def test_a_key_is_of_the_stored_bytes(again, tmp_path):
    """Two files of equal pixels are two keys: images are not decoded for them."""
    data = pairs((0,)).cast_column("images", [Image(decode=False)])
    image = PILImage.open(io.BytesIO(data[0]["images"][0]["bytes"]))
    image.save(tmp_path / "again.png", compress_level=0)
    images = [{"bytes": (tmp_path / "again.png").read_bytes(), "path": None}]
    other, made = pairs((0,)).from_list([{**pairs((0,))[0], "images": images}]), again()
    assert pair_keys(made, pairs((0,))) != pair_keys(made, other)


def test_columns_that_the_dataset_brings_along_are_not_believed(again, computed):
    old = again().train_dataset
    found = again(data=old)
    assert computed == [] and torch.equal(logps(found), logps(SimpleNamespace(train_dataset=old)))
    changed = again(data=old, prepare=change_head)
    assert computed == ALL
    assert not torch.equal(logps(changed), logps(found))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("idefics3", {}),
        ("qwen", {}),
        ("llava", {"adapter": lambda model: q_proj(model, modules_to_save=["lm_head"])}),
    ],
)
def test_training_does_not_change_the_key(kind, settings, make, computed):
    made = make(kind, max_steps=1, **settings)
    computed.clear()
    made.train()
    made.evaluate(pairs((0, 2)))
    assert computed == []


# --- interrupted -------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on(make, computed, monkeypatch):
    score, calls = reference_cache.reference_logps, []

    def stops(trained, rows):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(trained, rows)

    with monkeypatch.context() as patch:
        patch.setattr(reference_cache, "reference_logps", stops)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert computed == [2, 2]
    computed.clear()
    assert_computed(make())
    assert computed == [1]


def test_a_torn_line_is_computed_again(again, computed, tmp_path, capsys):
    file = tmp_path / "kept" / "results.jsonl"
    whole = file.read_text()
    file.write_text(whole[: whole.rindex("}") - 5])
    again()
    assert computed == [1] and "4 of 5 results are in" in capsys.readouterr().out
    lines = [line for line in file.read_text().splitlines() if line]
    assert json.loads(lines[-1])


# --- where and for what ------------------------------------------------------------------------


def test_it_is_kept_beside_the_dataset_or_in_the_output_dir(tmp_path, make, computed):
    pairs().save_to_disk(tmp_path / "pairs")
    make(data=load_from_disk(tmp_path / "pairs"), folder=None, output_dir=tmp_path / "run")
    for folder in ("pairs", "run"):  # the pairs for evaluation are in memory
        assert (tmp_path / folder / "reference" / "results.jsonl").exists()
    computed.clear()
    make(data=load_from_disk(tmp_path / "pairs"), folder=None, output_dir=tmp_path / "another")
    assert computed == ALL  # of the pairs for evaluation
    assert load_from_disk(tmp_path / "pairs").column_names == pairs().column_names


def test_a_folder_that_cannot_be_written(tmp_path, make):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write to .*file.*choose another folder"):
        make(folder=tmp_path / "file" / "kept")


def test_datasets_that_come_later(again, computed):
    made = again(data=pairs((0, 1)))
    later = pairs((2, 3)).map(lambda row: row)
    losses = made.evaluate({"one": later, "two": pairs((0, 4))})
    assert computed == []  # the trainer's own pairs for evaluation are the same
    stock = trainer(DPOTrainer).evaluate({"one": later, "two": pairs((0, 4))})
    for name in ("eval_one_loss", "eval_two_loss"):
        assert losses[name] == pytest.approx(stock[name], abs=1e-4)
    made.evaluate(other_pixel())
    assert computed == [1]
    assert made.predict(pairs((0, 1))).metrics["test_loss"] == pytest.approx(0.6931, abs=1e-3)
    made.eval_dataset = {"a": pairs((0, 1)), "b": pairs((2,))}
    made._cache_reference(made.reference_folder)
    assert set(COLUMNS) <= set(made.eval_dataset["b"].column_names)
    assert {"eval_a_loss", "eval_b_loss"} <= made.evaluate().keys()
    assert len(made._with_reference(pairs((0, 1)).select([]))) == 0


def stored_paths(paths):
    rows = [[{"bytes": None, "path": str(path)}] for path in paths]
    data = pairs((0, 0)).remove_columns("images").add_column("images", rows)
    return data.cast_column("images", List(Image()))


def test_pictures_inside_an_archive_are_told_apart(make, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in (0, 1):
            pairs()[i]["images"][0].save(tmp_path / f"{i}.png")
            archive.write(tmp_path / f"{i}.png", f"{i}.png")
    data = stored_paths(f"zip://{i}.png::{tmp_path}/a.zip" for i in (0, 1))
    fresh = assert_computed(make(data=data))
    assert not torch.allclose(fresh[0], fresh[1], atol=1e-3)


def test_of_two_columns_of_pictures_both_count(make, computed):
    def with_image(*which):
        column = {"image": [pairs()[i]["images"][0] for i in which]}
        image = Dataset.from_dict(column, features=Features(image=Image()))
        return concatenate_datasets([pairs((0, 1)), image], axis=1)

    make(data=with_image(0, 1))
    computed.clear()
    make(data=with_image(0, 4))
    assert computed == [1]


def test_text_alone_has_nothing_to_cache(tmp_path):
    model, processor = build("llava")
    made = SharedImageDPOTrainer(
        model, None, dpo_config(choose("pocket"), tmp_path, max_steps=1, **CACHED),
        train_dataset=pairs((3,)).remove_columns("images"), processing_class=processor,
        peft_config=q_proj(model),
    )  # fmt: skip
    assert made.train().metrics["train_loss"] == pytest.approx(0.6931, abs=1e-3)


def unreadable(folder):
    pairs()[0]["images"][0].save(folder / "there.png")
    return stored_paths(folder / f"{name}.png" for name in ("there", "gone"))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda _: pairs().to_iterable_dataset(), "the reference of a stream .*load_raw"),
        (lambda _: pairs().with_transform(lambda rows: rows), "has a custom format.*with map"),
        (lambda _: DatasetDict(train=pairs()), "several splits .*train.*choose one"),
        (unreadable, "row 1 has a picture whose bytes cannot be read"),
    ],
)
def test_what_cannot_be_kept_is_refused(data, sentence, make, tmp_path):
    with pytest.raises(PreferenceDataError, match=sentence):
        make(data=data(tmp_path))


def test_a_reference_that_moves_cannot_be_kept(make):
    with pytest.raises(ValueError, match="sync_ref_model=True changes it"):
        make(sync_ref_model=True)
