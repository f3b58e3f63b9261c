"""Wrong pictures are wrong for everybody, and degenerate answerers look at none."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from helpers.evaluation.controls import blanked, degenerate, swapped
from helpers.pairs.images import image_digest
from helpers.vlm.answers import answer_logps
from helpers.world.scenes import draw, sample_scene


@pytest.mark.parametrize("seed", range(20))
def test_nobody_keeps_its_picture_or_an_identical_one(seed):
    rng = np.random.default_rng(seed)
    drawn = [draw(sample_scene(i)) for i in range(int(rng.integers(2, 9)))]
    picked = [0, 1, *rng.integers(0, len(drawn), 20)]
    images = [drawn[i].copy() for i in picked]  # identical pictures are objects of their own
    got = swapped(images, seed)
    mine, theirs = ([image_digest(image) for image in some] for some in (images, got))
    assert all(a != b for a, b in zip(mine, theirs, strict=True))
    assert len(set(zip(mine, theirs, strict=True))) == len(set(mine)) == len(set(theirs))
    assert sorted(Counter(mine).values()) == sorted(Counter(theirs).values())


def test_swapping_is_seeded_and_takes_two_pictures(images):
    deals = {tuple(map(image_digest, swapped(images, seed))) for seed in (*range(10), *range(10))}
    assert 5 < len(deals) <= 10
    with pytest.raises(ValueError, match="two different pictures"):
        swapped([images[0], images[0].copy()])


def test_blank_is_grey_and_is_not_dropped(untrained, processor, images):
    blank = blanked([images[0].resize((30, 20)), images[1].convert("L")])
    assert [image.size for image in blank] == [(30, 20), images[1].size]
    assert {image.getpixel((3, 4)) for image in blank} == {(128, 128, 128)}
    pixels = processor(images=[blank], text=["<image><image>"], return_tensors="pt")["pixel_values"]
    assert (pixels != 0).all()  # all-zero pictures are padding to Idefics3
    asked, given = ["What do you see?"] * 6, ["I see a red cup on the left."] * 6
    logps = answer_logps(untrained, processor, blanked(images), asked, given)
    assert (logps - logps[0]).abs().max() < 1e-4  # nothing left to tell them apart
    assert (logps - answer_logps(untrained, processor, images, asked, given)).abs().min() > 1e-6


def test_degenerate_answerers():
    found = degenerate(["I see a cup.", "I see a cup, a fork and a plate.", ""])
    assert list(found) == ["silence", 'always "no"', 'always "yes"', "longest caption"]
    assert {len(texts) for texts in found.values()} == {3}
    assert found["silence"] == ["", "", ""] and found['always "no"'] == ["No"] * 3
    assert set(found["longest caption"]) == {"I see a cup, a fork and a plate."}
    assert degenerate([])["longest caption"] == []


def test_an_image_of_a_column_is_as_good(images):
    """A dataset's column decodes as it is read; nothing but length, order and PIL is needed."""
    from datasets import Dataset
    from datasets import Image as Feature

    column = Dataset.from_dict({"image": images}).cast_column("image", Feature())["image"]
    assert [image_digest(i) for i in swapped(column)] == [image_digest(i) for i in swapped(images)]
    assert isinstance(blanked(column)[0], Image.Image)
