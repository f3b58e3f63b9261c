"""Wrapped text with words in several colours, which matplotlib does not set by itself.

A paragraph is a list of (word, style); a style is a dictionary of matplotlib text properties.

    paragraph = [("A", PLAIN), ("cat", {"color": "tab:red", "weight": "bold"})]
    write(ax, [paragraph], left=0.4)

Words are set as they are: a dollar sign in an answer is a dollar sign and opens no formula.
"""

import functools
from itertools import groupby

from matplotlib.font_manager import FontProperties
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker
from matplotlib.textpath import text_to_path

PLAIN = {"color": "black", "weight": "normal"}
SIZES = (11, 10, 9, 8, 7)  # points, the preferred first
LEADING, GAP = 1.5, 0.5  # of the font size: a line, and the space between paragraphs


@functools.lru_cache(maxsize=10_000)  # measuring is slow, and answers repeat their words
def text_width(text, size, weight="normal"):
    """In points."""
    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


def text_height(paragraphs, width, size=SIZES[0]):
    """In points, of paragraphs wrapped to a width in points."""
    lines = sum(len(_lines(paragraph, size, width)) for paragraph in paragraphs)
    return size * (LEADING * lines + GAP * (len(paragraphs) - 1))


def write(ax, paragraphs, left=0.0):
    """Set paragraphs from the top of an axis down, right of `left` (a share of its width).

    The largest of SIZES that fits is taken; text too long for the smallest runs out below. The
    lines are broken for the size the axis has now, so set the figure's size first.
    """
    inches = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    width, height = 72 * inches.width * (1 - left), 72 * inches.height
    size = next((s for s in SIZES if text_height(paragraphs, width, s) <= height), SIZES[-1])
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
    for style, words in groupby(line, key=lambda item: item[1]):
        text = " ".join(word for word, _ in words)
        spans.append(TextArea(text, textprops={"size": size, "parse_math": False, **style}))
    return HPacker(children=spans, align="baseline", pad=0, sep=_space(size))


def _space(size):
    return text_width("n n", size) - text_width("nn", size)
