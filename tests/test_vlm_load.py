"""A policy is loaded as its track says, and the adapter stays on the language model."""

import re
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from torch import nn

from helpers.setup.tracks import TRACKS
from helpers.vlm import pocket
from helpers.vlm.load import TEXT_LINEARS, ModelError, limit_edge, load, load_policy, lora_config


@pytest.fixture(scope="module")
def checkpoint(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    pocket.save(pocket.build_model(processor), processor, folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_has_the_dtype_and_edge_of_its_track(checkpoint, dtype):
    track = replace(TRACKS["pocket"], model=str(checkpoint), dtype=dtype, image_edge=24)
    model, processor = load_policy(track)
    assert model.dtype == getattr(torch, dtype)
    assert processor.image_processor.size["longest_edge"] == 24


def test_a_loaded_policy_is_the_saved_one_also_in_shards(checkpoint, processor, tmp_path):
    model = pocket.build_model(processor)
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    for folder in (checkpoint, tmp_path):
        loaded = load(folder)[0].state_dict()
        assert all(torch.equal(w, loaded[name]) for name, w in model.state_dict().items())


def test_a_quantised_base_has_4_bits_and_passes_gradients_after_an_evaluation(
    checkpoint, processor
):
    pytest.importorskip("bitsandbytes")
    model, _ = load(checkpoint, quantize=True)
    small = {name for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert any("text_model" in name for name in small)
    adapted = get_peft_model(model, lora_config(model, rank=4))
    assert all(p.is_floating_point() for n, p in adapted.named_parameters() if "lora" in n)
    ids = torch.tensor([processor.tokenizer("I see a red plate")["input_ids"]])
    with torch.no_grad():
        adapted.eval()(input_ids=ids)
    adapted.train()(input_ids=ids, labels=ids).loss.backward()
    grads = [w.grad for n, w in adapted.named_parameters() if "lora_B" in n]
    assert all(grad is not None and grad.any() for grad in grads)


def test_missing_and_torn_checkpoints_say_how_to_restore_them(checkpoint, tmp_path):
    with pytest.raises(ModelError, match="no checkpoint in .*git checkout -- data.*pocket-model"):
        load(tmp_path / "nothing")
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read .*restore it"):
        pocket.load(tmp_path)


def test_an_edge_is_not_set_where_it_means_something_else():
    other = pocket.build_processor()
    other.image_processor.size = {"shortest_edge": 24, "longest_edge": 48}
    with pytest.raises(ModelError, match="longest_edge, shortest_edge.*image_edge=None"):
        limit_edge(other, 48)


# --- adapters ------------------------------------------------------------------------------------


def test_an_adapter_on_every_projection_of_the_language_model_changes_nothing_yet(untrained):
    linears = [name for name, x in untrained.named_modules() if isinstance(x, nn.Linear)]
    listed = [name for name in linears if name.endswith(("q_proj", "v_proj"))]
    assert any("vision" in name for name in listed)  # why a list of names does not do
    before = {name: weight.clone() for name, weight in untrained.named_parameters()}
    adapted = get_peft_model(untrained, lora_config(untrained, rank=4))
    on = [name for name, weight in adapted.named_parameters() if "lora_B" in name]
    assert len(on) == 7 * untrained.config.text_config.num_hidden_layers
    assert all("text_model" in name for name in on)
    for name, weight in adapted.named_parameters():
        if "lora_A" in name:
            assert weight.shape[0] == 4
        elif "lora_B" in name:
            assert not weight.any()
        else:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight, before[plain]) and not weight.requires_grad


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


def test_a_model_without_such_layers_is_named():
    with pytest.raises(ModelError, match="Linear has no text_model.*TEXT_LINEARS"):
        lora_config(nn.Linear(2, 2))
