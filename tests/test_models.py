"""A policy is loaded as its track says, the adapter stays on the language model, budgets add up."""

import re
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import Idefics3ImageProcessorPil, Idefics3Processor

from helpers import models, pocket
from helpers.tracks import TRACKS


@pytest.fixture(scope="module")
def checkpoint(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    pocket.save(pocket.build_model(processor), processor, folder)
    return folder


def linear_names(model):
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]


# --- load ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_has_the_dtype_and_edge_of_its_track(checkpoint, dtype):
    track = replace(TRACKS["pocket"], model=str(checkpoint), dtype=dtype, image_edge=24)
    model, processor = models.load_policy(track)
    assert model.dtype == getattr(torch, dtype)
    assert processor.image_processor.size["longest_edge"] == 24


def test_a_loaded_policy_is_the_saved_one(checkpoint, processor):
    saved = pocket.build_model(processor).state_dict()
    loaded = models.load(checkpoint)[0].state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in saved.items())


def test_a_quantised_base_has_its_language_model_in_4_bits(checkpoint):
    pytest.importorskip("bitsandbytes")
    model, _ = models.load(checkpoint, quantize=True)
    small = {name for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert any("text_model" in name for name in small)
    adapted = get_peft_model(model, models.lora_config(model, rank=4))
    assert all(p.is_floating_point() for n, p in adapted.named_parameters() if "lora" in n)


def test_a_missing_folder_says_how_to_restore_it(tmp_path):
    with pytest.raises(models.ModelError, match="no checkpoint in .*git checkout -- data"):
        models.load(tmp_path / "nothing")


def test_a_torn_checkpoint_is_a_sentence(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(models.ModelError, match="cannot be read .*restore it"):
        models.load(tmp_path)


def test_a_folder_of_shards_is_a_checkpoint(processor, tmp_path):
    pocket.build_model(processor).save_pretrained(tmp_path, max_shard_size="500KB")
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert models.load(tmp_path)[0].num_parameters() > 400_000


def test_an_edge_is_not_set_where_it_means_something_else(processor):
    other = pocket.build_processor()
    other.image_processor.size = {"shortest_edge": 24, "longest_edge": 48}
    with pytest.raises(models.ModelError, match="longest_edge, shortest_edge.*image_edge=None"):
        models.limit_edge(other, 48)


# --- adapters ------------------------------------------------------------------------------


def test_lora_takes_every_projection_of_the_language_model_and_no_other(untrained):
    pattern = models.lora_config(untrained).target_modules
    matched = {name for name in linear_names(untrained) if re.fullmatch(pattern, name)}
    layers = untrained.config.text_config.num_hidden_layers
    assert len(matched) == 7 * layers
    assert all("text_model" in name for name in matched)


def test_a_list_of_names_also_hits_the_vision_tower(untrained):
    hit = [name for name in linear_names(untrained) if name.endswith(("q_proj", "v_proj"))]
    assert any("vision" in name for name in hit)  # why the course does not use one


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.language_model.layers.0.mlp.down_proj", True),  # LLaVA, Qwen2.5-VL
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj", False),
        ("model.visual.blocks.0.mlp.gate_proj", False),
        ("model.text_model.layers.0.self_attn.o_proj", True),
        ("lm_head", False),
    ],
)
def test_names_of_other_architectures(name, wanted):
    assert bool(re.fullmatch(models.TEXT_LINEARS, name)) == wanted


def test_an_adapter_with_its_rank_that_changes_nothing_yet(untrained):
    before = {name: weight.clone() for name, weight in untrained.named_parameters()}
    adapted = get_peft_model(untrained, models.lora_config(untrained, rank=4))
    for name, weight in adapted.named_parameters():
        if "lora_A" in name:
            assert weight.shape[0] == 4
        elif "lora_B" in name:
            assert not weight.any()
        else:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight, before[plain]) and not weight.requires_grad


def test_a_model_without_such_layers_is_named():
    with pytest.raises(models.ModelError, match="Linear has no text_model.*TEXT_LINEARS"):
        models.lora_config(nn.Linear(2, 2))


# --- budgets -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 96), (200, 50)])
def test_a_pocket_picture_takes_9_tokens(processor, size):
    assert models.image_tokens(processor, *size) == 9


@pytest.mark.parametrize(
    ("edge", "size", "tiles"),
    [(2048, (640, 640), 17), (2048, (640, 480), 13), (1024, (640, 640), 5), (512, (640, 640), 1)],
)
def test_smolvlm_tokens_are_64_a_tile(processor, edge, size, tiles):
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
    )
    smolvlm = Idefics3Processor(image_processor, processor.tokenizer, image_seq_len=64)
    models.limit_edge(smolvlm, edge)
    assert models.image_tokens(smolvlm, *size) == 64 * tiles


def test_full_fine_tuning_holds_20_bytes_a_weight():
    # weights 4, reference 4, gradient 4, two moments 8; 8e9 weights: a published table's 160 GB
    budget = models.memory_budget(8e9, 8e9, weight_bytes=4, separate_reference=True)
    assert sum(budget.values()) == pytest.approx(160)
    assert budget["adapter"] == 0 and budget["reference"] == budget["weights"] == 32


def test_an_adapter_costs_by_what_is_trainable():
    budget = models.memory_budget(8e9, 1e8, weight_bytes=2)
    assert budget["weights"] == 16 and budget["reference"] == 0
    assert sum(budget.values()) - 16 == pytest.approx(1e8 * 16 / 1e9)
    halved = models.memory_budget(8e9, 1e8, weight_bytes=2, trainable_bytes=2)
    assert sum(halved.values()) - 16 == pytest.approx(1e8 * 8 / 1e9)


def test_a_budget_refuses_more_trainable_than_there_is():
    with pytest.raises(ValueError, match="20 trainable of 10 weights"):
        models.memory_budget(10, 20)
