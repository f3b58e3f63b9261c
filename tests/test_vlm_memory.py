"""The budget counts what the real models have, and meets what the CPU's allocator records."""

import json
from dataclasses import replace

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
from helpers.vlm import memory, pocket, smolvlm
from helpers.vlm.load import limit_edge, load, lora_config
from helpers.vlm.memory import BudgetError, Plan, budget, verdict
from helpers.world.scenes import draw, sample_scene

T4 = Machine("cuda", "Tesla T4", (7, 5), 14.6)
TOLERANCE = 0.15  # what the course promises
CLOSE = 0.1  # what the CPU's allocator recorded besides the weights
PLAN = Plan(pairs=2, tiles=1, text_tokens=30, answer_tokens=150)
MEASURED = [gpu_rehearsal.RESULTS / name for name in ("cpu_budget.json", "gpu_rehearsal.json")]


@pytest.fixture(scope="module")
def shapes():
    return {size: smolvlm.shapes(smolvlm.config(size)) for size in smolvlm.PUBLISHED}


# --- weights, tokens -----------------------------------------------------------------------------


def test_weights_are_those_of_the_published_files(shapes):
    bf16 = replace(PLAN, dtype="bfloat16")
    held = {size: memory.base_bytes(model, bf16) for size, model in shapes.items()}
    assert 0 < 513_028_808 - held["256M"] < 100_000  # the file begins with a list of its tensors
    assert held["500M"] == 2 * 507_482_304
    assert held["2.2B"] / 1e9 == pytest.approx(4.49, abs=0.005)  # as the Hub shows its size


@pytest.mark.parametrize("size", smolvlm.PUBLISHED)
def test_an_adapter_has_as_many_weights_as_peft_makes(size, shapes):
    model = smolvlm.shapes(smolvlm.config(size))
    adapted = get_peft_model(model, lora_config(model, rank=8))
    assert memory.adapter_weights(shapes[size], 8) == adapted.get_nb_trainable_parameters()[0]


def test_a_base_in_4_bits_has_the_bytes_that_bitsandbytes_makes(tmp_path, processor):
    pytest.importorskip("bitsandbytes")
    model = small_model(processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = list(load(tmp_path, quantize=True)[0].parameters())
    held = sum(weight.nbytes for weight in weights)
    held += sum(
        state.nbytes
        for weight in weights
        if hasattr(weight, "quant_state")
        for name, state in weight.quant_state.as_dict(packed=True).items()
        if name.endswith(("absmax", "nested_absmax"))
    )
    assert memory.base_bytes(model, replace(PLAN, quantize=True)) == pytest.approx(held, rel=0.01)


def test_parts_by_hand(shapes):
    """20 bytes a weight, as the public post has it for 8B: 160 GB; and an adapter's 16."""
    model, weights = shapes["256M"], shapes["256M"].num_parameters()
    full = budget(model, replace(PLAN, rank=None))
    assert (full.weights, full.reference, full.adapter) == (4 * weights, 4 * weights, 0)
    assert (full.gradients, full.optimizer) == (4 * weights, 8 * weights)
    lora = budget(model, replace(PLAN, dtype="bfloat16", autocast="bf16"))
    trained = memory.adapter_weights(model, 16)
    assert (lora.weights, lora.reference, lora.adapter) == (2 * weights, 0, 4 * trained)
    assert (lora.gradients, lora.optimizer) == (4 * trained, 8 * trained)


def test_three_ways_and_their_table(shapes):
    ways = memory.ways(shapes["2.2B"], PLAN)
    full, lora, small = ways.values()
    assert full.total > 4 * lora.total and lora.total > 1.5 * small.total
    lines = memory.table(ways).splitlines()
    assert lines[0].split()[1:3] == ["full", "float32"]
    sums = [sum(float(line.split()[i]) for line in lines[1:-2]) for i in (1, 2, 3)]
    assert sums == pytest.approx([float(x) for x in lines[-2].split()[1:]], abs=0.04)
    assert lines[-1].split()[-1] == "162"  # 81 for each row of a pair


@pytest.mark.parametrize(
    ("model", "edge", "size", "tiles"),
    [
        ("256M", 2048, (640, 480), 13),
        ("500M", 1024, (640, 640), 5),
        ("256M", 512, (640, 640), 1),
        ("2.2B", 1536, (640, 640), 17),
        ("2.2B", 384, (640, 480), 1),
    ],
)
def test_image_tokens_are_those_of_a_tile_times_the_tiles(processor, model, edge, size, tiles):
    reader = smolvlm.processor(model, processor.tokenizer)
    limit_edge(reader, edge)
    assert memory.tiles(reader, *size) == tiles
    tokens = tiles * smolvlm.tile_tokens(smolvlm.config(model))
    assert memory.image_tokens(reader, *size) == tokens
    pixels = reader(images=[[draw(sample_scene(0)).resize(size)]], text=["<image>"])
    assert len(pixels["pixel_values"][0]) == tiles
    assert memory.image_tokens(processor, *size) == 9  # a pocket picture's, whatever its size


# --- a step, as the allocator saw it -------------------------------------------------------------


def small_model(processor, layers=10):
    """Wide and deep enough that activations outweigh the tile of logits."""
    config = pocket.build_model(processor).config
    config.text_config.update({"hidden_size": 192, "intermediate_size": 512, "head_dim": 32})
    config.text_config.update({"num_attention_heads": 6, "num_hidden_layers": layers})
    config.vision_config.update({"hidden_size": 128, "intermediate_size": 512})
    config.vision_config.update({"patch_size": 2, "num_hidden_layers": 4})
    config.scale_factor = 8  # 576 patches and, as before, 9 tokens
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")


def pairs_of(count, long, short):
    words = "I see a red plate and a fork".split() * long
    one = {
        "images": [draw(sample_scene(0))],
        "prompt": turns("What do you see?"),
        "chosen": turns("", " ".join(words[: long - 1]))[1:],
        "rejected": turns("", " ".join(words[: short - 1]))[1:],
    }
    return Dataset.from_list([one] * count)


STEPS = {
    "one pair": {"pairs": 1},
    "two pairs": {},
    "checkpointing": {"checkpointing": True},
    "autocast": {"autocast": "bf16"},
    "autocast, checkpointing": {"autocast": "bf16", "checkpointing": True},
    "shared": {"shared": True},
    "shared, checkpointing": {"shared": True, "checkpointing": True},
    "shared, autocast": {"shared": True, "autocast": "bf16"},
    "no adapter": {"rank": None},
}


@pytest.fixture(scope="module")
def step(processor, tmp_path_factory):
    """(name, layers) -> (Budget, bytes at the peak, bytes at the end) of two steps, made once."""
    made = {}

    def run(name, layers=10):
        if (name, layers) not in made:
            plan = replace(PLAN, answer_tokens=40, **STEPS[name])
            folder = tmp_path_factory.mktemp("step")
            made[name, layers] = two_steps(processor, folder, plan, layers)
        return made[name, layers]

    return run


def two_steps(processor, folder, plan, layers):
    model, reference = small_model(processor, layers), None
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
            model, processor, pairs, track, folder, trainer_class=kind, **settings
        )
    else:
        reference, config = small_model(processor, layers), dpo_config(track, folder, **settings)
        trainer = DPOTrainer(
            model, reference, config, train_dataset=pairs, processing_class=processor
        )
    batch = trainer.data_collator([dict(pairs[i]) for i in range(plan.pairs)])
    text = batch["input_ids"].shape[1] - plan.answer_tokens - 11  # 9 features, 2 markers
    held = sum(x.nbytes for x in (*trainer.model.parameters(), *batch.values()))
    held += sum(x.nbytes for x in reference.parameters()) if reference else 0
    peak, end = allocated(trainer.train)
    found = budget(small_model(processor, layers), replace(plan, text_tokens=text))
    return found, held + peak, held + end


@pytest.mark.parametrize("name", STEPS)
def test_a_budget_meets_the_peak_of_a_step(name, step):
    found, peak, _ = step(name)
    assert found.total == pytest.approx(peak, rel=TOLERANCE)
    if name != "no adapter":
        stays = found.weights + found.adapter
        assert found.total - stays == pytest.approx(peak - stays, rel=CLOSE)


@pytest.mark.parametrize("name", ["two pairs", "autocast"])
def test_each_decoder_layer_holds_what_is_counted(name, step):
    (deep, deep_peak, _), (flat, flat_peak, _) = step(name), step(name, layers=5)
    # gradients come after the peak
    counted = deep.total - deep.gradients - (flat.total - flat.gradients)
    assert counted == pytest.approx(deep_peak - flat_peak, rel=0.03)


@pytest.mark.parametrize("name", ["one pair", "no adapter"])
def test_what_stays_between_steps_is_base_reference_adapter_and_moments(name, step):
    """With an adapter, a reference counted beside it would be a third more."""
    found, _, end = step(name)
    stays = found.weights + found.reference + found.adapter + found.optimizer
    assert stays == pytest.approx(end, rel=0.05)


def test_tiles_of_logits_have_the_size_that_trl_gives_them():
    assert memory.TILE_ENTRIES == _CHUNKED_LOGPROB_CHUNK_SIZE
    assert memory.TILE_POSITIONS == TOKEN_CHUNK_SIZE


@pytest.mark.parametrize("file", MEASURED, ids=lambda file: file.stem)
def test_budgets_meet_the_measured_peaks_at_real_size(file, shapes):
    if not file.exists():
        pytest.skip("not measured yet: no GPU was there")
    rows = [row for row in json.loads(file.read_text())["rows"] if "measured_gb" in row]
    assert rows
    for row in rows:
        found = budget(shapes[row["size"]], Plan(**row["plan"]))
        assert found.total / 1e9 == pytest.approx(row["measured_gb"], rel=TOLERANCE), row["case"]
        stays = (found.weights + found.adapter) / 1e9
        close = CLOSE if row["plan"]["device"] == "cpu" else 1
        moves = row["measured_gb"] - stays
        assert found.total / 1e9 - stays == pytest.approx(moves, rel=close), row["case"]


# --- plans and verdicts --------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACKS)
def test_a_plan_is_what_the_trainer_will_do(name, tmp_path):
    plan = memory.plan_for(choose(name), 1, 30, 150)
    config = dpo_config(choose(name), tmp_path)
    assert plan.checkpointing == config.activation_checkpointing
    assert plan.pairs == config.per_device_train_batch_size


def test_a_plan_that_does_not_fit_is_turned_down_until_it_does(shapes):
    said = verdict(shapes["256M"], PLAN, T4)
    assert said.startswith("It fits: ") and "15.7 GB on Tesla T4" in said
    large = replace(PLAN, pairs=8, tiles=17, device="cuda")
    said = verdict(shapes["2.2B"], large, T4)
    assert said.startswith("It does not fit: ")
    assert said.index("one pair at a time (") < said.index("one tile a picture (")
    assert "4 bits" not in said  # it fits before that
    fitting = budget(shapes["2.2B"], replace(large, pairs=1, tiles=1))
    assert said.endswith(f"Then it needs {fitting.total / 1e9:.1f} GB.")


def test_a_mend_that_changes_nothing_is_not_named(shapes):
    small = Machine("cuda", "a small GPU", (7, 5), 1.0)
    said = verdict(shapes["256M"], replace(PLAN, pairs=1, device="cuda"), small)
    assert "one pair" not in said and "one tile" not in said and "4 bits" in said
    tiny = Machine("cuda", "a toy", (7, 5), 0.5)
    assert "take a smaller model" in verdict(shapes["2.2B"], PLAN, tiny)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pairs": 0}, "pairs is 0: it must be at least 1"),
        ({"answer_tokens": -5}, "answer_tokens is -5"),
        ({"rank": 0}, "rank is 0"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8': choose float32"),
        ({"rank": None, "dtype": "bfloat16"}, "the base itself is trained, in float32"),
        ({"rank": None, "quantize": True}, "quantize=False, or give a rank"),
        ({"rank": None, "shared": True}, "shared where the tower is frozen: give a rank"),
    ],
)
def test_a_bad_plan_is_a_sentence(change, sentence):
    with pytest.raises(BudgetError, match=sentence):
        replace(PLAN, **change)


def test_another_architecture_and_an_unknown_size_are_named():
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, vocab_size=8, **small))
    with pytest.raises(BudgetError, match="LlamaForCausalLM is a llama: .*measure one step"):
        budget(llama, PLAN)
    with pytest.raises(ValueError, match="no published SmolVLM of size '7B': choose 256M"):
        smolvlm.config("7B")
