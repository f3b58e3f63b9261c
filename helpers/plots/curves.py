"""Plots for the lessons: arrays or rows and an optional axis in, the axis out.

    beta_curves((0.05, 0.1, 0.5))
    training_curves(trainer.state.log_history)

Each call sets its own title, labels and font sizes and changes no global setting. Cards and
colours are in `helpers.plots.cards`.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from helpers.plots.cards import BASE, CHOSEN, REJECTED, TUNED, model_colours, text_width

KINDS = {"image": "#56B4E9", "prompt": "#D9D9D9", "completion": "#F0E442", "padding": "#FFFFFF"}
TOKEN_SIZE, TOKEN_LINE = 10, 23  # points: the text, and from one line of boxes to the next
LEGEND_LINE = 1.3  # lines of boxes that a line of the legend takes
PARTS = ("#BBBBBB", "#56B4E9", "#009E73", "#F0E442", "#D55E00")  # of a step, from the left
LEGEND = {"fontsize": 10, "framealpha": 0.85, "edgecolor": "none"}

# --- tokens --------------------------------------------------------------------------------


def token_strip(
    tokens: Sequence[str], kinds: Sequence[str], ax: Axes | None = None, repeats: int = 9
) -> Axes:
    """One collated row as boxes: what the model reads, and which part of it is scored.

    `tokens`: texts. `kinds`: for each "image", "prompt", "completion" (the scored part) or
    "padding". More than `repeats` equal tokens in a row become one box with their number. Raises
    ValueError when lengths differ or a kind is unknown.
    """
    if len(tokens) != len(kinds):
        raise ValueError(f"there are {len(tokens)} tokens but {len(kinds)} kinds.")
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kind {', '.join(unknown)}: choose from {', '.join(KINDS)}.")
    boxes = _boxes(tokens, kinds, repeats)
    ax = _strip_axis(boxes) if ax is None else ax
    width = 72 * ax.get_window_extent().width / ax.figure.dpi
    placed, lines = _flow(boxes, width)
    for x, line, wide, text, kind in placed:
        y = -TOKEN_LINE * line
        box = plt.Rectangle((x, y), wide, TOKEN_LINE - 5, facecolor=KINDS[kind], edgecolor="grey")
        ax.add_patch(box)
        middle = (x + wide / 2, y + TOKEN_LINE / 2 - 2.5)
        faint = "#606060" if kind == "padding" else "black"
        ax.annotate(
            text, middle, size=TOKEN_SIZE, ha="center", va="center", color=faint, parse_math=False
        )
    legend_lines = 1 if width > 450 else 2
    bottom = -TOKEN_LINE * (lines - 1 + LEGEND_LINE * legend_lines)
    ax.set(xlim=(-1, width + 1), ylim=(bottom, TOKEN_LINE))
    ax.set_axis_off()
    scored = list(kinds).count("completion")
    ax.set_title(f"One row: {len(tokens)} tokens, {scored} of them scored", fontsize=12, loc="left")
    patches = [
        plt.Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="grey")
        for kind, colour in KINDS.items()
    ]
    names = [f"{kind} ({list(kinds).count(kind)})" for kind in KINDS]
    ax.legend(patches, names, ncols=4 // legend_lines, loc="lower left", **LEGEND)
    return ax


def _boxes(tokens, kinds, repeats):
    """(text, kind) of each box; a long run of one token is one box with its length."""
    boxes = []
    for (token, kind), run in groupby(zip(tokens, kinds, strict=True)):
        count, text = len(list(run)), token.replace("\n", "↵").replace("Ġ", " ")
        boxes += [(f"{text} × {count}", kind)] if count > repeats else [(text, kind)] * count
    return boxes


def _flow(boxes, width):
    """Boxes from left to right in lines no wider than `width` points, and how many lines."""
    placed, x, line = [], 0.0, 0
    for text, kind in boxes:
        wide = text_width(text, TOKEN_SIZE) + 8
        if x and x + wide > width:
            x, line = 0.0, line + 1
        placed.append((x, line, wide, text, kind))
        x += wide + 3
    return placed, line + 1


def _strip_axis(boxes):
    """An axis 9.6 inches wide and as high as its lines, with room for title and legend."""
    strip = (_flow(boxes, 72 * 9.6)[1] + LEGEND_LINE) * TOKEN_LINE / 72
    figure = plt.figure(figsize=(10, strip + 0.4))
    return figure.add_axes((0.02, 0.05 / (strip + 0.4), 0.96, strip / (strip + 0.4)))


# --- numbers -------------------------------------------------------------------------------


def length_histogram(
    chosen_lengths: Sequence[float], rejected_lengths: Sequence[float], ax: Axes | None = None
) -> Axes:
    """Lengths of the answers of the same pairs, in words or tokens; dashed lines are the means.

    Raises ValueError when there are none, or not as many of both.
    """
    chosen, rejected = _numbers("chosen_lengths", chosen_lengths, rejected_lengths)
    ax = _axis(ax)
    bins = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins=30)
    for name, lengths, colour in (("chosen", chosen, CHOSEN), ("rejected", rejected, REJECTED)):
        label = f"{name}, mean {lengths.mean():.1f}"
        ax.hist(lengths, bins, histtype="stepfilled", color=colour, alpha=0.35)
        ax.hist(lengths, bins, histtype="step", color=colour, linewidth=1.8, label=label)
        ax.axvline(lengths.mean(), color=colour, linestyle="--")
    longer, shorter = (chosen > rejected).mean(), (chosen < rejected).mean()
    title = f"Chosen is longer in {longer:.0%} of the pairs, shorter in {shorter:.0%}"
    return _finish(ax, title, "length of an answer", "answers")


def beta_curves(betas: Sequence[float] = (0.05, 0.1, 0.5), ax: Axes | None = None) -> Axes:
    """The DPO loss against the log-ratio difference, the margin before beta, for several betas."""
    ax = _axis(ax)
    difference = np.linspace(-30, 30, 301)
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.8, len(betas)))
    for beta, colour in zip(betas, colours, strict=True):
        loss = np.logaddexp(0, -beta * difference)  # -log sigmoid, without overflow
        ax.plot(difference, loss, color=colour, linewidth=2, label=f"beta {beta:g}")
    _reference_line(ax, math.log(2), "ln 2, where training starts")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_ylim(0, 4)
    label = "how much more than the reference the policy prefers the chosen answer (nats)"
    return _finish(ax, "What beta does to the DPO loss", label, "loss of a pair (nats)")


PANELS = (
    ("Loss", "nats", {"loss": "black"}, (math.log(2), "ln 2, the start")),
    ("Rewards", "reward", {"rewards/chosen": CHOSEN, "rewards/rejected": REJECTED}, (0, None)),
    ("Margin", "chosen - rejected reward", {"rewards/margins": TUNED}, (0, None)),
    ("Accuracy", "share with margin > 0", {"rewards/accuracies": TUNED}, (0.5, "chance")),
)


def training_curves(
    history: list[dict], axes: Sequence[Axes] | None = None, smooth: int = 1
) -> Sequence[Axes]:
    """Loss, rewards, margin and accuracy against the step; returns four axes.

    `history`: `trainer.state.log_history`. `smooth`: the running mean over so many logged steps,
    with the unsmoothed line behind it. Dots are evaluations on held-out pairs. Raises ValueError
    when no training step was logged.
    """
    if not any("loss" in row for row in history):
        raise ValueError("the history has no logged training step: is logging_steps too large?")
    if axes is None:
        axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")[1]
    axes = np.ravel(axes)
    for ax, (title, ylabel, curves, (level, name)) in zip(axes, PANELS, strict=True):
        for key, colour in curves.items():
            _curve(ax, history, key, colour, smooth)
            steps, values = _logged(history, f"eval_{key}")
            ax.plot(steps, values, "o", color=colour, markeredgecolor="black")
        _reference_line(ax, level, name)
        _finish(ax, title, "step", ylabel)
    axes[3].set_ylim(-0.03, 1.03)
    axes[3].legend(loc="lower right", **LEGEND)
    return axes


def _curve(ax, history, key, colour, smooth):
    steps, values = _logged(history, key)
    if smooth > 1:
        ax.plot(steps, values, color=colour, alpha=0.3)
        # Each point is the mean of the last `smooth` values, of fewer at the start.
        values = [np.mean(values[max(0, i + 1 - smooth) : i + 1]) for i in range(len(values))]
    ax.plot(steps, values, color=colour, linewidth=1.8, label=key.removeprefix("rewards/"))


def _logged(history, key):
    rows = [row for row in history if key in row]
    return [row["step"] for row in rows], [row[key] for row in rows]


def margin_histogram(
    before: Sequence[float], after: Sequence[float], ax: Axes | None = None
) -> Axes:
    """Margins (rewards of chosen minus rejected) of the same pairs before and after training.

    Right of the line the chosen answer is preferred. Raises ValueError as `length_histogram`.
    """
    before, after = _numbers("before", before, after)
    ax = _axis(ax)
    bins = np.histogram_bin_edges(np.concatenate([before, after]), bins=40)
    for name, values, colour in (("base", before, BASE), ("tuned", after, TUNED)):
        label = f"{name}, {(values > 0).mean():.0%} above 0"
        ax.hist(values, bins, histtype="stepfilled", color=colour, alpha=0.35)
        ax.hist(values, bins, histtype="step", color=colour, linewidth=1.8, label=label)
    ax.axvline(0, color="black", linewidth=0.8)
    return _finish(ax, "Margins before and after training", "margin of a pair", "pairs")


def step_time_bars(times: dict[str, dict[str, float]], ax: Axes | None = None) -> Axes:
    """A bar for each trainer, of the parts of its step. `times`: {name: {part: seconds}}.

    Parts of more than a twelfth of the longest bar have their milliseconds written in.
    """
    ax = _axis(ax, (8, 0.8 * len(times) + 1.4))
    names, longest = list(times), max(sum(parts.values()) for parts in times.values())
    left = np.zeros(len(names))
    for part, colour in zip(next(iter(times.values())), PARTS, strict=True):
        seconds = np.array([times[name][part] for name in names])
        bars = ax.barh(names, seconds, left=left, color=colour, edgecolor="white", label=part)
        labels = [f"{1000 * s:.0f}" if s > longest / 12 else "" for s in seconds]
        ax.bar_label(bars, labels, label_type="center", fontsize=10)
        left += seconds
    ax.invert_yaxis()
    _finish(ax, "Where the time of a step goes", "seconds (in the bars: milliseconds)", "")
    ax.legend(**LEGEND, loc="upper center", bbox_to_anchor=(0.45, -0.3), ncols=len(PARTS))
    return ax


def before_after(
    names: Sequence[str],
    scores: dict[str, Sequence[float]],
    intervals: dict[str, Sequence[tuple[float, float]]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Models side by side: a row for each metric, a dot with its interval for each model.

    `names`: the metrics. `scores`: {model name: a fraction for each metric}. `intervals`: {model
    name: (low, high) for each metric}, for some of the models or all. "base", "control" and "tuned"
    keep their colours. Raises ValueError when a model lacks a score.
    """
    for model, values in scores.items():
        if len(values) != len(names):
            raise ValueError(f"{model} has {len(values)} scores for {len(names)} metrics.")
    ax = _axis(ax, (8, 1.0 + 0.24 * len(names) * (len(scores) + 1)))
    colours = model_colours(scores)
    for i, (model, values) in enumerate(scores.items()):
        y = np.arange(len(names)) * (len(scores) + 1) + i
        colour = colours[model]
        ax.plot(values, y, "o", color=colour, markersize=8, label=model)
        ends = (intervals or {}).get(model) or [(v, v) for v in values]
        for value, (low, high), height in zip(values, ends, y, strict=True):
            ax.plot([low, high], [height, height], color=colour, linewidth=2.5)
            place = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
            ax.annotate(f"{value:.1%}", (max(value, high), height), fontsize=10, **place)
    middle = np.arange(len(names)) * (len(scores) + 1) + (len(scores) - 1) / 2
    ax.set_yticks(middle, names)
    ax.invert_yaxis()
    ax.set_xlim(-0.02, 1.12)  # room for the number right of 100%
    ax.set_xticks(np.linspace(0, 1, 6), [f"{x:.0%}" for x in np.linspace(0, 1, 6)])
    _finish(ax, "Before and after training", "share, with its interval", "")
    ax.legend(**LEGEND, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


# --- shared --------------------------------------------------------------------------------


def _numbers(name, values, others):
    values, others = np.asarray(values, float), np.asarray(others, float)
    if len(values) != len(others) or not len(values):
        raise ValueError(
            f"{name}: there must be as many of both and at least one, not {len(values)} and "
            f"{len(others)}."
        )
    return values, others


def _axis(ax, size=(7, 4)):
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _reference_line(ax, level, name):
    ax.axhline(level, color="#606060", linestyle=":", linewidth=1.5, label=name)


def _finish(ax, title, xlabel, ylabel):
    ax.set_title(title, fontsize=12)
    ax.set_xlabel(xlabel, fontsize=11)
    ax.set_ylabel(ylabel, fontsize=11)
    ax.tick_params(labelsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.legend(**LEGEND)
    return ax
