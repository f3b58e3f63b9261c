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
    """A function that makes a part of any kind, small and on the CPU."""

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


# --- every part --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_gives_one_result_an_item_and_loads_once(kind, make, items, monkeypatch):
    part, loads = make(kind), []
    monkeypatch.setattr(kind, "load", lambda self, load=kind.load: loads.append(1) or load(self))
    assert list(part([])) == [] and not loads
    assert len(list(part(items))) == 5
    assert len(list(part(items[:1]))) == 1
    assert len(loads) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_release_frees_the_weights_and_the_next_call_loads_them_again(kind, make, items):
    part = make(kind)
    before = list(part(items[:2]))
    model = part.loaded[0]
    watched = [weakref.ref(m) for m in getattr(model, "components", {"": model}).values() if m]
    del model
    gc.collect()
    assert all(ref() is not None for ref in watched)
    part.release()
    assert not any(ref() for ref in watched)
    assert alike(part(items[:2]), before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_part_is_goes_into_the_card_without_a_path(kind, make, folders):
    part = make(kind)
    told = str([name_of(part), settings_of(part)])
    assert all(str(folder.parent) not in told for folder in folders.values())


def test_settings_that_change_results_are_told(make, track):
    assert settings_of(make(Painter, steps=2)) != settings_of(make(Painter, steps=3))
    assert settings_of(make(Painter, guidance=5.0)) != settings_of(make(Painter))
    warm = make(Answerer, temperature=1.0)
    assert name_of(warm) != name_of(make(Answerer))
    assert settings_of(warm)["batch"] == track.eval_batch


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


def test_pictures_have_the_size_asked_for(make, items):
    assert {(p.size, p.mode) for p in make(Painter, size=96)(items[:2])} == {((96, 96), "RGB")}
    for size in (0, 63, -8):
        with pytest.raises(ValueError, match=f"size={size}: .*multiple of 8"):
            make(Painter, size=size)
    with pytest.raises(ValueError, match="steps=0"):
        make(Painter, steps=0)


def test_steps_and_guidance_reach_the_model(make, items):
    plain, more, guided = (
        list(make(Painter, **settings)(items[:1]))[0]
        for settings in ({}, {"steps": 3}, {"guidance": 7.0})
    )
    assert off_by(plain, more) > 0 and off_by(plain, guided) > 0


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
    part = make(Painter, batch_size=5)
    part.loaded = (stub_pipe(black=["a grey dog"]),)
    kept = []
    with pytest.raises(SynthesisError, match="item 2/0, 'a grey dog'.*one colour"):
        kept.extend(part(items))
    assert len(kept) == 2


def test_memory_that_is_too_small_for_a_batch_halves_it(make, items):
    part = make(Painter, batch_size=5)
    part.loaded = (stub_pipe(room=1),)
    tight = list(part(items))
    part.loaded = (stub_pipe(),)
    assert alike(tight, part(items))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_that_is_too_small_for_one_item_names_it(kind, make, items, monkeypatch):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    part = make(kind)
    part.loaded = part.load()
    method = {Painter: "__call__", Answerer: "generate"}.get(kind, "forward")
    monkeypatch.setattr(type(part.loaded[0]), method, full)
    with pytest.raises(SynthesisError, match=r"not enough memory for \S+.*: \w+"):
        list(part(items[3:4]))


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


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
@pytest.mark.parametrize("kind", [PromptFit, Answerer, SightedReward, FactCount])
def test_pictures_of_any_mode_are_read_in_colour(kind, mode, make, items):
    picture = items[0].image.convert(mode)
    part = make(kind)
    odd, colour = (
        part([replace(items[0], image=image)]) for image in (picture, picture.convert("RGB"))
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
    part = make(Answerer, temperature=1.0)
    first = part(items)
    torch.manual_seed(1234)
    torch.rand(7)
    assert part(items) == first
    reseeded = part([replace(item, seed=item.seed + 1000) for item in items])
    assert reseeded != first
    with pytest.raises(ValueError, match="temperature=-1"):
        make(Answerer, temperature=-1)


def test_a_track_has_two_answerers_of_different_models():
    found = answer_tracks(choose("t4"))
    assert len(found) >= 2 and len({track.model for track in found}) == len(found)
    assert {track.name for track in found} == {"t4"}
    assert len({name_of(Answerer(track)) for track in found}) == len(found)


# --- the reward that reads text only -----------------------------------------------------------


def test_the_text_reward_never_gets_the_picture(make, items):
    blank = [replace(item, image=items[-1].image, prompt="", about={}) for item in items]
    part = make(TextOnlyReward)
    scores = part(items)
    assert alike(scores, part(blank)) and alike(scores, text_only(part)(items))
    bare = [
        SimpleNamespace(key=i.key, prompt="", question=i.question, answer=i.answer) for i in items
    ]
    assert alike(part(bare), scores)  # an item that has no picture to look at


def test_the_text_reward_hangs_on_question_and_answer_and_not_on_padding(make, items, folders):
    part = make(TextOnlyReward, batch_size=5)
    together = part(items)
    assert len(set(together)) == 5
    model, tokenizer = part.loaded
    for item, score in zip(items, together, strict=True):
        text = (
            f"<|im_start|>user\n{item.question}<|im_end|>\n"
            f"<|im_start|>assistant\n{item.answer}<|im_end|>\n"
        )
        with torch.no_grad():
            states = model.model(**tokenizer(text, return_tensors="pt")).last_hidden_state
            assert score == pytest.approx(model.score(states[0, -1]).item(), abs=1e-5)
    assert part([replace(items[0], question="Why?")]) != together[:1]


def test_a_language_model_is_not_taken_for_a_reward_model(make, items, tmp_path):
    folder = standin_stages.skywork(tmp_path, kind=Qwen3ForCausalLM)
    with pytest.raises(ModelError, match="has no score.weight: it was not trained as a Qwen3"):
        make(TextOnlyReward, weights=Weights(str(folder)))(items)


@pytest.mark.parametrize(
    ("how", "message"),
    [({"labels": 2}, "has 2 outputs"), ({"template": None}, "no chat template")],
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
    part = make(SightedReward)
    assert part(items) == pytest.approx(wanted, abs=1e-5)
    swapped = part([replace(items[0], image=items[1].image), items[0]])
    assert swapped[0] != pytest.approx(swapped[1], abs=1e-6)


def test_facts_are_counted_as_the_model_denies_them(make, items, track):
    model, processor = load_policy(track)
    scores = make(FactCount)(items)
    for item, score in zip(items, scores, strict=True):
        asked = [FACT.format(fact=fact) for fact in sentences(item.answer)]
        odds = yes_no_log_odds(model, processor, [item.image] * len(asked), asked)
        assert score == -(odds <= 0).sum().item()
        assert score.about["facts"] == [[q, o > 0] for q, o in zip(asked, odds, strict=True)]


def test_every_denied_fact_counts_once(make):
    part = make(FactCount)
    replies = [("a", 2.0), ("b", -0.5), ("c", -3.0), ("d", 0.0)]
    assert part.score(replies) == -3.0  # yes must be the likelier one
    assert part.score(replies[:1]) == 0.0


@pytest.mark.parametrize("kind", [SightedReward, FactCount])
@pytest.mark.parametrize("silence", ["", "  \n "])
def test_an_empty_answer_has_no_score_and_is_not_the_best(kind, silence, make, items):
    found = make(kind)([items[0], replace(items[1], answer=silence), items[2]])
    assert [score.nothing for score in found] == [False, True, False]
    alone = make(kind)([replace(items[1], answer=silence)])
    assert alone[0].nothing


def test_braces_in_answers_are_text(make, items):
    odd = replace(items[0], answer="A {fact} and {0} in {braces.", question="{answer}?")
    assert len(make(FactCount)([odd])) == len(make(SightedReward)([odd])) == 1


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
        part = Answerer(replace(track, model=str(folder)))
    else:
        variant = "fp16" if kind is Painter else None
        part = make(kind, weights=Weights(str(folder), variant=variant))
    with pytest.raises(ModelError, match="safetensors|no checkpoint in"):
        list(part(items[:1]))


@pytest.mark.parametrize("kind", [Painter, PromptFit, TextOnlyReward])
def test_parts_come_from_the_hub_at_their_revision(kind, hub, make, folders, items, tmp_path):
    name = {Painter: "sd_turbo", PromptFit: "pickscore", TextOnlyReward: "skywork"}[kind]
    hub.add("models", "me/part", folders[name])
    hub.add("models", "me/part", {"model.bin": b"pickle", "pytorch_model.bin": b"pickle"})
    sha = hub.repos["models", "me/part"].sha
    hub.add(
        "models", "me/part", {"README.md": "newer", "config.json": "{", "model_index.json": "{"}
    )
    part = make(kind, weights=replace(make(kind).weights, name="me/part", revision=sha))
    assert alike(part(items[:2]), make(kind)(items[:2]))
    assert not [path for _, path in hub.requests if ".bin" in path]
    assert settings_of(part)["weights"] == f"me/part@{sha}"


def test_a_gated_part_is_a_sentence_without_the_token(hub, make, folders, items, monkeypatch):
    hub.add("models", "me/part", folders["pickscore"], gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(ModelError, match="me/part cannot be read .*check the name") as caught:
        make(PromptFit, weights=Weights("me/part"))(items)
    assert "hf_" not in str(caught.value)


def test_the_published_checkpoints_are_pinned_where_a_revision_is_known():
    for weights in (SD_TURBO, PICKSCORE):
        assert len(weights.revision) == 40


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
