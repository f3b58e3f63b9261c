"""What a figure must be held against: wrong pictures, and answers that look at none.

    logps = answer_logps(model, processor, swapped(images, seed=0), questions, texts)
    blind = answers(model, processor, blanked(images), questions)
    for name, texts in degenerate(captions).items(): ...

A score that is as good with wrong pictures was not earned by looking. And a metric that one of the
degenerate answerers wins does not measure what its name says.
"""

import random
from collections.abc import Iterable, Sequence

from PIL import Image

from helpers.pairs.images import image_digest

GREY = (128, 128, 128)


def blanked(images: Iterable[Image.Image]) -> list[Image.Image]:
    """A grey picture of the same size for each: as many image tokens, and nothing to see.

    Grey, because Idefics3 takes pixel values that are all zero for padding and drops them.
    """
    return [Image.new("RGB", image.size, GREY) for image in images]


def swapped(images: Iterable[Image.Image], seed: int = 0) -> list[Image.Image]:
    """The pictures dealt out anew: everybody gets another one, never an identical one.

    All items about one picture get the same other one, and no picture is left out. `images`: n PIL
    pictures. Raises ValueError when they are all the same picture.
    """
    names = [image_digest(image) for image in images]
    pictures = dict(zip(names, images, strict=True))
    if len(pictures) < 2:
        raise ValueError("swapping takes two different pictures or more, these are all the same")
    circle = list(pictures)
    random.Random(seed).shuffle(circle)  # everybody takes the next one's picture in the circle
    theirs = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return [pictures[theirs[name]] for name in names]


def degenerate(captions: Sequence[str]) -> dict[str, list[str]]:
    """{name: texts} of answerers that ignore the picture, as many texts as there are captions.

    The last one gives the longest of the `captions` (in words) to every picture.
    """
    longest = max(captions, key=lambda text: len(text.split()), default="")
    texts = {"silence": "", 'always "no"': "No", 'always "yes"': "Yes", "longest caption": longest}
    return {name: [text] * len(captions) for name, text in texts.items()}
