"""The kept reference: found again only for what it was computed for, and the same numbers."""

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
from helpers.dpo.checkpoints import CheckpointError
from helpers.dpo.image_path import backbone
from helpers.dpo.reference_cache import COLUMNS, add_reference_logps, reference_logps
from helpers.dpo.shared_images import SharedImageDPOTrainer
from helpers.dpo.trainer import dpo_config
from helpers.pairs.images import PreferenceDataError
from helpers.setup.tracks import choose
from tests.vlms import assert_same, build, follow, pairs, trainer

CACHED = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 2}


@pytest.fixture
def computed(monkeypatch):
    """The rows of each batch that the reference was computed for."""
    batches, scorer = [], reference_cache._scorer

    def counting(trained, dataset):
        run = scorer(trained, dataset)
        return lambda rows: batches.append(len(rows)) or run(rows)

    monkeypatch.setattr(reference_cache, "_scorer", counting)
    return batches


@pytest.fixture
def make(tmp_path):
    """A trainer whose reference is kept in one folder."""

    def build_it(kind="llava", **settings):
        sharing = {"reference_folder": settings.pop("folder", tmp_path / "kept")}
        settings = {**CACHED, **settings}
        return trainer(SharedImageDPOTrainer, kind, sharing=sharing, **settings)

    return build_it


def logps(trained):
    return torch.tensor([trained.train_dataset[name] for name in COLUMNS]).T


# --- the numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["idefics3", "qwen"])
def test_training_is_that_with_a_reference_in_every_step(kind, make):
    cached = follow(make(kind, activation_checkpointing=True))
    assert_same(follow(trainer(DPOTrainer, kind, activation_checkpointing=True)), cached)
    assert cached.trainer.unshared is None and cached.trainer.precompute_ref_logps


def test_the_columns_are_the_references_log_probs(make):
    plain = trainer(SharedImageDPOTrainer)
    expected = reference_logps(plain, list(pairs()))
    torch.testing.assert_close(logps(make()), expected, rtol=0, atol=1e-4)


def test_a_step_runs_no_reference(make):
    passes = []

    def forwards(made):
        layer = backbone(made.model).get_decoder()
        passes.clear()
        hook = layer.register_forward_hook(lambda *_: passes.append(1))
        made.compute_loss(made.model, made.data_collator([dict(r) for r in made.train_dataset]))
        hook.remove()
        return len(passes)

    assert forwards(make()) == 1
    assert forwards(trainer(SharedImageDPOTrainer)) == 2


def test_it_also_works_where_pictures_are_not_shared(make):
    lora = {"adapter": lambda model: LoraConfig(r=4, target_modules=["q_proj"])}
    cached = follow(make(**lora))
    assert cached.trainer.unshared
    assert_same(follow(trainer(DPOTrainer, **lora)), cached)


@pytest.mark.parametrize("adapter", ["given", "none"])
def test_every_kind_of_reference(adapter, make):
    def adapted(model):
        torch.manual_seed(5)
        targets = r".*language_model.*(q|v)_proj"
        lora = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        return get_peft_model(model, lora)

    def frozen_eye(model):
        model.requires_grad_(False)
        backbone(model).get_decoder().requires_grad_(True)

    def settings():
        if adapter == "given":
            return {"prepare": adapted, "adapter": None}
        return {"prepare": frozen_eye, "adapter": None, "ref_model": build("llava")[0]}

    assert_same(follow(trainer(DPOTrainer, **settings())), follow(make(**settings())))


def test_the_callers_config_is_left_alone(tmp_path):
    model, processor = build("llava")
    config = dpo_config(choose("pocket"), tmp_path, **CACHED)
    before = config.to_dict()
    made = SharedImageDPOTrainer(
        model, None, config, train_dataset=pairs(), processing_class=processor,
        peft_config=LoraConfig(target_modules=r".*language_model.*q_proj"),
    )  # fmt: skip
    assert config.to_dict() == before and config.precompute_ref_log_probs
    assert made.args.precompute_ref_log_probs
    assert pairs().column_names == ["images", "prompt", "chosen", "rejected"]


# --- found again, or not -----------------------------------------------------------------------


def test_a_second_run_computes_nothing(make, computed):
    first = make()
    assert computed == [2, 2, 1]  # the pairs for evaluation are the same five
    computed.clear()
    other_adapter = make(adapter=lambda model: _lora(r=2, seed=7))
    assert computed == []
    assert torch.equal(logps(first), logps(other_adapter))


def _lora(r=4, seed=0):
    torch.manual_seed(seed)
    targets = r".*\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"
    return LoraConfig(r=r, lora_alpha=r, target_modules=targets, init_lora_weights=False)


def _weight(model):
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1


def _eye(model):
    with torch.no_grad():
        model.model.vision_tower.embeddings.class_embedding[0] += 1


def _changed_row(number, **changes):
    rows = [dict(row) for row in pairs()]
    rows[number] |= changes
    return pairs().from_list(rows)


def _other_pixel():
    image = pairs()[1]["images"][0].copy()
    image.putpixel((0, 0), (1, 2, 3))
    return _changed_row(1, images=[image])


def _other_answer(column):
    return _changed_row(2, **{column: [{**pairs()[2][column][0], "content": [_text("Nothing")]}]})


def _text(words):
    return {"type": "text", "text": words}


def _grey():
    return pairs().cast_column("images", List(Image(mode="L")))


CHANGES = {
    "a weight of the head": ({"prepare": _weight}, [2, 2, 1]),
    "a weight of the eye": ({"prepare": _eye}, [2, 2, 1]),
    "half precision": ({"prepare": lambda model: model.to(torch.bfloat16)}, [2, 2, 1]),
    "autocast": ({"bf16": True}, [2, 2, 1]),
    "max_length": ({"max_length": 70}, [2, 2, 1]),
    "ld_alpha": ({"ld_alpha": 0.5}, [2, 2, 1]),
    "a pixel": ({"data": _other_pixel}, [1]),
    "how pictures are decoded": ({"data": _grey}, [2, 2, 1]),
    "a chosen answer": ({"data": lambda: _other_answer("chosen")}, [1]),
    "a rejected answer": ({"data": lambda: _other_answer("rejected")}, [1]),
    "the order": ({"data": lambda: pairs((4, 3, 2, 1, 0))}, []),
    "a part": ({"data": lambda: pairs((1, 3))}, []),
    "the loss": ({"loss_type": "ipo"}, []),
}


@pytest.mark.parametrize("name", CHANGES)
def test_only_what_changed_is_computed_again(name, make, computed):
    make()
    computed.clear()
    settings, expected = CHANGES[name]
    settings = dict(settings)
    if "data" in settings:
        settings["data"] = settings["data"]()
    changed = make(**settings)
    assert computed == expected
    fresh = reference_logps(changed, list(changed.train_dataset))
    torch.testing.assert_close(
        logps(changed), fresh, rtol=0, atol=1e-3 if expected != [2, 2, 1] else 1
    )


def _processors(processor):
    wider, other_words, small = (copy.deepcopy(processor) for _ in range(3))
    wider.image_processor.image_mean = [0.1, 0.1, 0.1]
    other_words.chat_template = other_words.chat_template.replace("capitalize", "upper")
    small.tokenizer.backend_tokenizer.normalizer = Lowercase()
    return wider, other_words, small


@pytest.mark.parametrize(
    "which", range(3), ids=["how pictures are scaled", "chat template", "tokenizer's rules"]
)
def test_another_processing_is_another_key(which, make, computed, monkeypatch):
    make()
    computed.clear()
    _, processor = build("llava")
    changed = _processors(processor)[which]
    made = make()  # found, and now it reads its pairs in another way
    assert computed == []
    made.processing_class = made._stock_collator.processor = changed
    made._share_pictures()
    add_reference_logps(made, pairs(), made.reference_folder)
    assert computed == [2, 2, 1]


@pytest.mark.parametrize("setting", ["chat_template_kwargs", "tools"])
def test_what_a_row_gives_its_template_belongs_to_its_key(setting, make, computed):
    def data(value):
        return pairs().add_column(setting, [value] * 5)

    one, other = ({"a": 1}, {"a": 2}) if setting == "chat_template_kwargs" else (["a"], ["b"])
    made = make()
    keys = [reference_cache._keys(made, data(value)) for value in (one, other)]
    assert not set(keys[0]) & set(keys[1])


def test_columns_that_the_dataset_brings_along_are_not_believed(make, computed):
    old = make().train_dataset
    computed.clear()
    again = make(data=old)
    assert computed == [] and torch.equal(logps(again), logps(SimpleNamespace(train_dataset=old)))
    changed = make(data=old, prepare=_weight)
    assert computed == [2, 2, 1]
    assert not torch.equal(logps(changed), logps(again))


def _saved_head(model):
    return LoraConfig(target_modules=r".*language_model.*q_proj", modules_to_save=["lm_head"])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("idefics3", {}), ("llava", {}), ("qwen", {}), ("llava", {"adapter": _saved_head})],
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
        if len(calls) == 4:  # two are the trial of the first pairs
            raise KeyboardInterrupt
        return score(trained, rows)

    monkeypatch.setattr(reference_cache, "reference_logps", stops)
    monkeypatch.setattr("helpers.dpo.shared_images.reference_logps", stops)
    with pytest.raises(KeyboardInterrupt):
        make()
    assert computed == [2, 2]
    computed.clear()
    made = make()
    assert computed == [2, 1]
    fresh = reference_logps(made, list(pairs()))
    torch.testing.assert_close(logps(made), fresh, rtol=0, atol=1e-4)


def test_a_torn_line_is_computed_again(make, computed, tmp_path):
    make()
    file = tmp_path / "kept" / "results.jsonl"
    whole = file.read_text()
    file.write_text(whole[: whole.rindex("}") - 5])
    computed.clear()
    make()
    assert computed == [1]
    lines = [line for line in file.read_text().splitlines() if line]
    assert json.loads(lines[-1])


# --- where and for what ------------------------------------------------------------------------


def test_it_is_kept_beside_the_dataset(tmp_path, make, computed):
    pairs().save_to_disk(tmp_path / "pairs")
    stored = load_from_disk(tmp_path / "pairs")
    make(data=stored, folder=None)
    assert (tmp_path / "pairs" / "reference" / "results.jsonl").exists()
    computed.clear()
    make(data=load_from_disk(tmp_path / "pairs"), folder=None, output_dir=tmp_path / "another")
    assert computed == [2, 2, 1]  # of the pairs for evaluation, which are in memory
    assert load_from_disk(tmp_path / "pairs").column_names == pairs().column_names


def test_a_dataset_in_memory_is_kept_in_the_output_dir(tmp_path, make):
    make(folder=None, output_dir=tmp_path / "run")
    assert (tmp_path / "run" / "reference" / "results.jsonl").exists()


def test_a_folder_that_cannot_be_written(tmp_path, make):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write to .*file.*choose another folder"):
        make(folder=tmp_path / "file" / "kept")


def test_datasets_that_come_later(make, computed):
    made = make(data=pairs((0, 1)))
    computed.clear()
    later = pairs((2, 3)).map(lambda row: row)
    parts = made.evaluate({"one": later, "two": pairs((0, 4))})
    assert computed == []  # the trainer's own pairs for evaluation are the same
    stock = trainer(DPOTrainer).evaluate({"one": later, "two": pairs((0, 4))})
    for name in ("eval_one_loss", "eval_two_loss"):
        assert parts[name] == pytest.approx(stock[name], abs=1e-4)
    made.evaluate(_other_pixel())
    assert computed == [1]
    assert made.predict(pairs((0, 1))).metrics["test_loss"] == pytest.approx(0.6931, abs=1e-3)


def test_pictures_inside_an_archive_are_told_apart(make, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in (0, 1):
            pairs()[i]["images"][0].save(tmp_path / f"{i}.png")
            archive.write(tmp_path / f"{i}.png", f"{i}.png")
    paths = [[{"bytes": None, "path": f"zip://{i}.png::{tmp_path}/a.zip"}] for i in (0, 1)]
    same = pairs((0, 0)).remove_columns("images")
    data = same.add_column("images", paths).cast_column("images", List(Image()))
    made = make(data=data)
    fresh = reference_logps(made, list(made.train_dataset))
    torch.testing.assert_close(logps(made), fresh, rtol=0, atol=1e-4)
    assert not torch.allclose(fresh[0], fresh[1], atol=1e-3)


def test_a_picture_that_cannot_be_read_is_named(make, tmp_path):
    pairs()[0]["images"][0].save(tmp_path / "there.png")
    images = [[{"bytes": None, "path": str(tmp_path / f"{n}.png")}] for n in ("there", "gone")]
    data = pairs((0, 0)).remove_columns("images").add_column("images", images)
    with pytest.raises(PreferenceDataError, match="row 1 has a picture whose bytes cannot be read"):
        make(data=data.cast_column("images", List(Image())))


def test_of_two_columns_of_pictures_both_count(make, computed):
    def with_image(*which):
        column = {"image": [pairs()[i]["images"][0] for i in which]}
        image = Dataset.from_dict(column, features=Features(image=Image()))
        return concatenate_datasets([pairs((0, 1)), image], axis=1)

    make(data=with_image(0, 1))
    computed.clear()
    make(data=with_image(0, 4))
    assert computed == [1]


@pytest.mark.parametrize("column", ["label", "messages", "completion"])
def test_columns_that_training_drops_are_dropped_here_too(column, make):
    made = make(data=pairs().add_column(column, ["x"] * 5))
    assert made.unshared is None
    torch.testing.assert_close(logps(made), logps(make()))


def test_text_alone_and_no_pairs_at_all(make, tmp_path):
    model, processor = build("llava")
    text = pairs((3,)).remove_columns("images")
    made = SharedImageDPOTrainer(
        model, None, dpo_config(choose("pocket"), tmp_path, max_steps=1, **CACHED),
        train_dataset=text, processing_class=processor,
        peft_config=LoraConfig(target_modules=r".*language_model.*q_proj"),
    )  # fmt: skip
    assert made.train().metrics["train_loss"] == pytest.approx(0.6931, abs=1e-3)
    empty = make(data=pairs((0, 1)))
    assert len(empty._with_reference(pairs((0, 1)).select([]))) == 0


def test_prompt_tuning_has_a_reference_too(make):
    def prompts(model):
        return PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=3)

    assert_same(follow(trainer(DPOTrainer, adapter=prompts)), follow(make(adapter=prompts)))


def test_a_dictionary_of_datasets(make, monkeypatch):
    made = make()
    made.eval_dataset = {"a": pairs((0, 1)), "b": pairs((2,))}
    made._cache_reference(made.reference_folder)
    assert set(COLUMNS) <= set(made.eval_dataset["b"].column_names)
    assert {"eval_a_loss", "eval_b_loss"} <= made.evaluate().keys()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda: pairs().to_iterable_dataset(), "the reference of a stream .*load_raw"),
        (lambda: pairs().with_transform(lambda rows: rows), "has a custom format.*with map"),
        (lambda: DatasetDict(train=pairs()), "several parts .*train.*choose one"),
    ],
)
def test_what_cannot_be_kept_is_refused(data, sentence, make):
    with pytest.raises(PreferenceDataError, match=sentence):
        make(data=data())


def test_a_reference_that_moves_cannot_be_kept(make):
    with pytest.raises(ValueError, match="sync_ref_model=True changes it"):
        make(sync_ref_model=True)


def test_images_are_not_decoded_for_the_keys(make, tmp_path):
    """A key is of the stored bytes: two files of equal pixels are two keys."""
    made = make()
    data = pairs((0,)).cast_column("images", [Image(decode=False)])
    row = data[0]
    again = tmp_path / "again.png"
    PILImage.open(io.BytesIO(row["images"][0]["bytes"])).save(again, compress_level=0)
    other = pairs((0,)).from_list(
        [{**pairs((0,))[0], "images": [{"bytes": again.read_bytes(), "path": None}]}]
    )
    assert reference_cache._keys(made, pairs((0,))) != reference_cache._keys(made, other)
