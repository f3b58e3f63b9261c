"""The budget counts what the real models have, and meets what the CPU's allocator records."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM
from trl import DPOTrainer
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from benchmarks import gpu_rehearsal
from benchmarks.rehearsal import allocated
from helpers.dpo.shared_images import SharedImageDPOTrainer
from helpers.dpo.trainer import dpo_config, dpo_trainer
from helpers.pairs.format import turns
from helpers.setup.machine import Machine
from helpers.setup.tracks import TRACKS, choose
from helpers.vlm import activations, pocket, smolvlm
from helpers.vlm import memory as budget
from helpers.vlm.load import limit_edge, load, lora_config
from helpers.vlm.memory import BudgetError, Plan
from helpers.world.scenes import draw, sample_scenes

T4 = Machine("cuda", "Tesla T4", (7, 5), 14.6)
TOLERANCE = 0.15  # what the course promises
CLOSE = 0.1  # what the CPU's allocator recorded besides the weights
STORED = [gpu_rehearsal.RESULTS / name for name in ("cpu_budget.json", "gpu_rehearsal.json")]


@pytest.fixture(scope="module")
def shapes():
    return {size: smolvlm.shapes(smolvlm.config(size)) for size in smolvlm.PUBLISHED}


@pytest.fixture(scope="module")
def plan():
    return Plan(pairs=2, tiles=1, text_tokens=30, answer_tokens=150)


# --- weights -------------------------------------------------------------------------------


def test_weights_are_those_of_the_published_files(shapes, plan):
    bf16 = replace(plan, dtype="bfloat16")
    held = {size: budget.base_bytes(model, bf16) for size, model in shapes.items()}
    assert 0 < 513_028_808 - held["256M"] < 100_000  # the file begins with a list of its tensors
    assert held["500M"] == 2 * 507_482_304
    assert held["2.2B"] / 1e9 == pytest.approx(4.49, abs=0.005)  # as the Hub shows its size


@pytest.mark.parametrize("size", smolvlm.PUBLISHED)
def test_an_adapter_has_as_many_weights_as_peft_makes(size, shapes):
    model = smolvlm.shapes(smolvlm.config(size))
    adapted = get_peft_model(model, lora_config(model, rank=8))
    assert budget.adapter_weights(shapes[size], 8) == adapted.get_nb_trainable_parameters()[0]


def test_a_base_in_4_bits_has_the_bytes_that_bitsandbytes_makes(tmp_path, processor, plan):
    pytest.importorskip("bitsandbytes")
    model = small_model(processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    small, _ = load(tmp_path, quantize=True)
    held = sum(weight.nbytes for weight in small.parameters())
    held += sum(
        state.nbytes
        for weight in small.parameters()
        if hasattr(weight, "quant_state")
        for name, state in weight.quant_state.as_dict(packed=True).items()
        if name.endswith(("absmax", "nested_absmax"))
    )
    assert budget.base_bytes(model, replace(plan, quantize=True)) == pytest.approx(held, rel=0.01)


def test_parts_by_hand(shapes, plan):
    """20 bytes a weight, as the public post has it for 8B: 160 GB; and an adapter's 16."""
    model, weights = shapes["256M"], shapes["256M"].num_parameters()
    full = budget.budget(model, replace(plan, rank=None))
    assert (full.weights, full.reference, full.adapter) == (4 * weights, 4 * weights, 0)
    assert (full.gradients, full.optimizer) == (4 * weights, 8 * weights)
    lora = budget.budget(model, replace(plan, dtype="bfloat16", autocast="bf16"))
    trained = budget.adapter_weights(model, 16)
    assert (lora.weights, lora.reference, lora.adapter) == (2 * weights, 0, 4 * trained)
    assert (lora.gradients, lora.optimizer) == (4 * trained, 8 * trained)


def test_three_ways_and_their_table(shapes, plan):
    ways = budget.ways(shapes["2.2B"], plan)
    full, lora, small = ways.values()
    assert full.total > 4 * lora.total and lora.total > 1.5 * small.total
    lines = budget.table(ways).splitlines()
    assert lines[0].split()[1:3] == ["full", "float32"]
    sums = [sum(float(line.split()[i]) for line in lines[1:-2]) for i in (1, 2, 3)]
    assert sums == pytest.approx([float(x) for x in lines[-2].split()[1:]], abs=0.04)
    assert lines[-1].split()[-1] == "162"  # 81 for each row of a pair


# --- tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 96), (200, 50)])
def test_a_pocket_picture_takes_9_tokens(processor, size):
    assert budget.image_tokens(processor, *size) == 9


@pytest.mark.parametrize(
    ("model", "edge", "size", "tiles"),
    [
        ("256M", 2048, (640, 640), 17),
        ("256M", 2048, (640, 480), 13),
        ("500M", 1024, (640, 640), 5),
        ("256M", 512, (640, 640), 1),
        ("2.2B", 1536, (640, 640), 17),
        ("2.2B", 768, (480, 640), 5),
        ("2.2B", 384, (640, 480), 1),
    ],
)
def test_image_tokens_are_those_of_a_tile_times_the_tiles(processor, model, edge, size, tiles):
    reader = smolvlm.processor(model, processor.tokenizer)
    limit_edge(reader, edge)
    assert budget.tiles(reader, *size) == tiles
    tokens = tiles * smolvlm.tile_tokens(smolvlm.config(model))
    assert budget.image_tokens(reader, *size) == tokens
    pixels = reader(images=[[draw(sample_scenes(1)[0]).resize(size)]], text=["<image>"])
    assert len(pixels["pixel_values"][0]) == tiles


# --- a step, as the allocator saw it -------------------------------------------------------


def small_model(processor, **changes):
    """Wide and deep enough that activations outweigh the tile of logits."""
    config = pocket.build_model(processor).config
    config.text_config.update({"hidden_size": 192, "intermediate_size": 512, "head_dim": 32})
    config.text_config.update({"num_attention_heads": 6, "num_hidden_layers": 10, **changes})
    config.vision_config.update({"hidden_size": 128, "intermediate_size": 512})
    config.vision_config.update({"patch_size": 2, "num_hidden_layers": 4})
    config.scale_factor = 8  # 576 patches and, as before, 9 tokens
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")


def pairs_of(count, long=40, short=30):
    words = "I see a red plate and a fork".split() * long
    one = {
        "images": [draw(sample_scenes(1)[0])],
        "prompt": turns("What do you see?"),
        "chosen": turns("", " ".join(words[: long - 1]))[1:],
        "rejected": turns("", " ".join(words[: short - 1]))[1:],
    }
    return Dataset.from_list([one] * count)


def step(processor, tmp_path, plan, model=None, reference=None):
    """(trainer, plan with its text, bytes at the peak, bytes at the end) of two steps."""
    model = model or small_model(processor)
    settings = {
        "per_device_train_batch_size": plan.pairs, "max_steps": 2, "save_strategy": "no",
        "activation_checkpointing": plan.checkpointing, "bf16": plan.autocast == "bf16",
        "gradient_checkpointing": plan.checkpointing, "disable_tqdm": True,
    }  # fmt: skip
    # A plan knows the longest answer alone; where only answers are scored, padding costs nothing.
    short = plan.answer_tokens if plan.shared else 30
    pairs, track = pairs_of(2 * plan.pairs, plan.answer_tokens, short), choose("pocket")
    if plan.rank:
        kind = SharedImageDPOTrainer if plan.shared else DPOTrainer
        trainer = dpo_trainer(
            model, processor, pairs, track, tmp_path, trainer_class=kind, **settings
        )
    else:
        config = dpo_config(track, tmp_path, **settings)
        trainer = DPOTrainer(
            model, reference, config, train_dataset=pairs, processing_class=processor
        )
    batch = trainer.data_collator([dict(pairs[i]) for i in range(plan.pairs)])
    text = batch["input_ids"].shape[1] - plan.answer_tokens - 11  # 9 features, 2 markers
    held = sum(x.nbytes for x in (*trainer.model.parameters(), *batch.values()))
    held += sum(x.nbytes for x in reference.parameters()) if reference else 0
    peak, end = allocated(trainer.train)
    return trainer, replace(plan, text_tokens=text), held + peak, held + end


STEPS = {
    "one pair": {"pairs": 1},
    "two pairs": {"pairs": 2},
    "checkpointing": {"pairs": 2, "checkpointing": True},
    "autocast": {"pairs": 2, "autocast": "bf16"},
    "autocast, checkpointing": {"pairs": 2, "autocast": "bf16", "checkpointing": True},
    "shared": {"pairs": 2, "shared": True},
    "shared, checkpointing": {"pairs": 2, "shared": True, "checkpointing": True},
    "shared, autocast": {"pairs": 2, "shared": True, "autocast": "bf16"},
}


@pytest.mark.parametrize("name", STEPS)
def test_a_budget_meets_the_peak_of_a_step(name, processor, tmp_path, plan):
    trainer, plan, peak, _ = step(
        processor, tmp_path, replace(plan, answer_tokens=40, **STEPS[name])
    )
    found = budget.budget(small_model(processor), plan)
    assert found.total == pytest.approx(peak, rel=TOLERANCE)
    stays = found.weights + found.adapter
    assert found.total - stays == pytest.approx(peak - stays, rel=CLOSE)


@pytest.mark.parametrize("autocast", [None, "bf16"])
def test_each_decoder_layer_keeps_what_is_counted(autocast, processor, tmp_path, plan):
    plan, peaks, counted = replace(plan, answer_tokens=40, autocast=autocast), [], []
    for layers in (4, 8):
        deep = partial(small_model, processor, num_hidden_layers=layers)
        _, plan, peak, _ = step(processor, tmp_path / str(layers), plan, deep())
        found = budget.budget(deep(), plan)
        peaks.append(peak)  # gradients come after it
        counted.append(found.total - found.gradients)
    assert counted[1] - counted[0] == pytest.approx(peaks[1] - peaks[0], rel=0.03)


def test_what_stays_between_steps_is_base_adapter_and_moments(processor, tmp_path, plan):
    """A reference counted beside an adapter would be a third more."""
    _, plan, _, end = step(processor, tmp_path, replace(plan, pairs=1, answer_tokens=40))
    found = budget.budget(small_model(processor), plan)
    stays = found.weights + found.reference + found.adapter + found.optimizer
    assert stays == pytest.approx(end, rel=0.05)


def test_without_an_adapter_two_models_and_all_moments_stay(processor, tmp_path, plan):
    plan = replace(plan, pairs=2, answer_tokens=40, rank=None)
    model, reference = small_model(processor), small_model(processor)
    _, plan, peak, end = step(processor, tmp_path, plan, model, reference)
    found = budget.budget(small_model(processor), plan)
    assert found.weights + found.reference + found.optimizer == pytest.approx(end, rel=0.05)
    assert found.total == pytest.approx(peak, rel=TOLERANCE)


def test_tiles_of_logits_have_the_size_that_trl_gives_them():
    assert activations.TILE_ENTRIES == _CHUNKED_LOGPROB_CHUNK_SIZE
    assert activations.TILE_POSITIONS == TOKEN_CHUNK_SIZE


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_budgets_meet_the_stored_peaks_at_real_size(file, shapes):
    if not file.exists():
        pytest.skip("not measured yet: no GPU was there")
    rows = [row for row in json.loads(file.read_text())["rows"] if "measured_gb" in row]
    assert rows
    for row in rows:
        found = budget.budget(shapes[row["size"]], Plan(**row["plan"]))
        assert found.total / 1e9 == pytest.approx(row["measured_gb"], rel=TOLERANCE), row["case"]
        stays = (found.weights + found.adapter) / 1e9
        close = CLOSE if row["plan"]["device"] == "cpu" else 1
        moves = row["measured_gb"] - stays
        assert found.total / 1e9 - stays == pytest.approx(moves, rel=close), row["case"]


# --- plans and verdicts --------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACKS)
def test_a_plan_is_what_the_trainer_will_do(name, tmp_path):
    track = choose(name)
    plan = budget.plan_for(track, 1, 30, 150)
    config = dpo_config(track, tmp_path)
    assert plan.checkpointing == config.activation_checkpointing
    assert plan.pairs == config.per_device_train_batch_size


def test_a_plan_that_fits(shapes, plan):
    said = budget.verdict(shapes["256M"], plan, T4)
    assert said.startswith("It fits: ") and "15.7 GB on Tesla T4" in said


def test_a_plan_that_does_not_fit_is_turned_down_until_it_does(shapes, plan):
    large = replace(plan, pairs=8, tiles=17, device="cuda")
    said = budget.verdict(shapes["2.2B"], large, T4)
    assert said.startswith("It does not fit: ")
    assert said.index("one pair at a time (") < said.index("one tile a picture (")
    assert "4 bits" not in said  # it fits before that
    fitting = budget.budget(shapes["2.2B"], replace(large, pairs=1, tiles=1))
    assert said.endswith(f"Then it needs {fitting.total / 1e9:.1f} GB.")


def test_a_mend_that_changes_nothing_is_not_named(shapes, plan):
    small = Machine("cuda", "a small GPU", (7, 5), 1.0)
    said = budget.verdict(shapes["256M"], replace(plan, pairs=1, device="cuda"), small)
    assert "one pair" not in said and "one tile" not in said and "4 bits" in said


def test_a_model_too_large_for_everything(shapes, plan):
    tiny = Machine("cuda", "a toy", (7, 5), 0.5)
    assert "take a smaller model" in budget.verdict(shapes["2.2B"], plan, tiny)


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pairs": 0}, "pairs is 0: it must be at least 1"),
        ({"answer_tokens": -5}, "answer_tokens is -5"),
        ({"rank": 0}, "rank is 0"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8': choose float32"),
        ({"rank": None, "dtype": "bfloat16"}, "the base itself is trained, in float32"),
        ({"rank": None, "quantize": True}, "quantize=False, or give a rank"),
    ],
)
def test_a_bad_plan_is_a_sentence(plan, change, sentence):
    with pytest.raises(BudgetError, match=sentence):
        replace(plan, **change)


def test_another_architecture_is_named(plan):
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, vocab_size=8, **small))
    with pytest.raises(BudgetError, match="LlamaForCausalLM is a llama: .*measure one step"):
        budget.budget(llama, plan)


def test_an_unknown_size_is_named():
    with pytest.raises(ValueError, match="no published SmolVLM of size '7B': choose 256M"):
        smolvlm.config("7B")
