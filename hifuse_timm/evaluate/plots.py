"""Pictures of an evaluation: confusion matrix, ROC and precision-recall curves, and reliability diagram."""

import torch

from ..curves import ClassCurves, Curve
from ..metrics import CALIBRATION_BINS, calibration_curve
from ..text import LITERAL_TEXT, abbreviate

__all__ = ["draw_confusion", "draw_precision_recall", "draw_reliability", "draw_roc"]

_STYLE = {
    "font.size": 10,
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    **LITERAL_TEXT,
}
# Okabe and Ito's colours, told apart by all common forms of colour blindness; line styles tell further classes apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_MAX_NAME, _MAX_TITLE = 24, 60  # characters
_MAX_LABELLED = 25  # classes beyond which cells and legend would be too small to read


def draw_confusion(confusion: torch.Tensor, classes: list[str], title: str):
    """Confusion matrix: in each cell the images of a true class (row) that were taken for a class (column).

    Args:
        confusion: Number of images, (K, K).
        classes: Names of the classes.
        title: Title of the picture.

    Returns:
        A matplotlib Figure.
    """
    figure, plt = _new_figure(width=3.2 + 0.75 * min(len(classes), 20), height=2.4 + 0.7 * min(len(classes), 20))
    with plt.rc_context(_STYLE):
        ax = figure.subplots()
        share = (confusion / confusion.sum(1, keepdim=True)).nan_to_num(0).numpy()
        image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.8)
        ax.set(title=abbreviate(title, _MAX_TITLE), xlabel="predicted class", ylabel="true class")
        if len(classes) <= _MAX_LABELLED:
            names = [abbreviate(name, _MAX_NAME) for name in classes]
            ax.set_xticks(range(len(classes)), names, rotation=45, ha="right", rotation_mode="anchor")
            ax.set_yticks(range(len(classes)), names)
            for i, row in enumerate(confusion.tolist()):
                for j, count in enumerate(row):
                    text = f"{count:,}\n{share[i, j]:.0%}" if count else "0"
                    color = "white" if share[i, j] > 0.55 else "black" if count else "#888888"
                    ax.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
        ax.spines[:].set_visible(True)
    return figure


def draw_roc(curves: list[ClassCurves | None], classes: list[str], auroc: list[float | None], title: str):
    """ROC curves of each class against the rest with their bands, for the classes that occur.

    Args:
        curves: Curves of each class; a class where they are None has none.
        classes: Names of the classes.
        auroc: Area under each curve.
        title: Title of the picture.

    Returns:
        A matplotlib Figure.
    """
    figure, ax = _new_chart(
        title,
        xlabel="false positive rate (1 - specificity)",
        ylabel="true positive rate (recall)",
    )
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=(0, (2, 3)), label="chance 0.500")
    _draw_curves(figure, ax, [c and c.roc for c in curves], classes, auroc, "AUROC", "default")
    return figure


def draw_precision_recall(
    curves: list[ClassCurves | None], classes: list[str], average_precision: list[float | None], title: str
):
    """Precision-recall curves of each class against the rest with their bands, for the classes that occur.

    Args:
        curves: Curves of each class; a class where they are None has none.
        classes: Names of the classes.
        average_precision: Average precision of each class.
        title: Title of the picture.

    Returns:
        A matplotlib Figure.
    """
    figure, ax = _new_chart(title, xlabel="recall", ylabel="precision")
    of_classes = [c and c.precision_recall for c in curves]
    _draw_curves(figure, ax, of_classes, classes, average_precision, "average precision", "steps-pre")
    return figure


def draw_reliability(probs: torch.Tensor, targets: torch.Tensor, ece: float, title: str):
    """Reliability diagram: accuracy by the probability of the predicted class, above how many images have it.

    Args:
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).
        ece: The expected calibration error.
        title: Title of the picture.

    Returns:
        A matplotlib Figure.
    """
    counts, confidence, accuracy = (values.numpy() for values in calibration_curve(probs, targets))
    filled = counts > 0
    width = 1 / CALIBRATION_BINS
    centers = ((torch.arange(CALIBRATION_BINS) + 0.5) * width).numpy()

    figure, plt = _new_figure(width=6, height=6.6)
    with plt.rc_context(_STYLE):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.bar(
            centers[filled], accuracy[filled], width * 0.94, color=_COLORS[0], alpha=0.35, label="accuracy in the bin"
        )
        upper.plot([0, 1], [0, 1], color="#666666", linewidth=1, linestyle="--", label="perfect calibration")
        upper.plot(
            confidence[filled],
            accuracy[filled],
            "o-",
            color=_COLORS[0],
            markersize=4,
            clip_on=False,
            label="at the bin's mean probability",
        )
        upper.set(
            title=f"{abbreviate(title, _MAX_TITLE)}\nexpected calibration error {ece:.3f}",
            ylabel="accuracy",
            xlim=(0, 1),
            ylim=(0, 1.02),
        )
        upper.grid(True)
        upper.legend(loc="upper left", framealpha=0.9, edgecolor="none", fontsize=9)
        lower.bar(centers, counts, width * 0.94, color=_COLORS[0])
        lower.set(xlabel="probability of the predicted class", ylabel="images")
        lower.grid(True, axis="y")
    return figure


def _new_chart(title: str, **labels):
    """A figure and its axes, both from 0 to 1."""
    figure, plt = _new_figure(width=8.2, height=5.4)
    with plt.rc_context(_STYLE):
        ax = figure.subplots()
        ax.set(title=abbreviate(title, _MAX_TITLE), xlim=(0, 1), ylim=(0, 1), aspect="equal", **labels)
        ax.grid(True)
    return figure, ax


def _draw_curves(figure, ax, curves: list[Curve | None], classes, areas, what: str, drawstyle: str) -> None:
    """Draw curves and their bands, with the area under each in the legend."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        alpha = min(0.15, 0.5 / len(classes))  # many bands lie over each other
        for k, (curve, name, area) in enumerate(zip(curves, classes, areas, strict=True)):
            if curve is None:
                continue
            color = _COLORS[k % len(_COLORS)]
            label = f"{abbreviate(name, _MAX_NAME)} {area:.3f}" if len(classes) <= _MAX_LABELLED else None
            style = dict(color=color, linestyle=_LINES[k // len(_COLORS) % len(_LINES)], drawstyle=drawstyle)
            ax.plot(curve.x, curve.y, linewidth=1.6, label=label, clip_on=False, **style)
            ax.fill_between(curve.grid, curve.lower, curve.upper, color=color, alpha=alpha, linewidth=0)
        figure.legend(loc="outside right upper", title=f"class against the rest, {what}", frameon=False, fontsize=9)


def _new_figure(width: float, height: float):
    """A figure of that many inches without a display, and matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white"), matplotlib
