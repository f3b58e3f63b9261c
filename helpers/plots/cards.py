"""Pictures with words: preference pairs, answers side by side, grids of images, printed text.

    pair_card(dataset[0])
    answer_card(image, "What do you see?", {"base": "...", "tuned": "..."}, wrong={"fork"})
    print_wrapped("truth:", world.describe(scene))

Colour is never alone: words are marked by weight or a box as well. Words are drawn as they are: a
dollar sign in an answer is a dollar sign and opens no formula.
"""

import difflib
import functools
import io
import itertools
import math
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker
from matplotlib.textpath import text_to_path
from PIL import Image, ImageOps

# One meaning has one colour in every plot: those of Okabe and Ito, which colour-blind readers can
# tell apart.
CHOSEN, REJECTED = "#0072B2", "#D55E00"  # blue, vermilion
BASE, CONTROL, TUNED = "#7F7F7F", "#E69F00", "#009E73"  # grey, orange, green
SPARE = ("#CC79A7", "#56B4E9", "#000000")  # for other models: pink, sky blue, black
WRONG, RIGHT = "#D55E00", "#007A5A"  # vermilion, in a box, and dark green

# A paragraph is a list of (word, style); a style is a dictionary of matplotlib text properties.
PLAIN = {"color": "black", "weight": "normal"}
BOLD = {"color": "black", "weight": "bold"}
SIZES = (11, 10, 9, 8, 7)  # points, the preferred first
LEADING, GAP = 1.5, 0.5  # of the font size: a line, and the space between paragraphs
CARD_WIDTH, CARD_HEIGHT = 8.0, 2.2  # inches: a card alone, and the least height of any
PICTURE, TEXT_LEFT = 0.34, 0.37  # of a card's width: where the picture ends and the text begins
COLUMNS = 96  # characters: fits JupyterLab beside its file browser, and a page


def pair_card(row: dict, ax: Axes | None = None) -> Axes:
    """One preference pair in the raw RLAIF-V columns: its picture, question and both answers.

    Words in which the answers differ are coloured; case and punctuation alone are no difference.
    `row["image"]`: a PIL image or the {"bytes", "path"} of an undecoded one. Raises ValueError
    when there is no image to show.
    """
    return _card(row["image"], _pair_text(row), ax)


def pair_cards(rows: Iterable[dict], columns: int = 2) -> np.ndarray:
    """A grid of pair cards; returns their axes, an array with one for each row."""
    rows = list(rows)
    width = CARD_WIDTH if columns == 1 else 0.8 * CARD_WIDTH
    lines = [range(i, min(i + columns, len(rows))) for i in range(0, len(rows), columns)]
    heights = [max(_card_height(_pair_text(rows[i]), 0.95 * width) for i in line) for line in lines]
    figure = plt.figure(figsize=(columns * width, (sum(heights) + 0.35 * len(heights)) / 0.98))
    grid = figure.add_gridspec(
        len(lines),
        columns,
        **{"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 0.99, "wspace": 0.05},
        hspace=0.35 / np.mean(heights),
        height_ratios=heights,
    )
    axes = [figure.add_subplot(grid[divmod(i, columns)]) for i in range(len(rows))]
    return np.array([pair_card(row, ax) for row, ax in zip(rows, axes, strict=True)])


def answer_card(
    image: Image.Image | dict,
    question: str,
    answers: dict[str, str],
    wrong: Collection[str] = (),
    right: Collection[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """A picture and what each model says of it.

    `answers`: {model name: answer}. `wrong`: objects that are not in the picture, boxed where an
    answer names them; `right`: those that are, in green.
    """
    text = [[(word, BOLD) for word in question.split()]]
    colours = model_colours(answers)
    for name, answer in answers.items():
        head = (f"{name}:", {"color": colours[name], "weight": "bold"})
        text.append([head, *_marked(answer, wrong, right)])
    return _card(image, text, ax)


def image_grid(
    images: Sequence[Image.Image | dict], titles: Sequence[str] | None = None, columns: int = 4
) -> np.ndarray:
    """Pictures side by side; returns their axes, an array with one for each picture."""
    titles = [""] * len(images) if titles is None else titles
    lines = math.ceil(len(images) / columns)
    size = (2.4 * columns, 2.7 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        _show(ax, image)
        ax.set_title(title, fontsize=10, parse_math=False, wrap=True)
    return axes.flat[: len(images)]


def _pair_text(row):
    chosen, rejected = row["chosen"].split(), row["rejected"].split()
    bare = [[word.strip(".,;:!?").lower() for word in words] for words in (chosen, rejected)]
    matcher = difflib.SequenceMatcher(None, *bare, autojunk=False)
    same = [b for b in matcher.get_matching_blocks() if b.size]
    kept_chosen = {i for b in same for i in range(b.a, b.a + b.size)}
    kept_rejected = {i for b in same for i in range(b.b, b.b + b.size)}
    text = [[(word, BOLD) for word in row["question"].split()]]
    for name, colour, words, kept in (
        ("chosen", CHOSEN, chosen, kept_chosen),
        ("rejected", REJECTED, rejected, kept_rejected),
    ):
        loud = {"color": colour, "weight": "bold"}
        styled = [(word, PLAIN if i in kept else loud) for i, word in enumerate(words)]
        text.append([(f"{name}, {len(words)} words", _label(colour)), *styled])
    return text


def _label(colour):
    box = {"facecolor": colour, "edgecolor": colour, "boxstyle": "square,pad=0.1"}
    return {"color": "white", "weight": "bold", "bbox": box}


def _marked(answer, wrong, right):
    """Styled words of an answer; plurals and names of several words are found as well."""
    boxed = {"color": WRONG, "weight": "bold"}
    boxed["bbox"] = {"facecolor": "#FBE3D6", "edgecolor": WRONG, "boxstyle": "square,pad=0.1"}
    styles = [(wrong, boxed), (right, {"color": RIGHT, "weight": "bold"})]
    found = {}
    for names, style in styles:
        for name in names:
            for match in re.finditer(rf"\b{re.escape(name)}(?:e?s)?\b", answer, re.IGNORECASE):
                found |= dict.fromkeys(range(*match.span()), style)
    words = re.finditer(r"\S+", answer)
    return [(w[0], next((found[i] for i in range(*w.span()) if i in found), PLAIN)) for w in words]


def _card(image, text, ax):
    if ax is None:
        figure = plt.figure(figsize=(CARD_WIDTH, _card_height(text, 0.98 * CARD_WIDTH) / 0.94))
        ax = figure.add_axes((0.01, 0.03, 0.98, 0.94))
    ax.set_axis_off()
    picture = ax.inset_axes((0, 0, PICTURE, 1))
    _show(picture, image)
    picture.set_anchor("NW")
    picture.set_axis_off()
    _write(ax, text, TEXT_LEFT)
    return ax


def _card_height(text, width):
    """In inches, of a card `width` inches wide with its text in the preferred size."""
    return max(CARD_HEIGHT, _text_height(text, 72 * width * (1 - TEXT_LEFT)) / 72)


def _show(ax, image):
    """An image of any mode; small ones with sharp pixels."""
    if isinstance(image, dict):
        source = io.BytesIO(image["bytes"]) if image.get("bytes") else image.get("path")
        if source is None:
            raise ValueError("the row's image has neither bytes nor a path: nothing to show.")
        image = Image.open(source)
    if not isinstance(image, Image.Image):
        raise ValueError(f"image is {type(image).__name__}: pass a PIL image or its bytes.")
    image = ImageOps.exif_transpose(image).convert("RGB")
    ax.imshow(image, interpolation="nearest" if max(image.size) < 200 else "antialiased")


def model_colours(names: Iterable[str]) -> dict[str, str]:
    """{name: colour}: base, control and tuned keep theirs, others take the spare ones in turn."""
    known = {"base": BASE, "control": CONTROL, "tuned": TUNED}
    spare = itertools.cycle(SPARE)
    return {name: known.get(name) or next(spare) for name in names}


# --- wrapped text in several colours, which matplotlib does not set by itself ------------------


@functools.lru_cache(maxsize=10_000)  # measuring is slow, and answers repeat their words
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a text in points, in the default font of `size` points."""
    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


def _text_height(paragraphs, width, size=SIZES[0]):
    """In points, of paragraphs wrapped to a width in points."""
    lines = sum(len(_lines(paragraph, size, width)) for paragraph in paragraphs)
    return size * (LEADING * lines + GAP * (len(paragraphs) - 1))


def _write(ax, paragraphs, left):
    """Set paragraphs from the top of an axis down, right of `left` (a share of its width).

    The largest of SIZES that fits is taken; text too long for the smallest runs out below. The
    lines are broken for the size the axis has now, so set the figure's size first.
    """
    inches = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    width, height = 72 * inches.width * (1 - left), 72 * inches.height
    size = next((s for s in SIZES if _text_height(paragraphs, width, s) <= height), SIZES[-1])
    rows = []
    for paragraph in paragraphs:
        rows += [_row(line, size) for line in _lines(paragraph, size, width)]
        rows.append(TextArea("", textprops={"size": size * GAP / LEADING}))
    box = VPacker(children=rows[:-1], align="left", pad=0, sep=0.3 * size)
    place = {"bbox_to_anchor": (left, 0, 1 - left, 1), "bbox_transform": ax.transAxes}
    ax.add_artist(
        AnchoredOffsetbox("upper left", child=box, frameon=False, pad=0, borderpad=0, **place)
    )


def _lines(paragraph, size, width):
    """The paragraph's words in lines no wider than `width` points, unless one word is."""
    lines, used = [[]], 0.0
    for word, style in paragraph:
        # Letters snap to whole pixels on the screen, so real words come out a little wider.
        needed = 1.04 * text_width(word, size, style["weight"]) + _space(size)
        if lines[-1] and used + needed > width:
            lines.append([])
            used = 0.0
        lines[-1].append((word, style))
        used += needed
    return lines


def _row(line, size):
    """One line: neighbours of one style become one text."""
    spans = []
    for style, words in itertools.groupby(line, key=lambda item: item[1]):
        text = " ".join(word for word, _ in words)
        spans.append(TextArea(text, textprops={"size": size, "parse_math": False, **style}))
    return HPacker(children=spans, align="baseline", pad=0, sep=_space(size))


def _space(size):
    return text_width("n n", size) - text_width("nn", size)


def print_wrapped(*texts: object, columns: int = COLUMNS) -> None:
    """Print like `print`, each line broken between words; what goes on is indented once more.

    JupyterLab breaks a line that is too long for its window wherever that ends, within a word too.
    """
    for line in " ".join(map(str, texts)).split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        wrapped = textwrap.wrap(
            line,
            columns,
            subsequent_indent=indent + "    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        print("\n".join(wrapped))
