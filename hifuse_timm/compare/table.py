"""A comparison as tables, for the terminal or in Markdown."""

from ..tables import METRIC_NAMES, format_interval, format_markdown, format_percent, format_table
from ..text import abbreviate
from .comparison import COMPARED

__all__ = ["format_comparison"]

_NOT_INDEPENDENT = (
    "McNemar's and DeLong's tests take images as independent. Several images of a group, as of a patient, are not: the "
    "p-values tend to be too small then, and the intervals over groups are what holds."
)


def format_comparison(comparison: dict, markdown: bool = False) -> str:
    """What `compare` found, as tables for the terminal, or in Markdown; metrics and differences are in percent."""
    counts, intervals, networks = comparison["counts"], comparison["intervals"], comparison["networks"]
    make_table = format_markdown if markdown else format_table
    first = _name(networks[0])
    over = f"{intervals['groups']:,} groups" if intervals["unit"] == "groups" else "images"
    return "\n".join(
        [
            f"{len(networks)} networks on {counts['images']:,} images, {counts['classes']} classes; differences are "
            "from the first, with paired intervals",
            "",
            make_table(
                ["%", "predictions", "value", f"95% interval\nover {over}", "difference", f"95% interval\nover {over}"],
                [_metric_row(name, network) for name in COMPARED for network in networks],
            ),
            "",
            make_table(*_list_tests(networks, first)),
            *([] if comparison["independent"] else ["", _NOT_INDEPENDENT]),
        ]
    )


def _name(network: dict) -> str:
    return abbreviate(network["file"], 40)


def _metric_row(name: str, network: dict) -> list[str]:
    metric, difference = network["metrics"][name], network.get("differences", {}).get(name)
    row = [METRIC_NAMES[name], _name(network), format_percent(metric["value"]), format_interval(metric["interval"])]
    if difference is None:
        return [*row, "", ""]
    return [*row, _signed(difference["value"]), _signed_interval(difference["interval"])]


def _list_tests(networks: list[dict], first: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the tests; what is corrected for several is there where there are several."""
    several, has_delong = len(networks) > 2, any(network["delong"] for network in networks[1:])
    header = [f"against {first}", "only the\nfirst right", "only this\nright", "McNemar's\nexact p"]
    header += ["by Holm"] if several else []
    if has_delong:
        header += ["DeLong's z", "p", *(["by Holm"] if several else [])]
    rows = []
    for network in networks[1:]:
        mcnemar, delong = network["mcnemar"], network["delong"]
        row = [_name(network), f"{mcnemar['only_first']:,}", f"{mcnemar['only_this']:,}", *_p_values(mcnemar, several)]
        if has_delong:
            row += [f"{delong['z']:+.2f}" if delong else "n/a", *_p_values(delong, several)]
        rows.append(row)
    return header, rows


def _p_values(test: dict | None, several: bool) -> list[str]:
    shown = [None if test is None else test[name] for name in ("p", "p_holm")][: 1 + several]
    return ["n/a" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}" for p in shown]


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:+.2f}"


def _signed_interval(interval: list[float] | None) -> str:
    return "n/a" if interval is None else " to ".join(map(_signed, interval))
