"""The tables of a study, and of several studies side by side."""

from __future__ import annotations

from collections.abc import Sequence

from ..measure.environment import format_conditions
from ..tables import format_table
from .published import OTHERS, TABLES, Published, find_row
from .results import CHOICES, CROPS, RunResult, StudyResult
from .statistics import METRICS, Comparison, Estimate, compare, estimate


def format_study(result: StudyResult, markdown: bool = False) -> str:
    """All tables of a study, each under a line that says what it is."""
    study = result.study
    changes = ", ".join(f"{name} {value}" for name, value in study.changes.items())
    counts = ", ".join(f"{count:,} {split}" for split, count in study.dataset["counts"].items())
    parts = [
        f"{study.dataset['title']}, {describe_split(result)}: {counts} images, {study.num_classes} classes. "
        f"Images of {study.split} with a {_unit(result)} that train has: {study.shared}. Recipe {study.recipe}"
        f"{f' with {changes}' if changes else ''}; {study.img_size}x{study.img_size} pixels."
    ]
    for choice, words in CHOICES.items():
        if rows := _metric_rows(result, choice):
            title = f"{TABLES.get(study.dataset['name'], 'Networks')}, {words}"
            header = [title, "Seeds", *METRICS.values(), "Epoch"]
            parts.append(format_table(header, rows, markdown))
    parts.append(_describe_metrics(result))
    if rows := _comparison_rows(result):
        header = ["Against " + next(iter(result.runs)), "Weights", "Acc%, difference", "95% interval"]
        parts.append(format_table([*header, "Better", "Worse", "McNemar's p"], rows, markdown, num_left=2))
        parts.append(_describe_comparison(result))
    if rows := _crop_rows(result):
        header = ["Network", "Weights", *(f"Acc%, {words}" for words in CROPS.values()), "Difference", "95% interval"]
        parts.append(format_table(header, rows, markdown, num_left=2))
    header = ["Run", "Parameters (M)", "Epochs", "Seconds an epoch", "Hours", "Trained by"]
    parts.append(format_table(header, [_cost_row(run) for run in _all_runs(result)], markdown))
    return "\n\n".join([*parts, *(line for run in _all_runs(result) for line in _describe_conditions(run))])


def describe_split(result: StudyResult) -> str:
    """How the dataset was split, in a few words."""
    dataset = result.study.dataset
    drawn = "" if dataset["seed"] is None else f" of seed {dataset['seed']}"
    grouped = f", by {dataset['group_by']}" if dataset["group_by"] else ""
    return f"{dataset['split'] or 'its own'} split{drawn}{grouped}"


def format_summary(results: Sequence[StudyResult], markdown: bool = False) -> str:
    """The accuracies of several studies, a row for each network of each."""
    header = ["Study", "Split", "Shared with train", "Pixels", "Network", "Seeds"]
    header += [f"Acc%, {words}" for words in CHOICES.values()] + ["Seconds an epoch"]
    rows = []
    for result in results:
        for model, runs in result.runs.items():
            accuracies = [_estimate_accuracy(result, model, choice) for choice in CHOICES]
            seconds = [run.seconds_per_epoch for run in runs if run.seconds_per_epoch is not None]
            rows.append(
                [
                    *(result.name, describe_split(result), result.study.shared, str(result.study.img_size), model),
                    _seeds(runs),
                    *accuracies,
                    f"{sum(seconds) / len(seconds):.1f}" if seconds else "not known",
                ]
            )
    return format_table(header, rows, markdown, num_left=2)


def format_estimate(estimate: Estimate) -> str:
    """Mean, spread where there are several seeds, and interval, in percent."""
    spread = "" if estimate.spread is None else f" ± {100 * estimate.spread:.2f}"
    return f"{100 * estimate.mean:.2f}{spread} ({_interval(estimate.interval)})"


def _metric_rows(result: StudyResult, choice: str) -> list[list[str]]:
    """The metrics of each network, and under it those that are published of it."""
    rows, dataset = [], result.study.dataset["name"]
    for model, runs in result.runs.items():
        if predictions := result.predictions(model, choice):
            epochs = ", ".join(str(run.record.chosen[choice] + 1) for run in runs)
            metrics = estimate(predictions)
            rows.append([model, _seeds(runs), *(format_estimate(metrics[name]) for name in METRICS), epochs])
            if (published := find_row(model, dataset)) is not None:
                rows.append(_published_row(published))
    return rows + [_published_row(published) for published in OTHERS.get(dataset, ())] if rows else []


def _published_row(published: Published) -> list[str]:
    values = [f"{published.metrics[name]:.2f}" if name in published.metrics else "" for name in METRICS]
    return [published.name, "", *values, ""]


def _comparison_rows(result: StudyResult) -> list[list[str]]:
    """Each other network against the first."""
    first, *others = result.runs
    rows = []
    for model in others:
        for choice in CHOICES:
            predictions, reference = result.predictions(model, choice), result.predictions(first, choice)
            if predictions and reference:
                rows.append([model, choice, *_format_comparison(compare(predictions, reference))])
    return rows


def _format_comparison(comparison: Comparison) -> list[str]:
    p_value = "< 0.001" if comparison.p_value < 0.001 else f"{comparison.p_value:.3f}"
    difference = f"{100 * comparison.difference:+.2f}", _interval(comparison.interval, "+")
    return [*difference, str(comparison.better), str(comparison.worse), p_value]


def _crop_rows(result: StudyResult) -> list[list[str]]:
    """The accuracy of each network with images squashed, beside that with the recipe's crop."""
    rows = []
    for model in result.runs:
        for choice in CHOICES:
            cropped, squashed = (result.predictions(model, f"{choice}{crop}") for crop in CROPS)
            if squashed:
                comparison = compare(squashed, cropped)
                accuracies = [_estimate_accuracy(result, model, f"{choice}{crop}") for crop in CROPS]
                rows.append([model, choice, *accuracies, *_format_comparison(comparison)[:2]])
    return rows


def _cost_row(run: RunResult) -> list[str]:
    known = run.seconds_per_epoch
    return [
        run.record.run.name,
        f"{run.record.params / 1e6:.2f}",
        str(run.record.epochs),
        "not known" if known is None else f"{known:.1f}",
        "not known" if run.hours is None else f"{run.hours:.2f}",
        "hand, in part or all" if run.trained_by_hand else "this command",
    ]


def _describe_conditions(run: RunResult) -> list[str]:
    """Where a run was trained, session by session, and where it was evaluated."""
    sessions = [
        f"{run.record.run.name}, trained from epoch {session['first_epoch'] + 1} on: {format_conditions(session)}"
        for session in run.record.sessions
    ]
    return [*sessions, f"{run.record.run.name}, evaluated: {format_conditions(run.record.evaluated)}"]


def _describe_metrics(result: StudyResult) -> str:
    first = next(iter(result.runs.values()))[0].predictions["best"]
    unit = "images" if first.groups is None else f"{len(set(first.groups)):,} groups of images, as patients"
    several = any(len(runs) > 1 for runs in result.runs.values())
    spread = "mean ± standard deviation over the seeds" if several else "one seed, so no spread over seeds"
    notes = [
        (result.study.split == "val", "The best epoch was chosen on the same images."),
        (result.study.dataset["name"] == "kvasir", "The paper's metrics are means of two folds."),
        (result.study.dataset["name"] in TABLES and result.study.img_size != 224, "The paper's are of 224x224 pixels."),
    ]
    text = (
        f"{len(first.files):,} images. {spread.capitalize()}; in brackets the 95% interval of a bootstrap over {unit}, "
        "the same for all seeds. F1, precision, recall and AUROC are means over the classes. Epochs are counted from 1."
    )
    return " ".join([text, *(note for holds, note in notes if holds)])


def _describe_comparison(result: StudyResult) -> str:
    seeds = ", ".join(f"{model} {runs[0].record.seed}" for model, runs in result.runs.items())
    return (
        "The difference is that of the means over the seeds, its interval that of a bootstrap of both on the same "
        "images. Better and worse: images that one network classifies right and the other wrong, and McNemar's exact "
        f"test of these, which takes images as independent, with one seed of each: {seeds}."
    )


def _estimate_accuracy(result: StudyResult, model: str, choice: str) -> str:
    predictions = result.predictions(model, choice)
    return format_estimate(estimate(predictions)["accuracy"]) if predictions else ""


def _all_runs(result: StudyResult) -> list[RunResult]:
    return [run for runs in result.runs.values() for run in runs]


def _seeds(runs: Sequence[RunResult]) -> str:
    return " ".join(str(run.record.seed) for run in runs)


def _unit(result: StudyResult) -> str:
    return (result.study.dataset["shared_with_train"] or {}).get("unit", "group")


def _interval(bounds: list[float], sign: str = "") -> str:
    return " to ".join(f"{100 * bound:{sign}.2f}" for bound in bounds)
