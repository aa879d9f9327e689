"""Parameters and multiply-accumulates of the networks of Table 4 beside the published counts, and what they move."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from hifuse_timm.files import write_json, write_text

from .measure.counting import TRAFFIC_BATCH, Count, Traffic, count_form, sum_without
from .measure.environment import conditions
from .networks.table4 import Form, Network, forms
from .tables import format_table

# differences from a published count up to these need no reason: 0.01 M parameters, 0.5% of the FLOPs
PARAMS_TOLERANCE = 0.01
FLOPS_TOLERANCE = 0.005


@dataclass
class Row:
    """Counts of one form of a network beside its published counts.

    Attributes:
        network: Name in the paper.
        form: Label of the form.
        model: Name in its library.
        img_size: Pixels a side of the input.
        params: Parameters in millions; None where the network could not be built.
        never_run: Those of them, in millions, whose modules no forward pass calls.
        conv_linear: 10^9 multiply-accumulates of convolutions and linear layers.
        full: The same with matrix products, attention, norms and pooling.
        paper_rule: By the rule of the paper's counter.
        without_missed: The same without the modules that the paper's counter missed, where it missed some.
        published_params: Published parameters in millions; None where nothing is published for this input size.
        published_flops: Published FLOPs, as paper_rule.
        note: Why counts differ from the published ones, or why there are none.
        uncounted_ops: Calls of each op that has no count.
        uncalled_modules: Parameters of each module that no forward pass calls.
        activations: 10^6 values that convolutions, linear layers and matrix products give.
        traffic: 10^6 bytes that the ops of a forward pass move, for an image of a batch of 64 in bfloat16.
        calls: Calls of these ops, views left out.
        fused_traffic: As traffic, of the network folded for inference, where it folds.
        fused_calls: As calls, of the network folded for inference.
    """

    network: str
    form: str
    model: str
    img_size: int
    params: float | None = None
    never_run: float | None = None
    conv_linear: float | None = None
    full: float | None = None
    paper_rule: float | None = None
    without_missed: float | None = None
    published_params: float | None = None
    published_flops: float | None = None
    note: str = ""
    uncounted_ops: dict[str, int] | None = None
    uncalled_modules: dict[str, int] | None = None
    activations: float | None = None
    traffic: float | None = None
    calls: int | None = None
    fused_traffic: float | None = None
    fused_calls: int | None = None

    @property
    def title(self) -> str:
        """Name and form, for a table."""
        return f"{self.network}, {self.form}" if self.form else self.network


def make_row(network: Network, form: Form, counted: Count) -> Row:
    """Put a count beside the published counts, with the reason where they differ."""
    paper_rule = counted.paper_rule.total() / 1e9
    row = Row(
        network.name,
        form.label,
        form.model,
        form.img_size,
        params=counted.params / 1e6,
        never_run=sum(counted.uncalled.values()) / 1e6,
        conv_linear=counted.conv_linear / 1e9,
        full=counted.full / 1e9,
        paper_rule=paper_rule,
        uncounted_ops=counted.uncounted_ops,
        uncalled_modules=counted.uncalled,
        activations=counted.activations / 1e6,
        **_traffic("", counted.traffic),
        **_traffic("fused_", counted.fused_traffic),
    )
    if form.img_size != network.img_size:
        return row
    row.published_params, row.published_flops = network.params, network.flops
    params_agree = abs(row.params - network.params) <= PARAMS_TOLERANCE
    flops_agree = abs(paper_rule / network.flops - 1) <= FLOPS_TOLERANCE
    if not (params_agree and flops_agree):
        row.note = form.reason or "no reason known"
        if form.missed:
            row.without_missed = sum_without(counted.paper_rule, form.missed) / 1e9
            row.note += f": {row.without_missed:.2f} G without them"
    return row


def _traffic(prefix: str, traffic: Traffic | None) -> dict[str, float]:
    if traffic is None:
        return {}
    return {f"{prefix}traffic": traffic.bytes_per_image / 1e6, f"{prefix}calls": traffic.calls}


def count_row(network: Network, form: Form) -> Row:
    """Count one form of a network, where its library is there."""
    try:
        return make_row(network, form, count_form(form, form.img_size))
    except RuntimeError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        return Row(network.name, form.label, form.model, form.img_size, note=str(error))


def _difference(value: float | None, published: float | None) -> str:
    if value is None or published is None:
        return ""
    return f"{round(100 * (value / published - 1), 2) + 0.0:+.2f}%"  # + 0.0: no negative zero


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def format_rows(rows: list[Row], markdown: bool = False) -> str:
    """The table, under it the reasons for differences, and under these what fvcore did not count."""
    header = ["Network", "Params (M)", "published", "diff"]
    header += ["Conv + linear (G)", "In full (G)", "Paper's rule (G)", "published", "diff"]
    notes: list[str] = []
    cells = []
    for row in rows:
        title = row.title
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            title += f" [{notes.index(row.note) + 1}]"
        cells.append(
            [
                title,
                _number(row.params),
                _number(row.published_params),
                _difference(row.params, row.published_params),
                _number(row.conv_linear),
                _number(row.full),
                _number(row.paper_rule),
                _number(row.published_flops),
                _difference(row.paper_rule, row.published_flops),
            ]
        )
    bullet = "- " if markdown else "  "
    text = [format_table(header, cells, markdown), ""]
    text += [f"{bullet}[{i}] {note}" for i, note in enumerate(notes, start=1)]
    text += _format_traffic(rows, markdown)
    never_run = [f"{bullet}{row.title}: {row.never_run:.2f} M" for row in rows if row.never_run]
    if never_run:
        text += ["", "Parameters of modules that no forward pass calls:", ""] + never_run
    uncounted: dict[str, list[str]] = {}
    for row in rows:
        if row.uncounted_ops:
            ops = ", ".join(f"{calls} {op}" for op, calls in row.uncounted_ops.items())
            uncounted.setdefault(ops, []).append(row.title)
    if uncounted:
        text += ["", "Calls of ops that no column counts:", ""]
        text += [f"{bullet}{'; '.join(titles)}: {ops}" for ops, titles in uncounted.items()]
    return "\n".join(text)


def _format_traffic(rows: list[Row], markdown: bool) -> list[str]:
    rows = [row for row in rows if row.traffic is not None]
    if not rows:
        return []
    header = ["Network", "Activations (M)", "Traffic (MB)", "Calls", "fused: Traffic (MB)", "Calls"]
    cells = [
        [
            row.title,
            _number(row.activations),
            f"{row.traffic:.0f}",
            str(row.calls),
            "" if row.fused_traffic is None else f"{row.fused_traffic:.0f}",
            "" if row.fused_calls is None else str(row.fused_calls),
        ]
        for row in rows
    ]
    return [
        "",
        "What an image moves. Activations: what convolutions, linear layers and matrix products give. Traffic: inputs "
        f"and outputs of all ops but views, attention as one, in bfloat16 in a batch of {TRAFFIC_BATCH}; calls: of "
        "these ops.",
        "",
        format_table(header, cells, markdown),
    ]


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m benchmarks complexity`."""
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="count only networks of these names, the paper's ('Swin-B') or their library's ('hifuse_*'; default: all)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the counts to this file")
    parser.add_argument("--markdown", metavar="FILE", help="write the table to this file")


def run(args: Namespace) -> None:
    """Count, print the table, and write the files asked for."""
    rows = []
    progress = tqdm(list(forms(args.models)), unit="network", disable=None)
    for network, form in progress:
        progress.set_description(form.model)
        rows.append(count_row(network, form))
    print(format_rows(rows))
    if args.json:
        result = dict(kind="complexity", conditions=conditions(torch.device("cpu")), rows=[asdict(row) for row in rows])
        write_json(args.json, result)
    if args.markdown:
        write_text(args.markdown, format_rows(rows, markdown=True) + "\n")
