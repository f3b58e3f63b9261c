"""The pocket VLM: real classes, exact round trips, labels on the answers only, and it learns."""

import random

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from helpers.pairs.format import turns
from helpers.vlm import pocket
from helpers.vlm.load import ModelError
from helpers.world.scenes import DESCRIBE, NEGATIVES, describe, probes, sample_scenes


def test_every_sentence_of_the_world_survives_the_tokenizer(processor):
    tokenizer = processor.tokenizer
    for scene in sample_scenes(200):
        questions = [p.question for kind in NEGATIVES for p in probes(scene, kind)]
        for text in (describe(scene), DESCRIBE, *questions):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids) == text


def test_a_picture_becomes_nine_image_tokens(processor, images):
    text = processor.apply_chat_template(turns("Is there a fork?"), tokenize=False)
    ids = processor(images=[images[0]], text=[text])["input_ids"][0]
    assert ids.count(processor.image_token_id) == 9 == pocket.IMAGE_SEQ_LEN


def test_size_and_architecture(untrained):
    assert type(untrained).__name__ == "Idefics3ForConditionalGeneration"
    assert 400_000 < untrained.num_parameters() < 700_000


def test_checkpoint_loads_with_plain_transformers(untrained, processor, images, tmp_path):
    pocket.save(untrained, processor, tmp_path)
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pkl"))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    text = processor.apply_chat_template(turns("Is there a fork?"), tokenize=False)
    assert again.apply_chat_template(turns("Is there a fork?"), tokenize=False) == text
    before = untrained(**processor(images=[images[0]], text=[text], return_tensors="pt")).logits
    after = model(**again(images=[images[0]], text=[text], return_tensors="pt")).logits
    torch.testing.assert_close(before, after, rtol=0, atol=1e-4)


def test_missing_and_corrupt_checkpoints_are_one_sentence(untrained, processor, tmp_path):
    with pytest.raises(ModelError, match="no checkpoint in .*make pocket-model"):
        pocket.load(tmp_path / "nothing")
    pocket.save(untrained, processor, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read.*restore it"):
        pocket.load(tmp_path)


def test_labels_are_the_answers_and_nothing_else(processor):
    scenes = sample_scenes(5, part="train")
    lessons = pocket.encode_lessons(processor, scenes)
    rng = random.Random(0)
    for i, scene in enumerate(scenes):
        for kind, lesson in zip(
            ("captions", "questions"), pocket.lessons_of(scene, rng), strict=True
        ):
            labels = lessons[kind][1][i]
            text = processor.tokenizer.decode(labels[labels != -100])
            answers = [m["content"][0]["text"] for m in lesson if m["role"] == "assistant"]
            assert [t.strip() for t in text.split("<end_of_utterance>")[:-1]] == answers


def test_training_learns_and_is_seeded(processor):
    lessons = pocket.encode_lessons(processor, sample_scenes(24, part="train"))

    def losses(seed=0):
        seen = []
        model = pocket.build_model(processor, seed=seed)
        pocket.train_supervised(
            model, lessons, epochs=4, batch_size=8, log=lambda step, loss: seen.append(loss)
        )
        return seen

    first = losses()
    assert sum(first[-6:]) < 0.7 * sum(first[:6])
    assert first == pytest.approx(losses(), abs=1e-4)
    assert first != pytest.approx(losses(seed=1), abs=1e-2)


def test_the_shortest_training_runs_and_a_shorter_one_is_a_sentence(processor):
    lessons = pocket.encode_lessons(processor, sample_scenes(4, part="train"))
    model = pocket.build_model(processor, seed=0)
    pocket.train_supervised(model, lessons, epochs=2, batch_size=4)
    with pytest.raises(ValueError, match="only 0 steps: take more scenes"):
        pocket.train_supervised(model, lessons, epochs=2, batch_size=5)
