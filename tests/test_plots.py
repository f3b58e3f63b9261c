"""Every plot draws, names what it shows, returns its axis, and leaves global settings alone."""

import io
import math
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.text import Text
from PIL import Image

from helpers.plots import cards, curves
from helpers.plots.cards import answer_card, image_grid, pair_card, pair_cards

LOGGED = {"rewards/margins": 0.3, "rewards/accuracies": 0.9}
LOGGED |= {"rewards/chosen": 0.1, "rewards/rejected": -0.2}
HISTORY = [{"step": step, "loss": 0.7 / step, **LOGGED} for step in range(1, 9)]
TOKENS = ["<s>"] + ["<image>"] * 12 + ["What", "?", "A", "cat", "\n"] + ["<pad>"] * 3
KINDS = ["prompt"] + ["image"] * 12 + ["prompt"] * 2 + ["completion"] * 3 + ["padding"] * 3


@pytest.fixture(autouse=True)
def clean_slate():
    """Nothing a plot does may change matplotlib's settings."""
    plt.switch_backend("agg")
    before = dict(rcParams)
    yield
    assert dict(rcParams) == before


def picture(width=96, height=96, mode="RGB"):
    return Image.new(mode, (width, height))


def pair(**changes):
    row = {
        "image": picture(),
        "question": "What do you see?",
        "chosen": "I see a cup that costs $5 and a dog .",
        "rejected": "I see a fork that costs $5 and $6 and a dog .",
    }
    return row | changes


def shown(ax):
    """Everything written, as it is drawn: the texts, and their words in order."""
    ax.figure.canvas.draw()
    found = [t for t in ax.findobj(Text) if t.get_text().strip()]
    return found, " ".join(t.get_text() for t in found)


def coloured(ax, colour):
    return " ".join(t.get_text() for t in shown(ax)[0] if t.get_color() == colour)


# --- cards ------------------------------------------------------------------------------------


def test_the_pair_card_shows_the_row_and_marks_the_difference():
    ax = pair_card(pair())
    _, text = shown(ax)
    assert "What do you see?" in text and "that costs $5 and a dog ." in text
    assert "chosen, 11 words" in text and "rejected, 13 words" in text
    assert coloured(ax, cards.CHOSEN) == "cup"
    assert coloured(ax, cards.REJECTED) == "fork $6 and"
    same = pair_card(pair(rejected=pair()["chosen"]))
    assert coloured(same, cards.REJECTED) == ""


@pytest.mark.parametrize("words", [1, 40, 200])
def test_the_text_stays_on_the_card(words):
    ax = pair_card(pair(chosen="chosenword " * words, rejected="other " * words))
    page = ax.figure.bbox
    boxes = [text.get_window_extent() for text in shown(ax)[0]]
    assert min(box.x0 for box in boxes) > page.width * 0.3
    assert max(box.x1 for box in boxes) <= page.width
    assert min(box.y0 for box in boxes) >= 0 and max(box.y1 for box in boxes) <= page.height


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(300, 20), (20, 300), (1, 1)])
def test_pictures_of_any_mode_and_shape(mode, size):
    pair_card(pair(image=picture(*size, mode))).figure.canvas.draw()


def test_undecoded_pictures_and_none(tmp_path):
    buffer = io.BytesIO()
    picture(30, 20).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    pair_card(pair(image={"bytes": buffer.getvalue(), "path": None}))
    pair_card(pair(image={"bytes": None, "path": str(tmp_path / "a.png")}))
    with pytest.raises(ValueError, match="neither bytes nor a path"):
        pair_card(pair(image={"bytes": None, "path": None}))
    with pytest.raises(ValueError, match="image is NoneType"):
        pair_card(pair(image=None))


def test_small_pictures_keep_sharp_pixels():
    small, large = (pair_card(pair(image=picture(*size))) for size in ((96, 96), (640, 480)))
    drawn = [ax.child_axes[0].images[0].get_interpolation() for ax in (small, large)]
    assert drawn[0] == "nearest" != drawn[1]


def test_a_card_goes_into_a_given_axis():
    _, ax = plt.subplots(figsize=(6, 2))
    assert pair_card(pair(), ax) is ax
    assert answer_card(picture(), "What?", {"base": "A cat."}, ax=ax) is ax


def test_pair_cards_make_one_axis_a_row_that_do_not_overlap():
    axes = pair_cards([pair(chosen="word " * n) for n in (3, 90, 5)], columns=2)
    assert axes.shape == (3,) and len({ax.figure for ax in axes}) == 1
    boxes = [ax.get_position() for ax in axes]
    assert not boxes[0].overlaps(boxes[1]) and not boxes[0].overlaps(boxes[2])


def test_the_answer_card_marks_wrong_and_right_objects():
    answers = {"base": "Two balls and a Dining table.", "tuned": "Two balls, no ballast."}
    ax = answer_card(picture(), "What?", answers, {"dining table"}, {"ball"})
    assert coloured(ax, cards.WRONG) == "Dining table."
    assert coloured(ax, cards.RIGHT) == "balls balls,"
    boxed = [text.get_text() for text in shown(ax)[0] if text.get_bbox_patch()]
    assert boxed == ["Dining table."]
    assert coloured(ax, cards.BASE) == "base:" and coloured(ax, cards.TUNED) == "tuned:"


def test_image_grid():
    axes = image_grid([picture()] * 5, [f"${i}" for i in range(5)], columns=3)
    assert [ax.get_title() for ax in axes] == ["$0", "$1", "$2", "$3", "$4"]
    assert len(axes[0].figure.axes) == 6 and len(image_grid([picture()])) == 1


# --- tokens -----------------------------------------------------------------------------------


def test_the_token_strip_shows_every_token_and_counts_the_kinds():
    ax = curves.token_strip(TOKENS, KINDS)
    _, text = shown(ax)
    assert "<image> × 12" in text and text.count("<pad>") == 3 and "↵" in text
    assert ax.get_title(loc="left") == "One row: 21 tokens, 3 of them scored"
    names = [entry.get_text() for entry in ax.get_legend().get_texts()]
    assert names == ["image (12)", "prompt (3)", "completion (3)", "padding (3)"]


def test_token_boxes_hold_their_text_and_do_not_overlap():
    ax = curves.token_strip(["token", "of", "many"] * 30, ["completion"] * 90)
    texts, _ = shown(ax)
    boxes = [patch.get_window_extent() for patch in ax.patches]
    assert len(boxes) == 90 and len({round(box.y0) for box in boxes}) > 2
    assert max(box.x1 for box in boxes) <= ax.get_window_extent().x1
    for first, second in zip(boxes[:-1], boxes[1:], strict=True):
        assert first.x1 <= second.x0 or first.y0 > second.y1
    for text, box in zip(texts, boxes, strict=False):
        assert text.get_window_extent().width <= box.width


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: curves.length_histogram([3, 4, 9], [3, 2, 1], ax),
        lambda ax: curves.beta_curves((0.1, 0.5), ax),
        lambda ax: curves.margin_histogram([0.0, 0.0], [1.0, -1.0], ax),
        lambda ax: curves.before_after(["Hal"], {"base": [0.4], "tuned": [0.2]}, ax=ax),
    ],
)
def test_labels_and_title_are_set_and_the_axis_comes_back(draw):
    given = plt.subplots()[1]
    assert draw(given) is given
    for ax in (given, draw(None)):
        assert ax.get_title() and ax.get_xlabel() and (ax.get_ylabel() or ax.get_yticklabels())
        assert min(text.get_fontsize() for text in shown(ax)[0]) >= 10
        assert ax.get_legend().get_texts()


def test_the_length_histogram_says_who_is_longer():
    ax = curves.length_histogram([3, 4, 9, 5], [3, 2, 1, 7])
    assert ax.get_title() == "Chosen is longer in 50% of the pairs, shorter in 25%"


def test_every_beta_starts_at_ln_2():
    lines = curves.beta_curves((0.05, 0.1, 0.5)).get_lines()[:3]
    for line in lines:
        assert np.interp(0, *line.get_data()) == pytest.approx(math.log(2))
    at_minus_20 = [np.interp(-20, *line.get_data()) for line in lines]
    assert at_minus_20 == sorted(at_minus_20)


def test_training_curves_draw_what_was_logged_and_smooth_it():
    history = [*HISTORY, {"step": 8, "eval_loss": 0.4}, {"step": 8, "train_loss": 0.5}]
    axes = curves.training_curves(history)
    assert len(axes) == 4
    assert all(ax.get_title() and ax.get_xlabel() and ax.get_ylabel() for ax in axes)
    steps, losses = axes[0].get_lines()[0].get_data()
    assert list(steps) == list(range(1, 9)) and losses[1] == 0.35
    levels = [ax.get_lines()[-1].get_ydata()[0] for ax in axes]
    assert levels == [math.log(2), 0, 0, 0.5]

    given = plt.subplots(2, 2)[1]
    axes = curves.training_curves(HISTORY, given, smooth=4)
    assert axes[3] is given[1, 1]
    raw, smoothed = (line.get_ydata() for line in axes[0].get_lines()[:2])
    assert raw[-1] == HISTORY[-1]["loss"] and smoothed[0] == raw[0]
    assert smoothed[-1] == pytest.approx(np.mean([row["loss"] for row in HISTORY[-4:]]))


def test_before_after_draws_each_model_with_its_interval_in_a_colour_of_its_own():
    scores = {"base": [0.4, 0.9], "ipo": [0.3, 0.9], "dpo": [0.3, 0.9], "tuned": [0.2, 1.0]}
    ax = curves.before_after(["Hal", "Cover"], scores, {"tuned": [(0.1, 0.3), (0.97, 1.0)]})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Hal", "Cover"]
    assert {"40.0%", "100.0%"} <= {text.get_text() for text in ax.texts}
    spans = [line.get_xdata() for line in ax.get_lines() if line.get_color() == cards.TUNED]
    assert [0.1, 0.3] in [list(span) for span in spans]
    assert ax.yaxis_inverted()  # the first metric on top
    dots = [line.get_color() for line in ax.get_lines() if line.get_marker() == "o"]
    assert len(set(dots)) == 4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: curves.length_histogram([1, 2], [1]), "chosen_lengths: .* not 2 and 1"),
        (lambda: curves.margin_histogram([], []), "before: .* not 0 and 0"),
        (lambda: curves.before_after(["a", "b"], {"base": [1.0]}), "base has 1 scores for 2"),
        (lambda: curves.training_curves([{"train_loss": 0.5}]), "no logged training step"),
        (lambda: curves.token_strip(TOKENS, KINDS[1:]), "21 tokens but 20 kinds"),
        (lambda: curves.token_strip(["a"], ["answer"]), "unknown kind answer"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_importing_changes_no_setting_and_draws_nothing():
    code = (
        "import matplotlib, matplotlib.pyplot as plt; before = dict(matplotlib.rcParams);"
        "import helpers.plots.curves; assert dict(matplotlib.rcParams) == before;"
        "assert not plt.get_fignums()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"MPLBACKEND": "agg"})
