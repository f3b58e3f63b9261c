"""A policy is loaded as its track says, and the adapter stays on the language model."""

import re
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from torch import nn

from helpers.setup.tracks import TRACKS
from helpers.vlm import pocket
from helpers.vlm.load import (
    TEXT_LINEARS,
    ModelError,
    limit_edge,
    load,
    load_policy,
    lora_config,
)


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
    model, processor = load_policy(track)
    assert model.dtype == getattr(torch, dtype)
    assert processor.image_processor.size["longest_edge"] == 24


def test_a_loaded_policy_is_the_saved_one(checkpoint, processor):
    saved = pocket.build_model(processor).state_dict()
    loaded = load(checkpoint)[0].state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in saved.items())


def test_a_quantised_base_has_its_language_model_in_4_bits(checkpoint):
    pytest.importorskip("bitsandbytes")
    model, _ = load(checkpoint, quantize=True)
    small = {name for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert any("text_model" in name for name in small)
    adapted = get_peft_model(model, lora_config(model, rank=4))
    assert all(p.is_floating_point() for n, p in adapted.named_parameters() if "lora" in n)


def test_a_quantised_base_still_passes_gradients_after_an_evaluation(checkpoint, processor):
    pytest.importorskip("bitsandbytes")
    model, _ = load(checkpoint, quantize=True)
    adapted = get_peft_model(model, lora_config(model, rank=4))
    ids = torch.tensor([processor.tokenizer("I see a red plate")["input_ids"]])
    with torch.no_grad():
        adapted.eval()(input_ids=ids)
    adapted.train()(input_ids=ids, labels=ids).loss.backward()
    grads = [w.grad for n, w in adapted.named_parameters() if "lora_B" in n]
    assert all(grad is not None and grad.any() for grad in grads)


def test_a_missing_folder_says_how_to_restore_it(tmp_path):
    with pytest.raises(ModelError, match="no checkpoint in .*git checkout -- data"):
        load(tmp_path / "nothing")


def test_a_torn_checkpoint_is_a_sentence(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read .*restore it"):
        load(tmp_path)


def test_a_folder_of_shards_is_a_checkpoint(processor, tmp_path):
    pocket.build_model(processor).save_pretrained(tmp_path, max_shard_size="500KB")
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert load(tmp_path)[0].num_parameters() > 400_000


def test_an_edge_is_not_set_where_it_means_something_else(processor):
    other = pocket.build_processor()
    other.image_processor.size = {"shortest_edge": 24, "longest_edge": 48}
    with pytest.raises(ModelError, match="longest_edge, shortest_edge.*image_edge=None"):
        limit_edge(other, 48)


# --- adapters ------------------------------------------------------------------------------


def test_lora_takes_every_projection_of_the_language_model_and_no_other(untrained):
    pattern = lora_config(untrained).target_modules
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
    assert bool(re.fullmatch(TEXT_LINEARS, name)) == wanted


def test_an_adapter_with_its_rank_that_changes_nothing_yet(untrained):
    before = {name: weight.clone() for name, weight in untrained.named_parameters()}
    adapted = get_peft_model(untrained, lora_config(untrained, rank=4))
    for name, weight in adapted.named_parameters():
        if "lora_A" in name:
            assert weight.shape[0] == 4
        elif "lora_B" in name:
            assert not weight.any()
        else:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight, before[plain]) and not weight.requires_grad


def test_a_model_without_such_layers_is_named():
    with pytest.raises(ModelError, match="Linear has no text_model.*TEXT_LINEARS"):
        lora_config(nn.Linear(2, 2))
