"""The pocket VLM: real classes, exact round trips, labels on the answers only, and it learns."""

import random

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from helpers.pairs.format import turns
from helpers.vlm import pocket
from helpers.world.scenes import DESCRIBE, NEGATIVES, describe, probes, sample_scenes


def test_every_sentence_of_the_world_survives_the_tokenizer(processor):
    tokenizer = processor.tokenizer
    for scene in sample_scenes(100):
        questions = [p.question for kind in NEGATIVES for p in probes(scene, kind)]
        for text in (describe(scene), DESCRIBE, *questions):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids) == text


def test_size_and_architecture(untrained, processor, images):
    assert type(untrained).__name__ == "Idefics3ForConditionalGeneration"
    assert 400_000 < untrained.num_parameters() < 700_000
    text = processor.apply_chat_template(turns("Is there a fork?"), tokenize=False)
    ids = processor(images=[images[0]], text=[text])["input_ids"][0]
    assert ids.count(processor.image_token_id) == 9 == pocket.IMAGE_SEQ_LEN


def test_a_checkpoint_loads_with_plain_transformers(untrained, processor, images, tmp_path):
    pocket.save(untrained, processor, tmp_path)
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pkl"))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    text = processor.apply_chat_template(turns("Is there a fork?"), tokenize=False)
    assert again.apply_chat_template(turns("Is there a fork?"), tokenize=False) == text
    before = untrained(**processor(images=[images[0]], text=[text], return_tensors="pt")).logits
    after = model(**again(images=[images[0]], text=[text], return_tensors="pt")).logits
    torch.testing.assert_close(before, after, rtol=0, atol=1e-4)


def test_labels_are_the_answers_and_nothing_else(processor):
    scenes, rng = sample_scenes(5, part="train"), random.Random(0)
    lessons = pocket.encode_conversations(processor, scenes)
    for i, scene in enumerate(scenes):
        for kind, talk in zip(
            ("captions", "questions"), pocket.conversations(scene, rng), strict=True
        ):
            labels = lessons[kind][1][i]
            text = processor.tokenizer.decode(labels[labels != -100])
            said = [m["content"][0]["text"] for m in talk if m["role"] == "assistant"]
            assert [t.strip() for t in text.split("<end_of_utterance>")[:-1]] == said


def test_training_learns_and_is_seeded(processor):
    lessons = pocket.encode_conversations(processor, sample_scenes(16, part="train"))

    def losses(epochs, seed=0, batch_size=8):
        seen, model = [], pocket.build_model(processor, seed=seed)
        log = lambda step, loss: seen.append(loss)  # noqa: E731
        pocket.train_supervised(model, lessons, epochs, batch_size, log=log)
        return seen

    first = losses(4)
    assert sum(first[-6:]) < 0.7 * sum(first[:6])
    again = losses(1)  # the shortest there is: four steps
    assert again == pytest.approx(losses(1), abs=1e-4) != pytest.approx(losses(1, seed=1), abs=1e-2)
    with pytest.raises(ValueError, match="only 0 steps: take more scenes"):
        losses(1, batch_size=17)
