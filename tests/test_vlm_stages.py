"""The stages of the GPU tracks, with tiny random checkpoints of the classes they load."""

import gc
import weakref
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, Qwen3ForCausalLM

from helpers.feedback.hub_stages import (
    PICKSCORE,
    SD_TURBO,
    Painter,
    PromptFit,
    TextOnlyReward,
    Weights,
)
from helpers.feedback.pairing import Pair
from helpers.feedback.pipeline import Pipeline, Settings, run
from helpers.feedback.stages import Item, Prompt, SynthesisError, name_of, settings_of, text_only
from helpers.feedback.vlm_stages import (
    FACT,
    TRUTHFUL,
    Answerer,
    FactCount,
    SightedReward,
    answer_tracks,
    sentences,
)
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.setup.tracks import choose
from helpers.vlm.answers import Answer, answers, yes_no_log_odds
from helpers.vlm.load import ModelError, load_policy
from tests import standin, standin_stages

# Random models do not end their answers.
pytestmark = pytest.mark.filterwarnings("ignore:.*answers were cut")

MAKERS = {
    "sd_turbo": standin_stages.sd_turbo,
    "pickscore": standin_stages.pickscore,
    "skywork": standin_stages.skywork,
    "smolvlm": standin.smolvlm,
}
TEXTS = ("A red dog. It sleeps.", "Two cars and a tree", "- a lamp\n- a plate\n", "No.", "Yes!")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: folder} of a tiny checkpoint of each kind."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def track(folders):
    """The T4's track with a tiny model, on the CPU."""
    t4 = choose("t4", model=str(folders["smolvlm"]))
    return replace(t4, device="cpu", dtype="float32", max_new_tokens=8, eval_batch=2)


@pytest.fixture(scope="module")
def make(folders, track):
    """A function that makes a stage of any kind, small and on the CPU."""

    def make(kind, **settings):
        if kind is Painter:
            weights = Weights(str(folders["sd_turbo"]), variant="fp16")
            settings = {"weights": weights, "size": 64, "steps": 1, "device": "cpu"} | settings
        elif kind in (PromptFit, TextOnlyReward):
            name = "pickscore" if kind is PromptFit else "skywork"
            settings = {"weights": Weights(str(folders[name])), "device": "cpu"} | settings
        else:
            settings = {"track": track} | settings
        return kind(**settings)

    return make


KINDS = (Painter, PromptFit, Answerer, TextOnlyReward, SightedReward, FactCount)


@pytest.fixture(scope="module")
def items():
    """Five items with different pictures, prompts, questions and answers."""
    rng = np.random.default_rng(0)
    return [
        Item(
            key=f"{n}/0",
            prompt=f"a {colour} dog",
            question=f"What is {colour}?",
            seed=n + 1,
            image=Image.fromarray(rng.integers(0, 256, (40 + n, 64, 3), dtype=np.uint8)),
            answer=text,
        )
        for n, (colour, text) in enumerate(
            zip(("red", "blue", "grey", "pink", "tan"), TEXTS, strict=True)
        )
    ]


def off_by(a, b):
    """The largest difference of two pictures in any pixel, of 255."""
    return np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max()


def alike(results, others):
    """Are they the same to rounding: answers word for word, pixels to 1 of 255, scores to 1e-4?"""

    def same(a, b):
        if isinstance(a, float):
            return a == pytest.approx(b, abs=1e-4)
        return a == b if isinstance(a, str) else off_by(a, b) <= 1

    return all(same(a, b) for a, b in zip(results, others, strict=True))


# --- every stage --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_gives_one_result_an_item_and_loads_once(kind, make, items, monkeypatch):
    stage, loads = make(kind), []
    monkeypatch.setattr(kind, "load", lambda self, load=kind.load: loads.append(1) or load(self))
    assert list(stage([])) == [] and not loads
    assert len(list(stage(items))) == 5
    assert len(list(stage(items[:1]))) == 1
    assert len(loads) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_release_frees_the_weights_and_the_next_call_loads_them_again(kind, make, items):
    stage = make(kind)
    before = list(stage(items[:2]))
    model = stage.loaded[0]
    watched = [weakref.ref(m) for m in getattr(model, "components", {"": model}).values() if m]
    del model
    gc.collect()
    assert all(ref() is not None for ref in watched)
    stage.release()
    assert not any(ref() for ref in watched)
    assert alike(stage(items[:2]), before)


def test_settings_that_change_results_are_told_without_a_path(make, track, folders):
    for kind in KINDS:
        told = str([name_of(make(kind)), settings_of(make(kind))])
        assert all(str(folder.parent) not in told for folder in folders.values())
    assert settings_of(make(Painter, steps=2)) != settings_of(make(Painter, steps=3))
    assert settings_of(make(Painter, guidance=5.0)) != settings_of(make(Painter))
    warm = make(Answerer, temperature=1.0)
    assert name_of(warm) != name_of(make(Answerer)) and warm.by_batch
    assert settings_of(warm)["batch"] == track.eval_batch
    tracks = answer_tracks(choose("t4"))
    assert len({name_of(Answerer(track)) for track in tracks}) == len(tracks) >= 2


# --- pictures ----------------------------------------------------------------------------------


def test_a_picture_hangs_on_its_seed_and_prompt_and_not_on_its_batch(make, items):
    together = list(make(Painter, batch_size=5)(items))
    alone = [list(make(Painter)([item]))[0] for item in reversed(items)][::-1]
    torch.manual_seed(99)  # nor on the state of the machine's generator
    pairs = list(make(Painter, batch_size=2)(items[::-1]))[::-1]
    for a, b, c in zip(together, alone, pairs, strict=True):
        assert off_by(a, b) <= 1 and off_by(a, c) <= 1
    assert off_by(together[0], together[1]) > 20
    same, other_seed, other_prompt = make(Painter)(
        [items[0], replace(items[0], seed=7), replace(items[0], prompt="seven blue cars at sea")]
    )
    assert off_by(same, together[0]) <= 1 < off_by(same, other_seed)
    assert off_by(same, other_prompt) > 0


def test_size_steps_and_guidance_reach_the_model(make, items):
    plain, more, guided, large = (
        list(make(Painter, **settings)(items[:1]))[0]
        for settings in ({}, {"steps": 3}, {"guidance": 7.0}, {"size": 96})
    )
    assert off_by(plain, more) > 0 and off_by(plain, guided) > 0
    assert (large.size, large.mode) == ((96, 96), "RGB")
    for size in (0, 63, -8):
        with pytest.raises(ValueError, match=f"size={size}: .*multiple of 8"):
            make(Painter, size=size)
    with pytest.raises(ValueError, match="steps=0"):
        make(Painter, steps=0)


def test_what_float16_cannot_hold_is_told_and_float32_draws_it(make, items, tmp_path):
    weights = Weights(str(standin_stages.sd_turbo(tmp_path, overflowing=True)), variant="fp16")
    assert np.ptp(list(make(Painter, weights=weights, size=32)(items[:1]))[0]) > 0
    half = make(Painter, weights=weights, size=32, dtype="float16")
    with pytest.raises(
        SynthesisError, match="item 0/0, 'a red dog'.*not a number.*dtype='float32'"
    ):
        list(half(items[:1]))


def test_a_picture_that_a_safety_checker_took_is_told(make, items, tmp_path):
    weights = Weights(str(standin_stages.sd_turbo(tmp_path, censored=True)), variant="fp16")
    with pytest.raises(SynthesisError, match="item 2/0, 'a grey dog'.*safety checker"):
        list(make(Painter, weights=weights)(items[2:3]))


def stub_pipe(room=9, black=()):
    """Stands in for a loaded pipeline: draws its prompt's length, and runs out of memory."""

    def pipe(prompts, height, width, **_):
        if len(prompts) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        drawn = np.zeros((len(prompts), height, width, 3))
        for n, prompt in enumerate(prompts):
            drawn[n, : len(prompt)] = prompt not in black
        return SimpleNamespace(images=drawn)

    return pipe


def test_pictures_before_a_black_one_are_not_lost(make, items):
    stage = make(Painter, batch_size=5)
    stage.loaded = (stub_pipe(black=["a grey dog"]),)
    kept = []
    with pytest.raises(SynthesisError, match="item 2/0, 'a grey dog'.*one colour"):
        kept.extend(stage(items))
    assert len(kept) == 2


def test_memory_that_is_too_small_for_a_batch_halves_it(make, items):
    stage = make(Painter, batch_size=5)
    stage.loaded = (stub_pipe(room=1),)
    tight = list(stage(items))
    stage.loaded = (stub_pipe(),)
    assert alike(tight, stage(items))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_that_is_too_small_for_one_item_names_it(kind, make, items, monkeypatch):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    stage = make(kind)
    stage.loaded = stage.load()
    method = {Painter: "__call__", Answerer: "generate"}.get(kind, "forward")
    monkeypatch.setattr(type(stage.loaded[0]), method, full)
    with pytest.raises(SynthesisError, match=r"not enough memory for \S+.*: \w+"):
        list(stage(items[3:4]))


# --- the image reward --------------------------------------------------------------------------


def test_the_image_reward_is_clips_own_score(make, items, folders):
    model = CLIPModel.from_pretrained(folders["pickscore"]).eval()
    processor = CLIPProcessor.from_pretrained(folders["pickscore"])
    inputs = processor(
        text=[item.prompt for item in items],
        images=[item.image for item in items],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        wanted = model(**inputs).logits_per_image.diagonal()
    for size in (1, 2, 5):
        found = torch.tensor(make(PromptFit, batch_size=size)(items))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_image_reward_hangs_on_picture_and_prompt(make, items):
    first = items[0]
    changed = [first, replace(first, image=items[1].image), replace(first, prompt="two cars")]
    assert len(set(make(PromptFit)(changed))) == 3
    unread = replace(first, answer="another", question="another", about={"truth": 1})
    same, other = make(PromptFit)([first, unread])
    assert same == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
@pytest.mark.parametrize("kind", [PromptFit, Answerer, SightedReward, FactCount])
def test_pictures_of_any_mode_are_read_in_colour(kind, mode, make, items):
    picture = items[0].image.convert(mode)
    stage = make(kind)
    odd, colour = (
        stage([replace(items[0], image=image)]) for image in (picture, picture.convert("RGB"))
    )
    assert alike(odd, colour)


def test_a_prompt_longer_than_clip_reads_is_told(make, items):
    long = replace(items[3], prompt="a very " + "long " * 30 + "prompt")
    with pytest.warns(UserWarning, match="reads 77 tokens.*item 3/0 has"):
        scores = make(PromptFit)([*items[:2], long])
    assert all(map(np.isfinite, scores))


# --- answers -----------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_the_models_own_answers(make, items, track):
    model, processor = load_policy(track)
    wanted = answers(
        model,
        processor,
        [item.image for item in items],
        [item.question for item in items],
        max_new_tokens=track.max_new_tokens,
    )
    assert make(Answerer)(items) == wanted
    assert make(Answerer)(items[::-1]) == wanted[::-1]
    assert all(isinstance(text, Answer) for text in wanted)


def test_sampled_answers_hang_on_the_items_seeds_and_on_nothing_else(make, items):
    stage = make(Answerer, temperature=1.0)
    first = stage(items)
    torch.manual_seed(1234)
    torch.rand(7)
    assert stage(items) == first
    reseeded = stage([replace(item, seed=item.seed + 1000) for item in items])
    assert reseeded != first
    with pytest.raises(ValueError, match="temperature=-1"):
        make(Answerer, temperature=-1)


# --- the reward that reads text only -----------------------------------------------------------


def test_the_text_reward_never_gets_the_picture(make, items):
    blank = [replace(item, image=items[-1].image, prompt="", about={}) for item in items]
    stage = make(TextOnlyReward)
    scores = stage(items)
    assert alike(scores, stage(blank)) and alike(scores, text_only(stage)(items))


def test_the_text_reward_hangs_on_question_and_answer_and_not_on_padding(make, items, folders):
    stage = make(TextOnlyReward, batch_size=5)
    together = stage(items)
    assert len(set(together)) == 5
    model, tokenizer = stage.loaded
    for item, score in zip(items, together, strict=True):
        text = (
            f"<|im_start|>user\n{item.question}<|im_end|>\n"
            f"<|im_start|>assistant\n{item.answer}<|im_end|>\n"
        )
        with torch.no_grad():
            states = model.model(**tokenizer(text, return_tensors="pt")).last_hidden_state
            assert score == pytest.approx(model.score(states[0, -1]).item(), abs=1e-5)
    assert stage([replace(items[0], question="Why?")]) != together[:1]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"labels": 2}, "has 2 outputs"),
        ({"template": None}, "no chat template"),
        ({"kind": Qwen3ForCausalLM}, "has no score.weight: it was not trained as a Qwen3"),
    ],
)
def test_what_is_no_reward_model_for_conversations_is_refused(how, message, make, items, tmp_path):
    folder = standin_stages.skywork(tmp_path, **how)
    with pytest.raises(ModelError, match=message):
        make(TextOnlyReward, weights=Weights(str(folder)))(items)


# --- the rewards that look ---------------------------------------------------------------------


def test_the_sighted_reward_is_the_log_odds_of_yes_and_changes_with_the_picture(make, items, track):
    model, processor = load_policy(track)
    asked = [TRUTHFUL.format(question=item.question, answer=item.answer) for item in items]
    images = [item.image for item in items]
    wanted = yes_no_log_odds(model, processor, images, asked).tolist()
    stage = make(SightedReward)
    assert stage(items) == pytest.approx(wanted, abs=1e-5)
    swapped = stage([replace(items[0], image=items[1].image), items[0]])
    assert swapped[0] != pytest.approx(swapped[1], abs=1e-6)


def test_facts_are_counted_as_the_model_denies_them(make, items, track):
    model, processor = load_policy(track)
    stage = make(FactCount)
    assert stage.score([("a", 2.0), ("b", -0.5), ("c", -3.0), ("d", 0.0)]) == -3.0
    odd = replace(items[0], answer="A {fact} and {0} in {braces.", question="{answer}?")
    assert len(stage([odd])) == len(make(SightedReward)([odd])) == 1
    scores = stage(items)
    for item, score in zip(items, scores, strict=True):
        asked = [FACT.format(fact=fact) for fact in sentences(item.answer)]
        odds = yes_no_log_odds(model, processor, [item.image] * len(asked), asked)
        assert score == -(odds <= 0).sum().item()
        assert score.about["facts"] == [[q, o > 0] for q, o in zip(asked, odds, strict=True)]


@pytest.mark.parametrize("kind", [SightedReward, FactCount])
def test_an_empty_answer_has_no_score_and_is_not_the_best(kind, make, items):
    found = make(kind)([items[0], replace(items[1], answer=" \n "), items[2]])
    assert [score.nothing for score in found] == [False, True, False]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A dog. A cat!  Is it red?", ["A dog.", "A cat!", "Is it red?"]),
        ("- a lamp\n* a plate\n\n1. cars\n2) a tree", ["a lamp", "a plate", "cars", "a tree"]),
        ("3.5 metres tall; it leans", ["3.5 metres tall;", "it leans"]),
        ("", []),
        ("... !\n - \n 42.", []),
        ("Ein Hund. 犬がいる", ["Ein Hund.", "犬がいる"]),
    ],
)
def test_sentences(text, wanted):
    assert sentences(text) == wanted


# --- where weights come from -------------------------------------------------------------------

FILES = {
    "sd_turbo": (Painter, "unet/diffusion_pytorch_model.fp16.safetensors"),
    "sd_turbo text": (Painter, "text_encoder/model.fp16.safetensors"),
    "pickscore": (PromptFit, "model.safetensors"),
    "skywork": (TextOnlyReward, "model.safetensors"),
    "smolvlm": (Answerer, "model.safetensors"),
}


@pytest.mark.parametrize("case", FILES)
def test_pickled_weights_are_refused(case, make, items, track, tmp_path, monkeypatch):
    kind, file = FILES[case]
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    name = case.split()[0]
    folder = standin_stages.pickled(MAKERS[name](tmp_path), file)
    assert list(folder.rglob("*.bin"))
    if kind is Answerer:
        stage = Answerer(replace(track, model=str(folder)))
    else:
        variant = "fp16" if kind is Painter else None
        stage = make(kind, weights=Weights(str(folder), variant=variant))
    with pytest.raises(ModelError, match="safetensors|no checkpoint in"):
        list(stage(items[:1]))


@pytest.mark.parametrize("kind", [Painter, PromptFit, TextOnlyReward])
def test_stages_come_from_the_hub_at_their_revision(kind, hub, make, folders, items, tmp_path):
    name = {Painter: "sd_turbo", PromptFit: "pickscore", TextOnlyReward: "skywork"}[kind]
    hub.add("models", "me/part", folders[name])
    hub.add("models", "me/part", {"model.bin": b"pickle", "pytorch_model.bin": b"pickle"})
    sha = hub.repos["models", "me/part"].sha
    hub.add(
        "models", "me/part", {"README.md": "newer", "config.json": "{", "model_index.json": "{"}
    )
    stage = make(kind, weights=replace(make(kind).weights, name="me/part", revision=sha))
    assert alike(stage(items[:2]), make(kind)(items[:2]))
    assert not [path for _, path in hub.requests if ".bin" in path]
    assert settings_of(stage)["weights"] == f"me/part@{sha}"


def test_a_gated_stage_is_a_sentence_without_the_token(hub, make, folders, items, monkeypatch):
    hub.add("models", "me/part", folders["pickscore"], gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(ModelError, match="me/part cannot be read .*check the name") as caught:
        make(PromptFit, weights=Weights("me/part"))(items)
    assert "hf_" not in str(caught.value)


def test_the_published_checkpoints_are_pinned_where_a_revision_is_known():
    assert len(SD_TURBO.revision) == len(PICKSCORE.revision) == 40


# --- the whole pipeline ------------------------------------------------------------------------


def test_the_pipeline_holds_one_model_at_a_time_and_makes_sound_pairs(make, monkeypatch, tmp_path):
    prompts = [Prompt(f"a {colour} dog", f"What is {colour}?") for colour in ("red", "blue")]
    answerers = [make(Answerer), make(Answerer, temperature=1.0)]
    stages, held = [make(Painter), make(PromptFit), *answerers, make(FactCount)], []
    pipeline = Pipeline(*stages[:2], answerers, stages[-1], every_two)
    for stage in stages:
        load = type(stage).load
        monkeypatch.setattr(stage, "load", lambda stage=stage, load=load: holding(load(stage)))

    def holding(loaded):
        held.append(sum(stage.loaded is not None for stage in stages))
        return loaded

    settings = Settings(candidates=2, samples=2, batch_size=3)
    pairs = run(prompts, pipeline, settings, tmp_path)
    assert held == [0] * 5 and not any(stage.loaded for stage in stages)
    assert check_pairs(to_conversational(pairs)) == [] and len(pairs) > 0
    assert {row["image"].size for row in pairs} == {(64, 64)}
    again = run(prompts, pipeline, settings, tmp_path)
    assert len(held) == 5 and again[:] == pairs[:]  # nothing was loaded for what is there


def every_two(groups, seed=0):
    """A rule for random judges, which often see no difference: the first answer is the better."""
    made = [Pair(replace(a, score=1.0), replace(b, score=0.0)) for a, b, *_ in groups]
    return made, Counter()
