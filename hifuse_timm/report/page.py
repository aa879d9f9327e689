"""The page: what runs found, drawn from their results and predictions by the templates beside this module."""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..bootstrap import draw_weights
from ..curves import Curve, measure_curves
from ..errors import require
from ..files import write_text
from ..metrics import calibration_curve
from ..operating_points import describe_temperature, tabulate_calibration
from ..runs import CLASS_METRICS, METRICS, SUBGROUP_METRICS
from ..tables import METRIC_NAMES, format_interval, format_percent, format_widening
from ..text import abbreviate, printable
from ..version import __version__
from .charts import AREA, draw_band, draw_line, draw_steps, place
from .reading import Run, count_confusions

__all__ = ["render_page", "write_report"]

_MOST_CHARTS = 24  # classes of which curves are drawn
_MOST_CELLS = 40  # classes beyond which a matrix is no picture any more
_HEADLINES = ("accuracy", "balanced_accuracy", "auroc", "ece")


def write_report(path: str | Path, runs: Sequence[Run], command: Sequence[str], picture_note: str = "") -> None:
    """Write the page of one run, or of several side by side: a file that needs no other, and asks for none.

    Args:
        path: The file to write.
        runs: The runs, of the same classes.
        command: The arguments of `python -m hifuse_timm` that made the page.
        picture_note: What is to be said of the pictures, as why there are none.

    Raises:
        OSError: If the file cannot be written.
        RuntimeError: If a library of the extra `medical` is missing.
    """
    write_text(path, render_page(runs, command, picture_note))


def render_page(runs: Sequence[Run], command: Sequence[str], picture_note: str = "") -> str:
    """The page as HTML; the same for the same runs, to the byte."""
    first = runs[0]
    names = first.predictions.classes
    if len(names) > _MOST_CHARTS:
        names = sorted(names, key=lambda name: -first.result["per_class"][name]["images"])[:_MOST_CHARTS]
    curves = [_draw_curves(run, names) for run in runs]
    return _load_template("page.html.jinja").render(
        title=_title(runs),
        runs=runs,
        metrics=[name for name in METRICS if any(run.result[name] is not None for run in runs)],
        class_metrics=CLASS_METRICS,
        headlines=_HEADLINES,
        confusions=[count_confusions(run.predictions) for run in runs],
        curves=[dict(name=name, runs=of_class) for name, *of_class in zip(names, *curves, strict=True)],
        subgroup_metrics=SUBGROUP_METRICS,
        calibrations=[_describe_calibration(run.result.get("calibration")) for run in runs],
        reliability=[_draw_reliability(run) for run in runs],
        conditions=list(dict.fromkeys(key for run in runs for key in run.result["conditions"])),
        origins=list(dict.fromkeys(key for run in runs for key in run.result["origins"])),
        command=shlex.join(["python", "-m", "hifuse_timm", *command]),
        picture_note=picture_note,
        most_charts=_MOST_CHARTS,
        most_cells=_MOST_CELLS,
        version=__version__,
    )


def _title(runs: Sequence[Run]) -> str:
    data = dict.fromkeys(f"{run.result['title']}, {run.result['split']}" for run in runs)
    what = runs[0].result["architecture"] if len(runs) == 1 else f"{len(runs)} runs"
    return f"{what} on {next(iter(data))}" if len(data) == 1 else what


def _draw_curves(run: Run, names: Sequence[str]) -> list[dict | None]:
    """The ROC and precision-recall curves of classes, with their bands; None where there are none."""
    intervals, predictions = run.result["intervals"], run.predictions
    groups = predictions.groups if intervals["unit"] == "groups" else None
    weights = draw_weights(len(predictions.files), intervals["resamples"], intervals["seed"], groups)
    classes = [predictions.classes.index(name) for name in names]
    curves = measure_curves(predictions.probs, predictions.targets, weights, classes, intervals["level"])
    shares = [(predictions.targets == k).double().mean().item() for k in classes]
    return [
        of_class
        and dict(
            roc=_draw_curve(of_class.roc, draw_line),
            precision_recall=_draw_curve(of_class.precision_recall, draw_steps),
            share=share,
        )
        for of_class, share in zip(curves, shares, strict=True)
    ]


def _draw_curve(curve: Curve, draw: Callable) -> dict[str, str]:
    return dict(line=draw(curve.x, curve.y), band=draw_band(curve))


def _describe_calibration(calibration: dict | None) -> dict | None:
    if calibration is None:
        return None
    return dict(temperature=describe_temperature(calibration), tables=tabulate_calibration(calibration))


def _draw_reliability(run: Run) -> dict:
    """The reliability diagram, before the calibration too where there was one, and how many images a bin has."""

    def draw(probs: torch.Tensor) -> dict:
        counts, confidence, accuracy = calibration_curve(probs, run.predictions.targets)
        filled = counts > 0
        points = confidence[filled].numpy(), accuracy[filled].numpy()
        return dict(line=draw_line(*points), points=place(*points), counts=counts.tolist())

    return dict(now=draw(run.predictions.probs), before=None if run.uncalibrated is None else draw(run.uncalibrated))


def _load_template(name: str):
    """A template under which all text from outside is escaped, and shown on screen as what it is."""
    jinja2 = require("jinja2", "medical")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hifuse_timm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    environment.filters |= dict(
        decimal=_decimal,
        interval=format_interval,
        lookup=dict.get,
        name=_name,
        percent=format_percent,
        share=_share,
        thousands="{:,}".format,
        widening=format_widening,
        words=_words,
    )
    environment.globals |= dict(area=AREA, metric_names=METRIC_NAMES)
    return environment.get_template(name)


def _name(name: str) -> str:
    """A class or a run, of which long ones would push all else off the screen."""
    return abbreviate(name, 60)


def _decimal(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _share(value: float) -> str:
    return f"{100 * min(max(value, 0), 1):.2f}%"


def _words(value: Any) -> str:
    """A condition in words."""
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
