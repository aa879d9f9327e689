"""Pictures of results, readable in print, on a screen and to the colour-blind."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of a backend without a display)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

from . import complexity, scaling  # noqa: E402
from .measure.result import Result  # noqa: E402
from .measure.timing import Spread  # noqa: E402
from .networks.specs import parse_spec  # noqa: E402
from .networks.table4 import find_network  # noqa: E402

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


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG and SVG; path has no suffix."""
    with plt.rc_context(STYLE):
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def complexity_figure(rows: list[complexity.Row]) -> Figure:
    """Published against counted parameters and FLOPs."""
    rows = [row for row in rows if row.published_params is not None]
    names = list(dict.fromkeys(row.network for row in rows))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11, 1.6 + 0.4 * len(names)), sharey=True, layout="constrained")
        legend = {}
        for ax, counted, published, title in (
            (axes[0], "params", "published_params", "Parameters (millions)"),
            (axes[1], "paper_rule", "published_flops", "FLOPs by the rule of the paper's counter (10⁹)"),
        ):
            for row in rows:
                y = names.index(row.network)
                label, colour, shape, shift = _FORMS.get(row.form, _COUNTED)
                ring = ax.scatter(
                    getattr(row, published), y, s=150, marker="o", facecolors="none", edgecolors=ORANGE, linewidths=2.2
                )
                dot = ax.scatter(getattr(row, counted), y + shift, s=34, marker=shape, color=colour, zorder=3)
                legend |= {"Published": ring, label: dot}
                if ax is axes[1] and row.without_missed is not None:
                    ax.annotate("", (row.without_missed, y), (row.paper_rule, y), arrowprops=dict(arrowstyle="->"))
                    left = ax.scatter(row.without_missed, y, s=34, marker="o", facecolors="white", edgecolors=BLACK)
                    legend["Counted without what the counter missed"] = left
            ax.set_title(title, fontsize=11)
            ax.set_xlim(left=0)
            ax.set_yticks(range(len(names)), names)
            ax.grid(axis="y", visible=False)
            for y in range(len(names)):
                ax.axhline(y, color="#EEEEEE", linewidth=1, zorder=0)
        axes[0].invert_yaxis()
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def place_labels(ax: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write labels in a column beside the axes, each as level with its point as the others let it, with a line to it.

    Args:
        ax: Axes that hold the points, whose limits are final.
        points: Where the point of each label is.
    """
    ax.figure.canvas.draw()  # settles the layout
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


def throughput_figure(result: Result) -> Figure:
    """Images a second against multiply-accumulates for each batch size, coloured by the paper's accuracy."""
    measured = {row.group for row in result.rows if row.samples.rates}
    if not measured:
        raise ValueError("RESULT.json: the result of throughput holds no measurement")
    groups = sorted(measured, key=lambda group: (group == "max", group))
    accuracies = [network.accuracy for row in result.rows if (network := find_network(parse_spec(row.model).form))]
    norm = plt.Normalize(min(accuracies, default=0), max(accuracies, default=100))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(groups), figsize=(1.2 + 6.4 * len(groups), 5.2), squeeze=False, layout="constrained"
        )
        points: dict[Axes, dict[str, tuple[float, float]]] = {}
        for ax, group in zip(axes[0], groups, strict=True):
            rows = [row for row in result.group(group) if row.error is None and row.samples.rates and row.macs]
            points[ax] = {}
            for row in rows:
                rate, x = Spread.of(row.samples.rates), row.macs / 1e9
                network = find_network(parse_spec(row.model).form)
                colour = plt.cm.viridis(norm(network.accuracy)) if network else "#BBBBBB"
                ax.errorbar(
                    x,
                    rate.median,
                    yerr=[[rate.median - rate.low], [rate.high - rate.median]],
                    fmt="o" if row.model.startswith("hifuse") else "s",
                    markersize=10,
                    markerfacecolor=colour,
                    markeredgecolor=BLACK,
                    ecolor="#666666",
                    capsize=3,
                )
                options = row.model.partition("[")[1:]
                points[ax]["".join([network.name, *options]) if network else row.model] = (x, rate.median)
            ax.set_title(f"Batch size {group}", fontsize=11)
            ax.set_xlabel("GMACs an image (convolutions and linear layers)")
            ax.set_xlim(0, 1.1 * max((x for x, _ in points[ax].values()), default=1))
            ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
        axes[0][0].set_ylabel("Images a second (median, quartiles)")
        if accuracies:
            mappable = plt.cm.ScalarMappable(norm=norm, cmap="viridis")
            figure.colorbar(mappable, ax=axes[0].tolist(), label="ISIC2018 accuracy in the paper (%)")
        shapes = [
            Line2D([], [], marker=shape, linestyle="", markersize=9, markerfacecolor="white", markeredgecolor=BLACK)
            for shape in "os"
        ]
        figure.legend(shapes, ["HiFuse", "other networks"], loc="outside lower center", ncols=2, frameon=False)
        for ax, labels in points.items():
            place_labels(ax, labels)
    return figure


def scaling_figure(points: list[scaling.Point]) -> Figure:
    """Time, memory and multiply-accumulates against the number of pixels, with the fitted power laws."""
    looks = [(BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v")]
    units = dict(seconds=("Time an image (ms)", 1e3), excess_memory=("Memory beyond the fixed (MB)", 1e-6))
    units["macs"] = ("GMACs an image, in full", 1e-9)
    units = {quantity: unit for quantity, unit in units.items() if scaling.measured(points, quantity)}
    if not units:
        raise ValueError("RESULT.json: the result of scaling holds no measurement")
    sizes = sorted({point.img_size for point in points})
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(units), figsize=(1 + 4 * len(units), 4.8), squeeze=False, layout="constrained"
        )
        for ax, (quantity, (title, unit)) in zip(axes[0], units.items(), strict=True):
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
            ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
            ax.set_xlabel("Pixels")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
    return figure
