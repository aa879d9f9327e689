"""Pictures of results, readable in print, on a screen and to the colour-blind."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from . import complexity, scaling
from .measure.result import Result, Row
from .measure.timing import Spread
from .networks.specs import parse_spec
from .networks.table4 import find_network

# Okabe and Ito's colours, told apart by all common forms of colour blindness; shapes differ too
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#000000"
LABEL_SIZE = 9
STYLE = {
    "font.size": 10,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "hifuse",  # the same file each time
}
_FORMS = {  # label of a form in benchmarks.networks.table4: legend, colour, shape, shift from the line of its network
    "as designed": ("HiFuse as designed", BLUE, "o", -0.25),
    "as released": ("HiFuse as released (dense)", VERMILLION, "s", 0.25),
    "published count reconstructed": ("HiFuse, published count reconstructed", GREEN, "^", 0),
}
_COUNTED = ("Counted", BLACK, "o", 0)


@matplotlib.rc_context(STYLE)
def save(figure: Figure, path: Path) -> None:
    """Write a picture as SVG; path has no suffix."""
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


@matplotlib.rc_context(STYLE)
def complexity_figure(rows: list[complexity.Row]) -> Figure:
    """Published against counted parameters and FLOPs."""
    rows = [row for row in rows if row.published_params is not None]
    names = list(dict.fromkeys(row.network for row in rows))
    figure = Figure(figsize=(11, 1.6 + 0.4 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    legend = _draw_counts(left, rows, names, "params", "published_params")
    legend |= _draw_counts(right, rows, names, "paper_rule", "published_flops")
    for row in rows:
        if row.without_missed is not None:
            y = names.index(row.network)
            right.annotate("", (row.without_missed, y), (row.paper_rule, y), arrowprops=dict(arrowstyle="->"))
            ring = right.scatter(row.without_missed, y, s=34, marker="o", facecolors="white", edgecolors=BLACK)
            legend["Counted without what the counter missed"] = ring
    left.set_title("Parameters (millions)", fontsize=11)
    right.set_title("FLOPs by the rule of the paper's counter (10⁹)", fontsize=11)
    left.invert_yaxis()
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_counts(ax: Axes, rows: list[complexity.Row], names: list[str], counted: str, published: str) -> dict:
    """Draw one count of all networks beside what is published; gives what stands in the legend."""
    legend = {}
    for row in rows:
        y = names.index(row.network)
        label, colour, shape, shift = _FORMS.get(row.form, _COUNTED)
        legend["Published"] = ax.scatter(
            getattr(row, published), y, s=150, marker="o", facecolors="none", edgecolors=ORANGE, linewidths=2.2
        )
        legend[label] = ax.scatter(getattr(row, counted), y + shift, s=34, marker=shape, color=colour, zorder=3)
    ax.set_xlim(left=0)
    ax.set_yticks(range(len(names)), names)
    ax.grid(axis="y", visible=False)
    for y in range(len(names)):
        ax.axhline(y, color="#EEEEEE", linewidth=1, zorder=0)
    return legend


def place_labels(ax: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write labels in a column beside the axes, each as level with its point as the others let it, with a line to it.

    Args:
        ax: Axes that hold the points, whose limits are final.
        points: Where the point of each label is.
    """
    ax.figure.draw_without_rendering()  # settles the layout
    frame = ax.get_window_extent()
    spacing = 1.5 * LABEL_SIZE * ax.figure.dpi / 72 / frame.height  # in heights of the axes, as all that follows
    labels = sorted(points, key=lambda label: points[label][1])
    heights = [(ax.transData.transform(points[label])[1] - frame.y0) / frame.height for label in labels]
    for i in range(1, len(heights)):  # upwards from the lowest
        heights[i] = max(heights[i], heights[i - 1] + spacing)
    ceiling = 1.0
    for i in reversed(range(len(heights))):  # and down again from the top
        ceiling = heights[i] = min(heights[i], ceiling)
        ceiling -= spacing
    for label, height in zip(labels, heights, strict=True):
        ax.annotate(
            label,
            points[label],
            xytext=(1.02, height),
            textcoords="axes fraction",
            va="center",
            fontsize=LABEL_SIZE,
            zorder=1.5,  # the line goes under the markers
            arrowprops=dict(arrowstyle="-", color="#999999", linewidth=0.8, relpos=(0, 0.5), shrinkA=1, shrinkB=0),
        )


@matplotlib.rc_context(STYLE)
def throughput_figure(result: Result) -> Figure:
    """Images a second against multiply-accumulates for each batch size, coloured by the paper's accuracy."""
    measured = {row.group for row in result.rows if row.samples.rates}
    if not measured:
        raise ValueError("RESULT.json: the result of throughput holds no measurement")
    groups = sorted(measured, key=lambda group: (group == "max", group))
    accuracies = [network.accuracy for row in result.rows if (network := find_network(parse_spec(row.model).form))]
    norm = Normalize(min(accuracies, default=0), max(accuracies, default=100))
    figure = Figure(figsize=(1.2 + 6.4 * len(groups), 5.2), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    points = {}
    for ax, group in zip(axes, groups, strict=True):
        rows = [row for row in result.group(group) if row.error is None and row.samples.rates and row.macs]
        points[ax] = _draw_rates(ax, rows, norm)
        ax.set_title(f"Batch size {group}", fontsize=11)
    axes[0].set_ylabel("Images a second (median, quartiles)")
    if accuracies:
        mappable = ScalarMappable(norm=norm, cmap="viridis")
        figure.colorbar(mappable, ax=axes.tolist(), label="ISIC2018 accuracy in the paper (%)")
    shapes = [
        Line2D([], [], marker=shape, linestyle="", markersize=9, markerfacecolor="white", markeredgecolor=BLACK)
        for shape in "os"
    ]
    figure.legend(shapes, ["HiFuse", "other networks"], loc="outside lower center", ncols=2, frameon=False)
    for ax, labels in points.items():
        place_labels(ax, labels)
    return figure


def _draw_rates(ax: Axes, rows: list[Row], norm: Normalize) -> dict[str, tuple[float, float]]:
    """Draw the networks of one batch size; gives where the point of each label is."""
    points = {}
    for row in rows:
        rate, x = Spread.of(row.samples.rates), row.macs / 1e9
        network = find_network(parse_spec(row.model).form)
        ax.errorbar(
            x,
            rate.median,
            yerr=[[rate.median - rate.low], [rate.high - rate.median]],
            fmt="o" if row.model.startswith("hifuse") else "s",
            markersize=10,
            markerfacecolor=matplotlib.colormaps["viridis"](norm(network.accuracy)) if network else "#BBBBBB",
            markeredgecolor=BLACK,
            ecolor="#666666",
            capsize=3,
        )
        options = row.model.partition("[")[1:]
        points["".join([network.name, *options]) if network else row.model] = (x, rate.median)
    ax.set_xlabel("GMACs an image (convolutions and linear layers)")
    ax.set_xlim(0, 1.1 * max((x for x, _ in points.values()), default=1))
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
    return points


_UNITS = dict(  # of scaling: title, unit
    seconds=("Time an image (ms)", 1e3),
    excess_memory=("Memory beyond the fixed (MB)", 1e-6),
    macs=("GMACs an image, in full", 1e-9),
)


@matplotlib.rc_context(STYLE)
def scaling_figure(points: list[scaling.Point]) -> Figure:
    """Time, memory and multiply-accumulates against the number of pixels, with the fitted power laws."""
    quantities = [quantity for quantity in _UNITS if scaling.measured(points, quantity)]
    if not quantities:
        raise ValueError("RESULT.json: the result of scaling holds no measurement")
    figure = Figure(figsize=(1 + 4 * len(quantities), 4.8), layout="constrained")
    for ax, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True):
        _draw_growth(ax, points, quantity)
    return figure


def _draw_growth(ax: Axes, points: list[scaling.Point], quantity: str) -> None:
    """Draw one quantity of all networks, and its power laws."""
    title, unit = _UNITS[quantity]
    sizes = sorted({point.img_size for point in points})
    looks = [(BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v")]
    for i, (model, own) in enumerate(scaling.by_model(points).items()):
        colour, shape = looks[i % len(looks)]
        known = scaling.measured(own, quantity)
        law = scaling.fit(own, quantity)
        label = model if law is None else f"{model}: exponent {law.exponent:.2f} ± {law.error:.2f}"
        ax.plot([x for x, _ in known], [y * unit for _, y in known], shape, color=colour, label=label)
        if law is not None:
            ends = [sizes[0] ** 2, sizes[-1] ** 2]
            ax.plot(ends, [law(x) * unit for x in ends], color=colour, linewidth=1.2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_title(title, fontsize=11)
    ax.set_xticks([size**2 for size in sizes], [f"{size}²" for size in sizes], rotation=45)
    ax.minorticks_off()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.set_xlabel("Pixels")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
