"""Pictures of a study: learning curves, and accuracies beside the published ones."""

from __future__ import annotations

import re
from itertools import cycle

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, STYLE, VERMILLION
from .published import find_row
from .results import CHOICES, RunResult, StudyResult
from .statistics import estimate

_LOOKS = [(BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (BLACK, "P")]


@matplotlib.rc_context(STYLE)
def learning_figure(result: StudyResult) -> Figure:
    """Losses, and the metric on val with the accuracy on test of the checkpoints that were kept, by epoch."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    split, metric = result.study.split, next(iter(result.runs.values()))[0].record.metric
    legend = {
        "train": Line2D([], [], linestyle=":", color=BLACK),
        "val": Line2D([], [], color=BLACK),
        f"accuracy on {split} of the checkpoints kept": Line2D(
            [], [], linestyle="", marker="o", markerfacecolor="white", markeredgecolor=BLACK
        ),
    }
    for (model, runs), (colour, shape) in zip(result.runs.items(), cycle(_LOOKS)):
        for run in runs:
            _draw_run(losses, metrics, run, colour, shape)
        legend[_wrap(model)] = Line2D([], [], color=colour, linewidth=3)
    for ax, title in ((losses, "Loss"), (metrics, f"{metric} on val (%), accuracy on {split} (%)")):
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("Epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses.set_ylim(bottom=0)
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_run(losses: Axes, metrics: Axes, run: RunResult, colour: str, shape: str) -> None:
    """Draw the losses of a run, and its metric and accuracies."""
    rows = {int(row["epoch"]) + 1: row for row in run.history.rows()}
    for column, style in (("train_loss", ":"), ("eval_loss", "-")):
        losses.plot(list(rows), [float(row[column]) for row in rows.values()], style, color=colour, linewidth=1)
    epochs = run.history.epochs()
    metrics.plot([epoch + 1 for epoch in epochs], list(epochs.values()), color=colour, linewidth=1)
    kept = [epoch + 1 for epoch in run.kept], [100 * accuracy for accuracy in run.kept.values()]
    metrics.scatter(*kept, s=22, marker=shape, facecolors="white", edgecolors=colour, zorder=3)


def _wrap(model: str) -> str:
    """The spec of a network, an argument a line."""
    return re.sub(r",(?![^()]*\))", ",\n", model)


@matplotlib.rc_context(STYLE)
def accuracy_figure(result: StudyResult) -> Figure:
    """Accuracy of each network and choice of weights, with its interval, beside the paper's."""
    models = list(result.runs)
    figure = Figure(figsize=(8, 1.8 + 0.7 * len(models)), layout="constrained")
    ax = figure.subplots()
    legend = {}
    for y, model in enumerate(models):
        published = find_row(model, result.study.dataset["name"])
        if published is not None:
            accuracy = published.metrics["accuracy"]
            legend["in the paper"] = ax.scatter(
                accuracy, y, s=150, marker="o", facecolors="none", edgecolors=ORANGE, linewidths=2.2
            )
        for i, choice in enumerate(CHOICES):
            if predictions := result.predictions(model, choice):
                legend[CHOICES[choice]] = _draw_accuracy(ax, predictions, y + 0.22 * (i - 1), *_LOOKS[i])
    ax.set_yticks(range(len(models)), map(_wrap, models))
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"Accuracy on {result.study.split} (%)")
    ax.set_title("Means over seeds, 95% intervals", fontsize=11)
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=1, frameon=False)
    return figure


def _draw_accuracy(ax: Axes, predictions: list, y: float, colour: str, shape: str):
    accuracy = estimate(predictions)["accuracy"]
    low, mean, high = (100 * value for value in (accuracy.interval[0], accuracy.mean, accuracy.interval[1]))
    return ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt=shape, color=colour, markersize=6, capsize=3)
