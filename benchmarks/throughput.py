"""Images a second, latency and memory of several networks, measured in turns in one process."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from hifuse_timm.files import write_json

from .measure.config import COMPILE_MODES, MODES, PRECISIONS
from .measure.environment import conditions, format_conditions, gpu_state
from .measure.result import Limits, Result, Settings
from .measure.session import Session, with_progress
from .measure.timing import Spread, high_percentile
from .networks.specs import OPTIONS
from .tables import format_spread, format_table

MODELS = [
    "hifuse_tiny",
    "hifuse_small",
    "hifuse_base",
    "convnext_base",
    "swin_base_patch4_window7_224",
    "conformer-base-p16_3rdparty_in1k",
]
# conditions that must be the same for a measurement to go on
_SAME = ("device", "cores", "driver", "threads", "torch", "timm", "hifuse_timm")


def describe(settings: Settings) -> str:
    """Mode, precision, image size and form that hold for all networks of a measurement."""
    form = ["channels_last"] * settings.channels_last + ["compiled"] * settings.compile
    form += [f"compile mode {settings.compile_mode}"] * (settings.compile_mode is not None)
    return ", ".join([settings.mode, settings.precision, f"{settings.image_size} pixels", *form])


def format_limits(limits: Limits) -> str:
    """What the device can do, as measured."""
    matmul, copy = (format_spread(Spread.of(samples.rates), 1, 1e-9) for samples in (limits.matmul, limits.copy))
    return f"Matrix products: {matmul} GFLOP/s. Memory copy: {copy} GB/s."


def format_result(result: Result, markdown: bool = False) -> str:
    """A table for each batch size with the device's limits under it, and the conditions under them all."""
    settings, text = result.settings, []
    header = [
        "Network",
        "Images/s",
        f"Ratio to {settings.baseline}",
        "p50 (ms)",
        "p90 (ms)",
        "p99 (ms)",
        "Share of matrix rate",
    ]
    header += ["Fused attention", "Peak memory (GB)", "of it beyond the fixed (GB)"]
    for limits in result.limits:
        cells, remarks = [], []
        for row in result.group(limits.group):
            calls = sum(row.samples.call_seconds, [])
            title = row.model + (f", batch {row.batch_size}" if limits.group == "max" else "")
            cells.append(
                [
                    title,
                    format_spread(Spread.of(row.samples.rates), 2) or "failed" * bool(row.error),
                    format_spread(result.ratio(row), 3),
                    *(_milliseconds(high_percentile(calls, percent)) for percent in (50, 90, 99)),
                    format_spread(result.matmul_share(row), 0, 100, "%"),
                    {None: "", True: "yes", False: "no"}[row.fused_attention],
                    "" if row.peak_memory is None else f"{row.peak_memory / 1e9:.2f}",
                    "" if row.excess_memory is None else f"{row.excess_memory / 1e9:.2f}",
                ]
            )
            if row.out_of_memory:
                sizes = ", ".join(map(str, row.out_of_memory))
                remarks.append(f"{row.model} ran out of memory at batch {sizes}")
            if row.error is not None:
                remarks.append(f"{title} failed in {row.error}")
        text += [f"Batch size {limits.group}, {describe(settings)}:", ""]
        text += [format_table(header, cells, markdown), ""]
        text += [line for remark in remarks for line in (remark, "")]
        if limits.matmul.rates:
            text += [format_limits(limits), ""]
    text += [
        "Medians, and quartiles in brackets, over the rounds; ratios and shares are taken round by round. "
        "p90 needs 10 calls, p99 100."
    ]
    text += [line for session in result.conditions for line in ("", format_conditions(session))]
    return "\n".join(text)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.1f}"


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m benchmarks throughput`."""
    add_settings(parser, MODELS)
    add_batch_sizes(parser, _number_or_max, "; max for the largest that fits")
    parser.add_argument(
        "--baseline", metavar="SPEC", help="which of them ratios are to (default: convnext_base, else the first)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", metavar="FILE", help="keep each measurement in this file as soon as it is there")
    output.add_argument("--resume", metavar="FILE", help="go on with the measurement in this file, as it was set up")


def add_networks(parser: ArgumentParser, models: list[str]) -> None:
    """Define the options that say what is measured, and where.

    Args:
        parser: Where.
        models: Networks that are measured by default.
    """
    options = "; ".join(f"{name}: {text}" for name, text in OPTIONS.items())
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="SPEC",
        help="networks of Table 4 by their library's name, or any of timm's, as NAME or 'NAME[option,...]' "
        f"({options}; no_compile, no_channels_last, no_fused_attn switch off; NAME=VALUE: an argument of the network; "
        f"default: {' '.join(models)})",
    )
    parser.add_argument("--device", help="device, as torch names it (default: cuda if there is a GPU, else cpu)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="pixels a side (default: 224)")
    parser.add_argument("--channels-last", action="store_true", default=None, help="channels_last for all networks")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each network (default: 5)")


def add_settings(parser: ArgumentParser, models: list[str]) -> None:
    """Define the options that say what is measured, where, and how; see `add_networks`."""
    add_networks(parser, models)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="tf32: float32 whose products a GPU rounds; amp, amp_bfloat16: float32 under autocast to float16 or "
        "bfloat16, as all training below float32 is (default: float32)",
    )
    parser.add_argument(
        "--mode", choices=MODES, help="training is forward, backward and a step of AdamW (default: inference)"
    )
    parser.add_argument("--compile", action="store_true", default=None, help="torch.compile for all networks")
    parser.add_argument("--compile-mode", choices=COMPILE_MODES, help="its mode, for all networks that are compiled")


def add_batch_sizes(parser: ArgumentParser, type: Callable = int, further: str = "") -> None:
    """Define the option for batch sizes, with what further stands in its help."""
    parser.add_argument(
        "--batch-size",
        nargs="+",
        type=type,
        dest="batch_sizes",
        metavar="N",
        help=f"images a call, one or several{further} (default: 1 8, on a GPU 1 128)",
    )


def _number_or_max(text: str) -> int | str:
    if text == "max" or text.isdecimal():
        return text if text == "max" else int(text)
    raise ArgumentTypeError(f"{text!r} is no batch size, expected a number from 1 up or max")


def given_settings(args: Namespace) -> dict:
    """The settings that the command line has."""
    given = {field.name: getattr(args, field.name, None) for field in fields(Settings)}
    return {name: value for name, value in given.items() if value is not None}


def load_result(path: str, args: Namespace) -> Result:
    """Read a measurement that is to go on.

    Raises:
        ValueError: If the file is none, other settings are given, or the machine or a version is another.
    """
    try:
        data = json.loads(Path(path).read_text())
        result = Result.from_json(data)
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"resume: {path} is no result of throughput --json ({error})") from error
    if given := given_settings(args):
        raise ValueError(f"resume: {path} has its own settings; leave out {', '.join(given)}")
    result.settings.check()
    now = conditions(torch.device(result.settings.device))
    then = result.conditions[0] if result.conditions else now  # the suite's begin without any
    changed = [f"{key} was {then[key]} and is {now[key]}" for key in _SAME if then[key] != now[key]]
    if changed:
        raise ValueError(f"resume: {path} was measured under other conditions: {'; '.join(changed)}")
    return result


def run(args: Namespace) -> int:
    """Measure, print the table, and keep the file up to date.

    Returns:
        Exit code: 130 after an interruption, as shells have it.
    """
    if args.resume:
        result = load_result(args.resume, args)
    else:
        given = dict(models=MODELS) | given_settings(args)
        if "convnext_base" in given["models"]:
            given.setdefault("baseline", "convnext_base")
        result = Result(Settings.of(**given))
        if result.settings.mode == "inference" and 1 not in result.settings.batch_sizes:
            result.settings.batch_sizes.append(1)  # for the latency
    path, device = args.resume or args.json, torch.device(result.settings.device)
    here = conditions(device, PRECISIONS[result.settings.precision].tf32)
    result.conditions.append(here)

    def save() -> None:
        if path:
            write_json(path, result.to_json())

    code = with_progress(lambda progress: Session(result, save, progress).run())
    here["gpu_after"] = gpu_state(device)
    save()
    print(format_result(result))
    if code:
        print(f"\nInterrupted; --resume {path} goes on." if path else "\nInterrupted.")
    return code
