"""The page of a study, README.md with its pictures, and of a folder of studies, summary.md, made of the other files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hifuse_timm.files import write_text

from ..figures import save
from .plots import accuracy_figure, learning_figure
from .results import StudyResult
from .tables import describe_split, format_study, format_summary


def write_page(folder: Path, result: StudyResult) -> None:
    """Write README.md, learning-curves and accuracy, as SVG, into the folder of a study."""
    save(accuracy_figure(result), folder / "accuracy")
    save(learning_figure(result), folder / "learning-curves")
    write_text(folder / "README.md", format_page(result))


def format_page(result: StudyResult) -> str:
    """The README.md of a study."""
    study = result.study
    parts = [
        f"# {study.dataset['title']} at {study.img_size} pixels, {describe_split(result)}",
        "Written by `python -m benchmarks accuracy`, which makes all of it once more from the predictions, summaries "
        "and times in this folder, given by `--from`.",
        "![Accuracies with their intervals, beside the paper's](accuracy.svg)",
        format_study(result, markdown=True),
        "![Learning curves](learning-curves.svg)",
    ]
    return "\n\n".join(parts) + "\n"


def write_summary(folder: Path, results: Sequence[StudyResult]) -> None:
    """Write summary.md into a folder of studies."""
    write_text(folder / "summary.md", format_summary_page(results))


def format_summary_page(results: Sequence[StudyResult]) -> str:
    """The summary.md of a folder of studies."""
    pages = "\n".join(f"- [{result.name}]({result.name}/README.md)" for result in results)
    title = ", ".join(dict.fromkeys(result.study.dataset["title"] for result in results))
    return f"# Accuracies: {title}\n\n{format_summary(results, markdown=True)}\n\n{pages}\n"
