"""Every plot draws, names what it shows, returns its axis, and leaves global settings alone."""

import io
import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

from helpers.plots.cards import (
    BASE,
    CHOSEN,
    REJECTED,
    RIGHT,
    TUNED,
    WRONG,
    answer_card,
    image_grid,
    pair_card,
    pair_cards,
)
from helpers.plots.curves import (
    before_after,
    beta_curves,
    length_histogram,
    margin_histogram,
    step_time_bars,  # noqa: E402
    token_strip,
    training_curves,
)
from helpers.plots.typeset import text_width  # noqa: E402

HISTORY = [
    {
        "step": step,
        "loss": 0.7 / step,
        "rewards/chosen": 0.1 * step,
        "rewards/rejected": -0.2 * step,
        "rewards/margins": 0.3 * step,
        "rewards/accuracies": 0.9,
    }
    for step in range(1, 9)
]
TOKENS = ["<s>"] + ["<image>"] * 12 + ["What", "?", "A", "cat", "\n"] + ["<pad>"] * 3
KINDS = ["prompt"] + ["image"] * 12 + ["prompt"] * 2 + ["completion"] * 3 + ["padding"] * 3


@pytest.fixture(autouse=True)
def clean_slate():
    """Nothing a plot does may change matplotlib's settings."""
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


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
    """{style of colour: text} of everything written, in order, as it is drawn."""
    ax.figure.canvas.draw()
    found = [t for t in ax.findobj(Text) if t.get_text().strip()]
    return found, " ".join(t.get_text() for t in found)


def coloured(ax, colour):
    return " ".join(t.get_text() for t in shown(ax)[0] if t.get_color() == colour)


def labels(ax):
    return ax.get_title(), ax.get_xlabel(), ax.get_ylabel()


# --- cards ---------------------------------------------------------------------------------


def test_the_pair_card_shows_the_row_and_marks_the_difference():
    ax = pair_card(pair())
    _, text = shown(ax)
    assert "What do you see?" in text and "that costs $5 and a dog ." in text
    assert "chosen, 11 words" in text and "rejected, 13 words" in text
    assert coloured(ax, CHOSEN) == "cup"
    assert coloured(ax, REJECTED) == "fork $6 and"


def test_identical_answers_have_nothing_marked():
    ax = pair_card(pair(rejected=pair()["chosen"]))
    assert coloured(ax, REJECTED) == ""


@pytest.mark.parametrize("words", [1, 40, 200])
def test_the_text_stays_on_the_card(words):
    ax = pair_card(pair(chosen="chosenword " * words, rejected="other " * words))
    page = ax.figure.bbox
    boxes = [text.get_window_extent() for text in shown(ax)[0]]
    assert min(box.x0 for box in boxes) > page.width * 0.3
    assert max(box.x1 for box in boxes) <= page.width
    assert min(box.y0 for box in boxes) >= 0 and max(box.y1 for box in boxes) <= page.height


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(96, 96), (300, 20), (20, 300), (1, 1)])
def test_pictures_of_any_mode_and_shape(mode, size):
    pair_card(pair(image=picture(*size, mode))).figure.canvas.draw()


def test_undecoded_pictures(tmp_path):
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
    def interpolation(ax):
        return ax.child_axes[0].images[0].get_interpolation()

    assert interpolation(pair_card(pair())) == "nearest"
    assert interpolation(pair_card(pair(image=picture(640, 480)))) != "nearest"


def test_a_card_goes_into_a_given_axis():
    _, ax = plt.subplots(figsize=(6, 2))
    assert pair_card(pair(), ax) is ax
    assert answer_card(picture(), "What?", {"base": "A cat."}, ax=ax) is ax


def test_pair_cards_make_one_axis_a_row_that_do_not_overlap():
    rows = [pair(chosen="word " * n) for n in (3, 90, 5)]
    axes = pair_cards(rows, columns=2)
    assert axes.shape == (3,) and len({ax.figure for ax in axes}) == 1
    boxes = [ax.get_position() for ax in axes]
    assert not boxes[0].overlaps(boxes[1]) and not boxes[0].overlaps(boxes[2])


def test_the_answer_card_marks_wrong_and_right_objects():
    answers = {"base": "Two balls and a Dining table.", "tuned": "Two balls, no ballast."}
    ax = answer_card(picture(), "What?", answers, {"dining table"}, {"ball"})
    assert coloured(ax, WRONG) == "Dining table."
    assert coloured(ax, RIGHT) == "balls balls,"
    boxed = [text for text in shown(ax)[0] if text.get_bbox_patch()]
    assert [text.get_text() for text in boxed] == ["Dining table."]
    assert coloured(ax, BASE) == "base:" and coloured(ax, TUNED) == "tuned:"


def test_image_grid():
    axes = image_grid([picture()] * 5, [f"${i}" for i in range(5)], columns=3)
    assert [ax.get_title() for ax in axes] == ["$0", "$1", "$2", "$3", "$4"]
    assert len(axes[0].figure.axes) == 6 and len(image_grid([picture()])) == 1


# --- tokens --------------------------------------------------------------------------------


def test_the_token_strip_shows_every_token_and_counts_the_kinds():
    ax = token_strip(TOKENS, KINDS)
    _, text = shown(ax)
    assert "<image> × 12" in text and text.count("<pad>") == 3 and "↵" in text
    assert ax.get_title(loc="left") == "One row: 21 tokens, 3 of them scored"
    names = [entry.get_text() for entry in ax.get_legend().get_texts()]
    assert names == ["image (12)", "prompt (3)", "completion (3)", "padding (3)"]


def test_token_boxes_hold_their_text_and_do_not_overlap():
    ax = token_strip(["token", "of", "many"] * 30, ["completion"] * 90)
    texts, _ = shown(ax)
    boxes = [patch.get_window_extent() for patch in ax.patches]
    assert len(boxes) == 90 and len({round(box.y0) for box in boxes}) > 2
    assert max(box.x1 for box in boxes) <= ax.get_window_extent().x1
    for first, second in zip(boxes[:-1], boxes[1:], strict=True):
        assert first.x1 <= second.x0 or first.y0 > second.y1
    assert all(box.width > text_width("of", 10) for box in boxes)
    for text, box in zip(texts, boxes, strict=False):
        assert text.get_window_extent().width <= box.width


def test_token_strip_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="21 tokens but 20 kinds"):
        token_strip(TOKENS, KINDS[1:])
    with pytest.raises(ValueError, match="unknown kind answer"):
        token_strip(["a"], ["answer"])


# --- numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: length_histogram([3, 4, 9], [3, 2, 1], ax),
        lambda ax: beta_curves((0.1, 0.5), ax),
        lambda ax: margin_histogram([0.0, 0.0], [1.0, -1.0], ax),
        lambda ax: before_after(["Hal"], {"base": [0.4], "tuned": [0.2]}, ax=ax),
        lambda ax: step_time_bars({"a": dict(zip("pqrst", range(1, 6), strict=True))}, ax),
    ],
)
def test_labels_and_title_are_set_and_the_axis_comes_back(draw):
    given = plt.subplots()[1]
    assert draw(given) is given
    for ax in (given, draw(None)):
        title, xlabel, _ = labels(ax)
        assert title and xlabel and (ax.get_ylabel() or ax.get_yticklabels())
        texts, _ = shown(ax)
        assert min(text.get_fontsize() for text in texts) >= 10
        assert ax.get_legend().get_texts()


def test_the_length_histogram_says_who_is_longer():
    ax = length_histogram([3, 4, 9, 5], [3, 2, 1, 7])
    assert ax.get_title() == "Chosen is longer in 50% of the pairs, shorter in 25%"


def test_every_beta_starts_at_ln_2():
    curves = beta_curves((0.05, 0.1, 0.5)).get_lines()[:3]
    for curve in curves:
        middle = np.interp(0, *curve.get_data())
        assert middle == pytest.approx(math.log(2))
    at_minus_20 = [np.interp(-20, *curve.get_data()) for curve in curves]
    assert at_minus_20 == sorted(at_minus_20)


def test_training_curves_draw_what_was_logged():
    history = [*HISTORY, {"step": 8, "eval_loss": 0.4}, {"step": 8, "train_loss": 0.5}]
    axes = training_curves(history)
    assert len(axes) == 4 and all(all(labels(ax)) for ax in axes)
    steps, losses = axes[0].get_lines()[0].get_data()
    assert list(steps) == list(range(1, 9)) and losses[1] == 0.35
    levels = [ax.get_lines()[-1].get_ydata()[0] for ax in axes]
    assert levels == [math.log(2), 0, 0, 0.5]


def test_smoothing_averages_the_last_values_and_keeps_the_raw_line():
    axes = training_curves(HISTORY, smooth=4)
    raw, smoothed = axes[0].get_lines()[:2]
    assert raw.get_ydata()[-1] == HISTORY[-1]["loss"]
    assert smoothed.get_ydata()[-1] == pytest.approx(np.mean([row["loss"] for row in HISTORY[-4:]]))
    assert smoothed.get_ydata()[0] == raw.get_ydata()[0]


def test_training_curves_into_given_axes_and_without_steps():
    given = plt.subplots(2, 2)[1]
    assert training_curves(HISTORY, given)[3] is given[1, 1]
    with pytest.raises(ValueError, match="no logged training step"):
        training_curves([{"train_loss": 0.5, "step": 8}])


def test_before_after_draws_each_model_with_its_interval():
    scores = {"base": [0.4, 0.9], "control": [0.3, 0.9], "tuned": [0.2, 1.0]}
    ax = before_after(["Hal", "Cover"], scores, {"tuned": [(0.1, 0.3), (0.97, 1.0)]})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Hal", "Cover"]
    assert {"40.0%", "100.0%"} <= {text.get_text() for text in ax.texts}
    spans = [line.get_xdata() for line in ax.get_lines() if line.get_color() == TUNED]
    assert [0.1, 0.3] in [list(span) for span in spans]
    assert ax.yaxis_inverted()  # the first metric on top


def test_models_never_share_a_colour():
    ax = before_after(["Hal"], {name: [0.5] for name in ("base", "ipo", "dpo", "tuned")})
    dots = [line.get_color() for line in ax.get_lines() if line.get_marker() == "o"]
    assert len(set(dots)) == 4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: length_histogram([1, 2], [1]), "chosen_lengths: .* not 2 and 1"),
        (lambda: margin_histogram([], []), "before: .* not 0 and 0"),
        (lambda: before_after(["a", "b"], {"base": [1.0]}), "base has 1 scores for 2"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_importing_changes_no_setting_and_draws_nothing():
    code = (
        "import matplotlib, matplotlib.pyplot as plt; before = dict(matplotlib.rcParams);"
        "import helpers.plots.curves; assert dict(matplotlib.rcParams) == before;"
        "assert not plt.get_fignums()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"MPLBACKEND": "agg"})
