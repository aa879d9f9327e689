"""Results of throughput in the columns and under the names of timm's results/benchmark-infer-*.csv and -train-*.csv."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from hifuse_timm.files import write_text

from .measure.result import Result, Row
from .measure.timing import Spread

# columns as in benchmark-infer-amp-nchw-pt291-cu130-5090.csv and benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv
_COLUMNS = dict(
    inference=(
        "model",
        "infer_img_size",
        "infer_samples_per_sec",
        "infer_step_time",
        "infer_batch_size",
        "param_count",
        "infer_gmacs",
        "infer_macts",
    ),
    training=("model", "train_samples_per_sec", "train_step_time", "train_batch_size", "train_img_size", "param_count"),
)
_TASKS = dict(inference="infer", training="train")
_PRECISIONS = dict(float32="fp32", float16="fp16", bfloat16="bf16", amp_bfloat16="amp_bf16")


def file_name(result: Result) -> str:
    """As timm names a file, by task, precision, layout, versions and device; then a batch size that was given."""
    settings, conditions = result.settings, result.conditions[0]
    cuda = conditions["cuda"]
    parts = [
        "benchmark",
        _TASKS[settings.mode],
        _PRECISIONS.get(settings.precision, settings.precision),
        "nhwc" if settings.channels_last else "nchw",
        "pt" + conditions["torch"].partition("+")[0].replace(".", ""),
        "cpu" if cuda is None else "cu" + cuda.replace(".", ""),
        _device_name(conditions["device"]),
        *["dynamo"] * settings.compile,
        *(f"bs{size}" for size in settings.batch_sizes if size != "max"),
    ]
    return "-".join(parts) + ".csv"


def _device_name(device: str) -> str:
    """The words of a device's name without its maker's, as in i9_10940x and rtx4090."""
    words = re.findall(r"[a-z0-9]+", device.lower())
    name = "_".join(word for word in words if word not in ("nvidia", "geforce", "amd", "intel", "r", "tm", "processor"))
    return name.replace("rtx_", "rtx") or "unknown"


def make_rows(results: list[Result], counts: dict[str, dict]) -> list[dict]:
    """Rows of one file, the fastest network first; one that stands in several results is taken from the first.

    Args:
        results: Measured in the same way.
        counts: Rows of complexity by the names of the networks; columns of one that it lacks stay empty.
    """
    rows: dict[str, dict] = {}
    for result in results:
        for row in result.rows:
            if row.error is None and row.samples.rates:
                rows.setdefault(row.model, _make_row(result, row, counts.get(row.model, {})))
    key = f"{_TASKS[results[0].settings.mode]}_samples_per_sec"
    return sorted(rows.values(), key=lambda row: row[key], reverse=True)


def _make_row(result: Result, row: Row, counted: dict) -> dict:
    rate = Spread.of(row.samples.rates).median
    measured = dict(
        img_size=result.settings.image_size,
        samples_per_sec=round(rate, 2),
        step_time=round(1e3 * row.batch_size / rate, 3),
        batch_size=row.batch_size,
        gmacs=_rounded(counted.get("full")),
        macts=_rounded(counted.get("activations")),
    )
    task = _TASKS[result.settings.mode]
    values = {f"{task}_{name}": value for name, value in measured.items()}
    values |= dict(model=row.model, param_count=_rounded(counted.get("params")))
    return {column: values[column] for column in _COLUMNS[result.settings.mode]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def write_csv(folder: Path, results: list[Result], counts: dict[str, dict]) -> Path:
    """Write the file of results that were measured in the same way, see `make_rows`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS[results[0].settings.mode], lineterminator="\n")
    writer.writeheader()
    writer.writerows(make_rows(results, counts))
    path = folder / file_name(results[0])
    write_text(path, text.getvalue())
    return path
